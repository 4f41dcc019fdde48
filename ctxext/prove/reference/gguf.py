"""GGUF files as llama.cpp's code reads them."""

import heapq
import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.prove.reference.byte_level import open_byte_level
from ctxext.prove.reference.gguf_architectures import ARCHITECTURES, OUTER
from ctxext.prove.reference.gguf_file import GGUFFile
from ctxext.prove.reference.gguf_types import check_types
from ctxext.prove.reference.gguf_vocabulary import NORMAL, around, entries
from ctxext.prove.reference.llama import ReferenceReader

BYTE = 6
"""The type of a token that represents one byte."""
DIVISORS = "rope_freqs.weight"
LARGEST_SIZE = 2**31
"""One more than the largest width, or position, that is read here."""


class GGUFReference(ReferenceReader):
    """A model read from one file.

    Raises ValueError for an architecture that is not known here, and for keys that are missing or
    in a type that llama.cpp does not load.
    """

    reads_model = True
    rounded = True

    def __init__(self, path: str | Path) -> None:
        self.file = GGUFFile(path)
        if self.file.uses_library:
            self.library = f"gguf {importlib.metadata.version('gguf')}"
        keys = self.keys = self.file.keys
        self.architecture: str = keys.get("general.architecture", "")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"{path} is of architecture {self.architecture!r:.60}; known are "
                f"{', '.join(ARCHITECTURES)}"
            )
        known = ARCHITECTURES[self.architecture]
        check_types(self.file)
        self.num_hidden_layers = self._size("block_count")
        self._num_heads = self._size("attention.head_count")
        default = self._size("embedding_length") // self._num_heads
        self.head_dim = self._size("attention.key_length", default)
        self.window = self._size("context_length")
        self.rms_norm_eps = self._key(known.epsilon)
        _check_number(f"{self.architecture}.{known.epsilon}", self.rms_norm_eps, above=0)
        if self.num_hidden_layers > len(self.file.tensors):
            raise ValueError(
                f"{self.architecture}.block_count is {self.num_hidden_layers} in {path}, which has "
                f"{len(self.file.tensors)} tensors"
            )
        self._names = known.names(self.file.tensors)
        self.neighbours = known.neighbours
        self.hidden_act = known.activation
        prefix = f"{self.architecture}."
        own = {key.removeprefix(prefix): value for key, value in keys.items()}
        self.decoder = known.decoder(own, self.file.tensors, self.num_hidden_layers)
        if DIVISORS in self.file.tensors and not known.divisors:
            raise ValueError(
                f"{DIVISORS} in {path} is no tensor of architecture {self.architecture}"
            )

    def _key(self, name: str) -> Any:
        key = f"{self.architecture}.{name}"
        if key not in self.keys:
            raise ValueError(f"{self.file.path} lacks the key {key!r}")
        return self.keys[key]

    def _size(self, name: str, default: int | None = None) -> int:
        """A key that counts something. Raises ValueError for anything but a positive integer."""
        key = f"{self.architecture}.{name}"
        value = self._key(name) if default is None else self.keys.get(key, default)
        if type(value) is not int or not 1 <= value < LARGEST_SIZE:
            raise ValueError(
                f"{key} {value!r:.60} in {self.file.path} is not read here: it must be an integer "
                f"from 1 to {LARGEST_SIZE - 1}"
            )
        return value

    def tensor_name(self, name: str) -> str:
        """The name that a tensor of Hugging Face's Llama has in the file."""
        module, _, leaf = name.rpartition(".")
        if not module.startswith("model.layers."):
            return f"{OUTER[module]}.{leaf}"
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{self._names[part]}.{leaf}"

    def tensor_names(self) -> list[str]:
        """Hugging Face's names of all tensors that a file of the architecture can have."""
        layers = range(self.num_hidden_layers)
        modules = [*OUTER, *(f"model.layers.{i}.{part}" for i in layers for part in self._names)]
        return [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]

    def _rows(self, name: str) -> slice:
        """The rows of a tensor of Hugging Face's Llama in the one that holds it."""
        if ".attn_qkv." not in self.tensor_name(name):
            return slice(None)
        queries = self._num_heads * self.head_dim
        keys = self._size("attention.head_count_kv", self._num_heads) * self.head_dim
        ends = [0, queries, queries + keys, queries + 2 * keys]
        part = "qkv".index(name.split("self_attn.")[1][0])
        return slice(ends[part], ends[part + 1])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of what `numbers` returns."""
        rows, *others = self.file.tensors[self.tensor_name(name)].shape
        return (len(range(rows)[self._rows(name)]), *others)

    def numbers(self, name: str) -> np.ndarray:
        """A tensor of Hugging Face's Llama, float32, with the file's order of rows."""
        return self.file.numbers(self.tensor_name(name))[self._rows(name)]

    def weight(self, name: str) -> np.ndarray:
        return self.numbers(name).astype(np.float64)

    def bias(self, name: str) -> np.ndarray | float:
        return self.weight(name) if self.tensor_name(name) in self.file.tensors else 0.0

    def output(self) -> np.ndarray:
        tied = "output.weight" not in self.file.tensors
        return self.weight("model.embed_tokens.weight" if tied else "lm_head.weight")

    def rope(self, seq_len: int) -> tuple[np.ndarray, float]:
        """As llama.cpp takes them from the file without flags, at any length."""
        divisors = self.file.numbers(DIVISORS) if DIVISORS in self.file.tensors else None
        return frequencies(self.keys, divisors, self.head_dim, self.architecture)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """BOS and EOS where the file asks for them, around SentencePiece's or byte-level merges."""
        keys = self.keys
        prefix, suffix = around(keys)
        if keys["tokenizer.ggml.model"] == "gpt2":
            byte_level = open_byte_level(keys)
            return [[*prefix, *byte_level.encode(text).ids, *suffix] for text in texts]
        tokens = entries(keys, "tokens")
        scores = entries(keys, "scores", 0.0)
        types = entries(keys, "token_type", NORMAL)
        ids = {text: i for i, text in enumerate(tokens)}
        byte_ids = {
            int(text[3:5], 16): ids[text]
            for text, token_type in zip(tokens, types, strict=True)
            if token_type == BYTE
        }
        unknown: int = keys.get("tokenizer.ggml.unknown_token_id", 0)
        space = " " if keys.get("tokenizer.ggml.add_space_prefix", True) else ""

        def encode(text: str) -> list[int]:
            encoded: list[int] = list(prefix)
            for part in merged((space + text).replace(" ", "▁") if text else "", ids, scores):
                if part in ids:
                    encoded.append(ids[part])
                else:
                    encoded += [byte_ids.get(byte, unknown) for byte in part.encode()]
            return [*encoded, *suffix]

        return [encode(text) for text in texts]


