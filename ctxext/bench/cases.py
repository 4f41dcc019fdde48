"""What is measured, as data: the same weights and the same tokens for every side that does it."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ctxext.model.config import LlamaConfig

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
"""27.4 M parameters: what two CPU cores train in seconds a step."""

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

Part = Literal["step", "prefill", "decode", "attention", "loss"]
Round = Callable[[], tuple[float, list[float]]]
"""Does a work once: (seconds, numbers that every side has to find). A side has one for each part, made by its PARTS."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One measurement. `seq_len` tokens of `batch` rows go in; `new_tokens` come out of a decode."""

    part: Part
    seq_len: int
    batch: int = 1
    new_tokens: int = 0
    remat: str = "none"
    dtype: str = "float32"
    shape: LlamaConfig = SMALL

    @property
    def name(self) -> str:
        """To read, in one line."""
        more = {
            "decode": f" + {self.new_tokens} new",
            "loss": f", vocabulary {self.shape.vocab_size:,}",
        }
        remat = ", remat" if self.remat == "full" else ""
        return f"{self.part}, {self.batch} x {self.seq_len:,}{more.get(self.part, '')}{remat}"

    @property
    def tokens(self) -> int:
        """What a rate counts: tokens that a decode writes behind its first, tokens that anything else reads."""
        return self.batch * (self.new_tokens - 1 if self.part == "decode" else self.seq_len)

    def input_ids(self) -> np.ndarray:
        """int32 [batch, seq_len], the same on every side."""
        return np.random.default_rng(0).integers(
            3, self.shape.vocab_size, (self.batch, self.seq_len), np.int32
        )

    def normal(self, *shapes: tuple[int, ...]) -> list[np.ndarray]:
        """Float32 unit normals of these shapes, the same on every side."""
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape, np.float32) for shape in shapes]

    def json(self) -> str:
        """For another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Work":
        """The inverse of `json`."""
        fields = json.loads(text)
        return cls(**{**fields, "shape": LlamaConfig(**fields["shape"])})


def standard(platform: str) -> dict[str, tuple[Work, ...]]:
    """The works of every part, in sizes that this platform ("cpu", "gpu" or "tpu") does in minutes."""
    shape, dtype = (SMALL, "float32") if platform == "cpu" else (LARGE, "bfloat16")

    def work(part: Part, seq_len: int, batch: int = 1, **more: Any) -> Work:
        return Work(part, seq_len, batch, **{"dtype": dtype, "shape": shape, **more})

    return {
        "step": tuple(
            work("step", T, B, remat=remat)
            for T, B in ((1024, 2), (4096, 1))
            for remat in ("none", "full")
        ),
        "prefill": tuple(work("prefill", T) for T in (4096, 8192, 16384)),
        "decode": tuple(work("decode", 2048, B, new_tokens=64) for B in (1, 8)),
        "attention": (work("attention", 1024, 8), work("attention", 4096, 2)),
        "loss": (work("loss", 4096, shape=dataclasses.replace(shape, vocab_size=32000)),),
        "memory": tuple(
            work("step", T, remat="full", shape=NARROW) for T in (8192, 16384, 32768, 65536)
        ),
    }
