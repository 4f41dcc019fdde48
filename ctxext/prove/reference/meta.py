"""Meta's directories as Meta's code reads them: params.json, shards, neighbouring rows; and rope.json beside them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.prove.reference.llama import Textbook

# Hugging Face's name -> Meta's, and the dimension that its parallel layers divide among the shards; None: not divided.
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
"""Tensors of a shard by name."""


class MetaTextbook(Textbook):
    """`open_shard(file)` opens a shard, `numbers(tensor)` gives the numbers of a tensor in it."""

    neighbours = True

    def __init__(
        self,
        directory: str | Path,
        open_shard: Callable[[Path], Archive],
        numbers: Callable[[Any], np.ndarray],
    ) -> None:
        self.directory, self._numbers = Path(directory), numbers
        params = json.loads((self.directory / "params.json").read_text())
        self.num_hidden_layers, self.rms_norm_eps = params["n_layers"], params["norm_eps"]
        self.width, self.head_dim = params["dim"], params["dim"] // params["n_heads"]
        self.theta: float = params.get("rope_theta", 10000.0)
        self._shards = [
            open_shard(file) for file in sorted(self.directory.glob("consolidated.*.pth"))
        ]

    def weight(self, name: str) -> np.ndarray:
        stem, place = name.removesuffix(".weight"), ""
        if stem.startswith("model.layers."):
            _, _, layer, stem = stem.split(".", 3)
            place = f"layers.{layer}."
        own, dim = NAMES[stem]
        parts = [
            self._numbers(shard[f"{place}{own}.weight"]).astype(np.float64)
            for shard in self._shards
        ]
        if own == "tok_embeddings" and parts[0].shape[1] == self.width:
            dim = 0  # Llama 3 divides the vocabulary
        return parts[0] if dim is None else np.concatenate(parts, dim)

    def rope(self, seq_len: int) -> tuple[np.ndarray, float]:
        """Of rope.json where there is one, else plain with theta of params.json, as Code Llama's code has it."""
        side_car = self.directory / "rope.json"
        if side_car.is_file():
            said = json.loads(side_car.read_text())
            return np.array(said["inv_freq"], np.float64), said["attention_factor"]
        return np.array(
            [self.theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]
        ), 1.0

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """As Meta's tokenizer.py: BOS, then what SentencePiece says."""
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(
            model_file=str(self.directory / "tokenizer.model")
        )
        return [[model.bos_id(), *model.encode(text)] for text in texts]
