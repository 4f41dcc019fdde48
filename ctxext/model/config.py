"""The shape of a Llama, with Hugging Face's names, and the published shapes by name."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import jax

from ctxext.rope import RopeBase

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
"""The functions that `hidden_act` names."""
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
"""The fields that are counts."""
LARGEST_SIZE = 2**24
"""More is a mistake, and is refused before anything of that size is allocated."""


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The fields of an HF `model_type: llama` config that decide the function, but rotary scaling.

    `max_position_embeddings` is the window of pre-training (tokens), also for a model that has been
    extended. Raises ValueError for shapes that do not fit together.
    """

    type_tag: ClassVar[str] = "model"
    vocab_size: int
    """Tokens in the vocabulary."""
    hidden_size: int
    """D, the model dimension."""
    intermediate_size: int
    """F, the MLP dimension."""
    num_hidden_layers: int
    """L, layers."""
    num_attention_heads: int
    """N, query heads."""
    num_key_value_heads: int
    """K, key-value heads; N is a multiple of K."""
    head_dim: int
    """H, the dimension of a head."""
    rms_norm_eps: float
    """The epsilon of RMS norm."""
    rope_theta: float
    """The base of the rotary frequencies."""
    max_position_embeddings: int
    """The window of pre-training in tokens, also for a model that has been extended."""
    tie_word_embeddings: bool = False
    """The output projection is the embedding."""
    attention_bias: bool = False
    """The attention projections have biases."""
    mlp_bias: bool = False
    """The MLP projections have biases."""
    hidden_act: str = "silu"
    """The activation of the MLP."""
    attention_dropout: float = 0.0
    """Read and written for HF; training refuses any but 0."""
    initializer_range: float = 0.02
    """The standard deviation of initial weights."""
    bos_token_id: int | None = 1
    """The token that begins a text."""
    eos_token_id: int | tuple[int, ...] | None = 2
    """The token or tokens that end a text."""
    pad_token_id: int | None = None
    """The padding token, which training does not use."""

    def __post_init__(self) -> None:
        for field in SIZES:
            size = getattr(self, field)
            if not 1 <= size <= LARGEST_SIZE:
                raise ValueError(f"{field} must be positive and at most {LARGEST_SIZE}, got {size}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}; correct config.json"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embeddings need pairs")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act {self.hidden_act!r} is not supported; known: {', '.join(ACTIVATIONS)}"
            )
        self.rope_base()  # raises ValueError for a rope_theta that is no base

    def rope_base(self) -> RopeBase:
        """The un-scaled rotary embedding this model was pre-trained with."""
        return RopeBase(self.head_dim, self.rope_theta, self.max_position_embeddings)

    @property
    def num_parameters(self) -> int:
        """The number of parameters; a tied output projection counts once."""
        D, F, H = self.hidden_size, self.intermediate_size, self.head_dim
        q = self.num_attention_heads * H
        kv = self.num_key_value_heads * H
        attention = D * (q + 2 * kv) + q * D + self.attention_bias * (q + 2 * kv + D)
        mlp = 3 * D * F + self.mlp_bias * (2 * F + D)
        embeddings = self.vocab_size * D * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * (attention + mlp + 2 * D) + embeddings + D


def _llama(
    D: int, F: int, L: int, N: int, K: int, theta: float, window: int, vocab: int, **more
) -> LlamaConfig:
    more = {"rms_norm_eps": 1e-5, "head_dim": D // N, **more}
    return LlamaConfig(
        vocab, D, F, L, N, K, rope_theta=theta, max_position_embeddings=window, **more
    )


def _llama3(D: int, F: int, L: int, N: int, K: int, window: int, **more) -> LlamaConfig:
    # From 3.1 on, the window is the 8,192 tokens that Llama 3's frequency scaling starts from
    # (factor 8, or 32 for 3.2).
    return _llama(
        D, F, L, N, K, 5e5, window, 128256, bos_token_id=128000, eos_token_id=128001, **more
    )


SHAPES: dict[str, LlamaConfig] = {
    "llama1-7b": _llama(4096, 11008, 32, 32, 32, 1e4, 2048, 32000, rms_norm_eps=1e-6),
    "llama1-13b": _llama(5120, 13824, 40, 40, 40, 1e4, 2048, 32000, rms_norm_eps=1e-6),
    "llama1-33b": _llama(6656, 17920, 60, 52, 52, 1e4, 2048, 32000, rms_norm_eps=1e-6),
    "llama1-65b": _llama(8192, 22016, 80, 64, 64, 1e4, 2048, 32000),
    "llama2-7b": _llama(4096, 11008, 32, 32, 32, 1e4, 4096, 32000),
    "llama2-13b": _llama(5120, 13824, 40, 40, 40, 1e4, 4096, 32000),
    "llama2-70b": _llama(8192, 28672, 80, 64, 8, 1e4, 4096, 32000),
    "codellama-7b": _llama(4096, 11008, 32, 32, 32, 1e6, 16384, 32016),
    "codellama-13b": _llama(5120, 13824, 40, 40, 40, 1e6, 16384, 32016),
    "codellama-34b": _llama(8192, 22016, 48, 64, 8, 1e6, 16384, 32000),
    "codellama-70b": _llama(8192, 28672, 80, 64, 8, 1e6, 16384, 32016),
    # Also the shape of codellama-70b-python; these two had no long-context stage.
    "codellama-70b-instruct": _llama(8192, 28672, 80, 64, 8, 1e4, 4096, 32016),
    "llama3-8b": _llama3(4096, 14336, 32, 32, 8, 8192),
    "llama3-70b": _llama3(8192, 28672, 80, 64, 8, 8192),
    "llama3.1-405b": _llama3(16384, 53248, 126, 128, 8, 8192),
    "llama3.2-1b": _llama3(2048, 8192, 16, 32, 8, 8192, tie_word_embeddings=True),
    "llama3.2-3b": _llama3(3072, 8192, 28, 24, 8, 8192, tie_word_embeddings=True),
    "tinyllama-1.1b": _llama(2048, 5632, 22, 32, 4, 1e4, 2048, 32000),
}
# These have the shape of Llama 3; only their frequency scaling differs.
for _name in ("llama3.1-8b", "llama3.1-70b", "llama3.3-70b"):
    SHAPES[_name] = SHAPES[f"llama3-{_name.rsplit('-')[-1]}"]


def merge_ids(*sources: int | Sequence[int] | None) -> tuple[int, ...]:
    """The token ids of all sources, each a number, a list or None; sorted, each once."""
    ids: set[int] = set()
    for source in sources:
        if isinstance(source, int):
            ids.add(source)
        elif source is not None:
            ids.update(source)
    return tuple(sorted(ids))
