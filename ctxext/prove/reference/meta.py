"""Meta's directories as Meta's code reads them, and the rope.json that ctxext adds to them."""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.prove.reference.llama import ReferenceReader

# Hugging Face's name -> Meta's, and the dimension that its parallel layers divide among the shards;
# None: not divided.
NAMES = {
    "model.embed_tokens": ("tok_embeddings", 1),
    "model.norm": ("norm", None),
    "lm_head": ("output", 0),
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}
Archive = Mapping[str, Any]
"""The tensors of a shard by name."""


class MetaReference(ReferenceReader):
    """A Llama read from Meta's files.

    `open_shard(file)` opens a shard, `to_numpy(tensor)` gives the numbers of a tensor in it.
    """

    neighbours = True
    reads_model = True

    def __init__(
        self,
        directory: str | Path,
        open_shard: Callable[[Path], Archive],
        to_numpy: Callable[[Any], np.ndarray],
    ) -> None:
        self.directory = Path(directory)
        self._to_numpy = to_numpy
        params = json.loads((self.directory / "params.json").read_text())
        self.params: dict[str, Any] = params
        self.num_hidden_layers = params["n_layers"]
        self.rms_norm_eps = params["norm_eps"]
        self.width = params["dim"]
        self.head_dim = params["dim"] // params["n_heads"]
        self.theta: float = params.get("rope_theta", 10000.0)
        files = sorted(self.directory.glob("consolidated.*.pth"))
        self._shards = [open_shard(file) for file in files]

    def weight(self, name: str) -> np.ndarray:
        stem = name.removesuffix(".weight")
        prefix = ""
        if stem.startswith("model.layers."):
            _, _, layer, stem = stem.split(".", 3)
            prefix = f"layers.{layer}."
        meta_name, dim = NAMES[stem]
        parts = [
            self._to_numpy(shard[f"{prefix}{meta_name}.weight"]).astype(np.float64)
            for shard in self._shards
        ]
        if meta_name == "tok_embeddings" and parts[0].shape[1] == self.width:
            dim = 0  # Llama 3 divides the vocabulary
        return parts[0] if dim is None else np.concatenate(parts, dim)

    def rope(self, seq_len: int) -> tuple[np.ndarray, float]:
        """The frequencies in rope.json; without it plain ones with the theta of params.json.

        That theta is read as by Code Llama's code.
        """
        rope_file = self.directory / "rope.json"
        if rope_file.is_file():
            rope = json.loads(rope_file.read_text())
            return np.array(rope["inv_freq"], np.float64), rope["attention_factor"]
        d = self.head_dim
        freqs = [self.theta ** (-2 * i / d) for i in range(d // 2)]
        if self.params.get("use_scaled_rope"):
            freqs = [self._scaled(freq) for freq in freqs]
        return np.array(freqs), 1.0

    def _scaled(self, freq: float) -> float:
        """A frequency as `apply_scaling` of Llama 3.1's code changes it (arXiv 2407.21783)."""
        size = (self.params["dim"], self.params["n_layers"])
        is_3_2 = size in ((2048, 16), (3072, 28))
        factor = self.params.get("rope_scaling_factor") or (32 if is_3_2 else 8)
        high_freq_factor = self.params.get("rope_high_freq_factor") or 4
        old_context_len = 8192
        wavelen = 2 * math.pi / freq
        if wavelen < old_context_len / high_freq_factor:
            return freq
        if wavelen > old_context_len:
            return freq / factor
        smooth = (old_context_len / wavelen - 1) / (high_freq_factor - 1)
        return (1 - smooth) * freq / factor + smooth * freq

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids as Meta's tokenizer.py gives them: BOS, then those of SentencePiece."""
        model = self._tokenizer
        return [[model.bos_id(), *model.encode(text)] for text in texts]

    def vocabulary(self) -> dict[int, str]:
        model = self._tokenizer
        return {i: model.id_to_piece(i) for i in range(model.vocab_size())}

    @functools.cached_property
    def _tokenizer(self) -> Any:
        import sentencepiece

        file = str(self.directory / "tokenizer.model")
        return sentencepiece.SentencePieceProcessor(model_file=file)
