"""Hugging Face directories, and PEFT adapters on them, as transformers documents them."""

import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ctxext.prove.reference.adapter import Adapter
from ctxext.prove.reference.families import layout
from ctxext.prove.reference.llama import ReferenceReader
from ctxext.prove.reference.weight_files import OpenArchive, stored_tensors


def _inner(name: str) -> str:
    """A name without the prefix of the inner model, which files have once, twice or not."""
    while name.startswith(("model.", "transformer.")):
        name = name.partition(".")[2]
    return name


class HFReference(ReferenceReader):
    """A model read from the files of `directory`, and of an `adapter` on it, alone.

    `open_archive` opens the files of torch.save.
    """

    def __init__(
        self,
        directory: str | Path,
        adapter: str | Path | None = None,
        *,
        open_archive: OpenArchive,
    ) -> None:
        self._adapter = None if adapter is None else Adapter(adapter, open_archive)
        self.directory = Path(directory)
        self._layout = layout(json.loads((self.directory / "config.json").read_text()))
        self.config: dict[str, Any] = self._layout.config
        self.decoder = self._layout.decoder
        stored = stored_tensors(self.directory, open_archive)
        self._stored = {_inner(name): read for name, read in stored.items()}
        if self.config.get("tie_word_embeddings", False):  # a file may hold either of the two
            name = _inner(self._layout.stored("model.embed_tokens.weight"))
            embedding = self._stored.get(name) or self._stored["lm_head.weight"]
            self._stored |= {name: embedding, "lm_head.weight": embedding}
        heads = self.config["num_attention_heads"]
        self.head_dim = self.config.get("head_dim") or self.config["hidden_size"] // heads
        self.num_hidden_layers = self.config["num_hidden_layers"]
        self.rms_norm_eps = self.config["rms_norm_eps"]
        self.hidden_act = self.config.get("hidden_act", "silu")

    def weight(self, name: str) -> np.ndarray:
        stored = self._layout.stored(name)
        weight = self._stored[_inner(stored)]().astype(np.float64)
        if self._adapter is not None:
            weight = self._adapter.changed(stored, weight)
        if self._layout.names and re.search(r"self_attn\.[qkv]_proj", name):
            weight = self._layout.rows(name, weight)
        return weight

    def bias(self, name: str) -> np.ndarray | float:
        return self.weight(name) if re.search(self._layout.biases, name) else 0.0

    def output(self) -> np.ndarray:
        return self.weight("lm_head.weight")

    def token_ids(self, texts: Sequence[str]) -> list[list[int]] | None:
        """As programs that use the tokenizers library get them from tokenizer.json."""
        tokenizer = self._tokenizer
        return None if tokenizer is None else [tokenizer.encode(text).ids for text in texts]

    def vocabulary(self) -> dict[int, str] | None:
        if self._tokenizer is None:
            return None
        return {i: text for text, i in self._tokenizer.get_vocab(with_added_tokens=True).items()}

    @functools.cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer | None:
        file = self.directory / "tokenizer.json"
        return tokenizers.Tokenizer.from_file(str(file)) if file.is_file() else None

    def rope(self, seq_len: int) -> tuple[np.ndarray, float]:
        """As transformers 4 and 5 read them.

        Raises ValueError if their keys give different frequencies.
        """
        old = self.config.get("rope_scaling")
        new = self.config.get("rope_parameters")
        for layer_type in ("full_attention", "sliding_attention"):
            if new and layer_type in new:
                return self._of_layer_type(new[layer_type], seq_len)
        readings = []
        if old or not new or "rope_theta" in self.config:  # as transformers 4 reads it
            theta = self.config.get("rope_theta", 10000.0)
            readings.append(frequencies(old or {}, theta, self.head_dim, seq_len, self.config))
        if new:  # as transformers 5 reads it
            theta = new.get("rope_theta", self.config.get("rope_theta"))
            readings.append(frequencies(new, theta, self.head_dim, seq_len, self.config))
        f, m = readings[0]
        for other_f, other_m in readings[1:]:
            if not np.array_equal(other_f, f) or other_m != m:
                raise ValueError("rope_scaling and rope_parameters give different frequencies")
        return f, m

    def sliding_rope(self, seq_len: int) -> tuple[np.ndarray, float]:
        new = self.config.get("rope_parameters")
        if new and "sliding_attention" in new:
            return self._of_layer_type(new["sliding_attention"], seq_len)
        return self.rope(seq_len)

    def _of_layer_type(self, entry: dict[str, Any], seq_len: int) -> tuple[np.ndarray, float]:
        """As transformers 5 reads an entry of Gemma 3 and of Olmo 3."""
        theta = entry.get("rope_theta", self.config.get("rope_theta", 10000.0))
        return frequencies(entry, theta, self.head_dim, seq_len, self.config)


def frequencies(
    spec: dict[str, Any], theta: float, d: int, seq_len: int, config: dict[str, Any]
) -> tuple[np.ndarray, float]:
    """(inv_freq in radians per token, factor m on cos and sin) as transformers documents them."""
    spec = {key: value for key, value in spec.items() if value is not None}
    kind = spec.get("rope_type", spec.get("type", "default"))
    s = spec.get("factor", 1.0)
    m = 1.0
    window = spec.get("original_max_position_embeddings", config["max_position_embeddings"])
    f = np.array([1 / theta ** (2 * i / d) for i in range(d // 2)])
    if kind == "linear":
        f = f / s
    elif kind == "dynamic":
        alpha = s * max(seq_len, window) / window - (s - 1)
        f = np.array([1 / (theta * alpha ** (d / (d - 2))) ** (2 * i / d) for i in range(d // 2)])
    elif kind == "yarn":
        fast, slow = (
            d * math.log(window / (2 * math.pi * turns)) / (2 * math.log(theta))
            for turns in (spec.get("beta_fast") or 32, spec.get("beta_slow") or 1)
        )
        if spec.get("truncate", True):
            fast, slow = math.floor(fast), math.ceil(slow)
        fast, slow = max(fast, 0), min(slow, d - 1)
        slow += 0.001 * (fast == slow)
        keep = np.array([1 - min(max((i - fast) / (slow - fast), 0), 1) for i in range(d // 2)])
        f = keep * f + (1 - keep) * f / s
        m = 0.1 * math.log(s) + 1
        if spec.get("mscale") and spec.get("mscale_all_dim"):
            m = (0.1 * spec["mscale"] * math.log(s) + 1) / (
                0.1 * spec["mscale_all_dim"] * math.log(s) + 1
            )
        m = spec.get("attention_factor", m)
    elif kind == "llama3":
        low, high = spec["low_freq_factor"], spec["high_freq_factor"]
        turns = np.array([window * x / (2 * math.pi) for x in f])
        keep = np.clip((turns - low) / (high - low), 0, 1)
        f = keep * f + (1 - keep) * f / s
    elif kind == "proportional":
        rotating = int(spec.get("partial_rotary_factor", 1.0) * d // 2)
        f = np.array([x / s if i < rotating else 0.0 for i, x in enumerate(f)])
    elif kind in ("longrope", "su"):
        f = f / np.array(spec["long_factor" if seq_len > window else "short_factor"])
        s = spec.get("factor", config["max_position_embeddings"] / window)
        m = math.sqrt(1 + math.log(s) / math.log(window)) if s > 1 else 1.0
        m = spec.get("attention_factor", m)
    elif kind != "default":
        raise ValueError(f"this reader does not know rope_type {kind!r}")
    return f, m
