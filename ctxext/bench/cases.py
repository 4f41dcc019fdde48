"""The measurements as data: the same weights and the same tokens for every backend."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ctxext.model.config import LlamaConfig
from ctxext.serialization import from_json, to_json

SMALL = LlamaConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1376,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=2048,
)
"""27.4 M parameters: two CPU cores train it in seconds per step."""

LARGE = LlamaConfig(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=2048,
)
"""1.1 B parameters, the shape of TinyLlama: for one accelerator."""

NARROW = dataclasses.replace(
    SMALL,
    hidden_size=128,
    intermediate_size=344,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)
"""So small that a step on 65,536 tokens takes about a minute on two cores."""

Part = Literal["product", "step", "prefill", "decode", "attention", "loss"]
RunOnce = Callable[[], tuple[float, list[float]]]
"""Runs a case once: (seconds, the values that every backend has to reach)."""


@dataclasses.dataclass(frozen=True)
class BenchmarkCase:
    """One measurement: `batch` rows of `seq_len` tokens; a decode writes `new_tokens` to each.

    A product is that of two square matrices with `seq_len` rows.
    """

    part: Part
    seq_len: int
    batch: int = 1
    new_tokens: int = 0
    remat: str = "none"
    dtype: str = "float32"
    shape: LlamaConfig = SMALL

    @property
    def name(self) -> str:
        """A description in one line."""
        if self.part == "product":
            return f"product of {self.dtype} matrices, {self.seq_len:,} x {self.seq_len:,}"
        details = {
            "decode": f" + {self.new_tokens} new",
            "loss": f", vocabulary {self.shape.vocab_size:,}",
        }
        remat = ", remat" if self.remat == "full" else ""
        return f"{self.part}, {self.batch} x {self.seq_len:,}{details.get(self.part, '')}{remat}"

    @property
    def tokens(self) -> int:
        """The tokens that a rate counts: those a decode writes after its first, or those read."""
        return self.batch * (self.new_tokens - 1 if self.part == "decode" else self.seq_len)

    def input_ids(self) -> np.ndarray:
        """int32 [batch, seq_len], the same for every backend."""
        return np.random.default_rng(0).integers(
            3, self.shape.vocab_size, (self.batch, self.seq_len), np.int32
        )

    def normal(self, *shapes: tuple[int, ...]) -> list[np.ndarray]:
        """Float32 unit normals of these shapes, the same for every backend."""
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape, np.float32) for shape in shapes]

    def json(self) -> str:
        """The case for another process."""
        return json.dumps({**dataclasses.asdict(self), "shape": to_json(self.shape)})

    @classmethod
    def parse(cls, text: str) -> "BenchmarkCase":
        """The inverse of `json`."""
        fields = json.loads(text)
        return cls(**{**fields, "shape": from_json(fields["shape"])})


def standard_cases(platform: str) -> dict[str, tuple[BenchmarkCase, ...]]:
    """The cases of every part, in sizes that a platform ("cpu", "gpu" or "tpu") runs in minutes."""
    if platform == "cpu":
        default = BenchmarkCase("step", 1024, dtype="float32", shape=SMALL)
        product_size = 2048
    else:
        default = BenchmarkCase("step", 1024, dtype="bfloat16", shape=LARGE)
        product_size = 8192

    def case(part: Part, seq_len: int, batch: int = 1, **fields: Any) -> BenchmarkCase:
        return dataclasses.replace(default, part=part, seq_len=seq_len, batch=batch, **fields)

    return {
        "product": (case("product", product_size),),
        "step": tuple(
            case("step", T, B, remat=remat)
            for T, B in ((1024, 2), (4096, 1))
            for remat in ("none", "full")
        ),
        "prefill": tuple(case("prefill", T) for T in (4096, 8192, 16384)),
        "decode": tuple(case("decode", 2048, B, new_tokens=64) for B in (1, 8)),
        "attention": (case("attention", 1024, 8), case("attention", 4096, 2)),
        "loss": (case("loss", 4096, shape=dataclasses.replace(default.shape, vocab_size=32000)),),
        "memory": tuple(
            case("step", T, remat="full", shape=NARROW) for T in (8192, 16384, 32768, 65536)
        ),
    }