def _check_number(key: str, value: Any, *, above: float) -> None:
    """Raise ValueError, naming the key, unless the value is a finite number above a bound."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not above < value < 1e30 or value - above < 1e-30:
        raise ValueError(f"{key} {value!r} is not read here: it must be a number above {above}")


def frequencies(
    keys: dict[str, Any], divisors: np.ndarray | None, d: int, architecture: str = "llama"
) -> tuple[np.ndarray, float]:
    """(inv_freq in radians per token, factor m on cos and sin) that llama.cpp takes from the keys.

    YaRN's betas are 32 and 1 whatever is in the file, as llama.cpp's programs overrule them. Raises
    ValueError for a type of scaling that is not read here, unless there is one divisor per pair,
    and for numbers that cannot be a base, a factor, a window or a divisor.
    """
    theta = keys.get(f"{architecture}.rope.freq_base", 10000.0)
    kind = keys.get(f"{architecture}.rope.scaling.type", "linear")
    factor = keys.get(f"{architecture}.rope.scaling.factor", 0.0) or 1.0
    m = keys.get(f"{architecture}.rope.scaling.attn_factor", 1.0)
    _check_number(f"{architecture}.rope.freq_base", theta, above=1)
    _check_number(f"{architecture}.rope.scaling.factor", factor, above=0)
    _check_number(f"{architecture}.rope.scaling.attn_factor", m, above=0)
    f = theta ** (-2 * np.arange(d // 2) / d)
    if divisors is not None:
        if divisors.shape != f.shape:
            raise ValueError(
                f"rope_freqs.weight of shape {divisors.shape} for {len(f)} pairs is not read here"
            )
        if not np.all((divisors > 0) & np.isfinite(divisors)):
            raise ValueError(
                "rope_freqs.weight is not read here: its divisors must be positive numbers"
            )
        f = f / divisors.astype(np.float64)
    if kind == "none":
        return f, m
    if kind == "linear":
        return f / factor, m
    if kind != "yarn":
        raise ValueError(f"{architecture}.rope.scaling.type {kind!r} is not read here")
    original = f"{architecture}.rope.scaling.original_context_length"
    window = keys.get(original) or keys.get(f"{architecture}.context_length", 0)
    _check_number(original, window, above=0)
    low, high = (
        d * math.log(window / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (32, 1)
    )
    low, high = max(0, math.floor(low)), min(d - 1, math.ceil(high))
    kept = 1 - np.clip((np.arange(d // 2) - low) / max(0.001, high - low), 0, 1)
    return f / factor * (1 - kept) + f * kept, m * (1 + 0.1 * math.log(factor))


def merged(text: str, ids: dict[str, int], scores: list[float]) -> list[str]:
    """The parts that are left when neighbours that form a known token are joined.

    The highest score goes first, then the leftmost pair.
    """
    parts: list[str | None] = list(text)
    before = list(range(-1, len(parts) - 1))
    after = list(range(1, len(parts) + 1))
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left < 0 or right >= len(parts):
            return
        both = f"{parts[left]}{parts[right]}"
        if both in ids:
            heapq.heappush(queue, (-scores[ids[both]], left, right, both))

    for i in range(len(parts) - 1):
        offer(i, i + 1)
    while queue:
        _, left, right, both = heapq.heappop(queue)
        if parts[left] is None or parts[right] is None or f"{parts[left]}{parts[right]}" != both:
            continue  # one of the two has been joined since
        parts[left] = both
        parts[right] = None
        after[left] = after[right]
        if after[right] < len(parts):
            before[after[right]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [part for part in parts if part is not None]
