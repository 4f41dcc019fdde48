"""The shape of a decoder, with Hugging Face's names, and the published shapes by name."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import jax

from ctxext.attention.bias import LinearBias, alibi_slopes
from ctxext.attention.layers import LayerKind, Layers
from ctxext.attention.maps import LogSteps
from ctxext.model.parts import LLAMA_PARTS, Parts
from ctxext.rope import Plain, RopeBase, RopeScaling, Unscaled, scaling_name

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
    """The fields of an HF config that decide the function, but rotary scaling.

    The names are those of `model_type: llama`, for all families; how a family differs from Llama is
    in `parts`. `max_position_embeddings` is the window of pre-training (tokens), also for a model
    that has been extended. Raises ValueError for shapes that do not fit together.
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
    """The epsilon of the norms."""
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
    family: str = "llama"
    """The family whose files it is read from and written to: `model_type` in config.json."""
    parts: Parts = LLAMA_PARTS
    """How the decoder differs from Llama's."""

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
        for name in ("windowed", "rotary"):
            of_layers = getattr(self.parts, name)
            if of_layers and len(of_layers) != self.num_hidden_layers:
                raise ValueError(
                    f"parts.{name} is for {len(of_layers)} layers, but num_hidden_layers is "
                    f"{self.num_hidden_layers}"
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
        return RopeBase(
            self.head_dim,
            self.rope_theta,
            self.max_position_embeddings,
            sliding_theta=self.parts.sliding_rope_theta,
        )

    @property
    def num_parameters(self) -> int:
        """The number of parameters; a tied output projection counts once."""
        D, F, H = self.hidden_size, self.intermediate_size, self.head_dim
        parts = self.parts
        q = self.num_attention_heads * H
        kv = self.num_key_value_heads * H
        attention = D * (q + 2 * kv) + q * D + self.attention_bias * D
        attention += self.has_qkv_bias * (q + 2 * kv) + parts.qk_norm * 2 * H
        expansions = 2 if parts.gated else 1
        mlp = (expansions + 1) * D * F + self.mlp_bias * (expansions * F + D)
        norm = D * (2 if parts.norm_bias else 1)
        norms = norm * (1 if parts.shared_norm else 2)
        embeddings = self.vocab_size * D * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * (attention + mlp + norms) + embeddings + norm

    @property
    def has_qkv_bias(self) -> bool:
        """Queries, keys and values have biases."""
        return self.attention_bias or self.parts.qkv_bias

    @functools.cached_property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """How each layer attends."""
        parts, L = self.parts, self.num_hidden_layers
        windowed = parts.windowed or (True,) * L
        rotary = parts.rotary or (parts.alibi_exponent is None,) * L
        return tuple(
            LayerKind(parts.sliding_window if is_windowed else None, rotates)
            for is_windowed, rotates in zip(windowed, rotary, strict=True)
        )

    @functools.cached_property
    def layers(self) -> Layers:
        """The kinds of layers that there are, in the order of their first layers."""
        bias = None
        if self.parts.alibi_exponent is not None:
            slopes = alibi_slopes(self.num_attention_heads, self.parts.alibi_exponent)
            bias = LinearBias(slopes)
        scale = None
        if self.parts.temperature_beta is not None:
            scale = LogSteps(self.parts.temperature_beta, self.max_position_embeddings)
        return Layers(tuple(dict.fromkeys(self.layer_kinds)), bias, scale)

    @property
    def positions(self) -> str:
        """How the layers tell positions apart, for people."""
        if self.parts.alibi_exponent is not None:
            return "ALiBi"
        theta = f"theta {self.rope_theta:g}"
        if self.parts.sliding_rope_theta is not None:
            theta += f" ({self.parts.sliding_rope_theta:g} in layers with a window)"
        without = sum(not kind.rotates for kind in self.layer_kinds)
        if without == self.num_hidden_layers:
            return "no positions (NoPE)"
        if without:
            theta += f", {without} of {self.num_hidden_layers} layers do not rotate (NoPE)"
        return theta

    def check_scaling(self, scaling: RopeScaling) -> None:
        """Raise ValueError for a scaling of rotary embeddings over a model that has none.

        The same for a scaling of layers with full attention over a model that has none of those.
        """
        if not self.layers.rotates and scaling not in (Unscaled(), Plain()):
            raise ValueError(
                f"{scaling_name(scaling)} scales rotary embeddings, but {self.family} has "
                f"{self.positions} in their place; choose an attention method, such as LMInfinite, "
                "or none"
            )
        all_windowed = all(kind.window is not None for kind in self.layers.kinds)
        window = self.max_position_embeddings
        if all_windowed and scaling.rope(self.rope_base(), window).sliding is not None:
            raise ValueError(
                f"{scaling_name(scaling)} scales layers with full attention only, but every layer "
                f"of this {self.family} has a window of {self.parts.sliding_window} tokens; give "
                "the inner scaling alone"
            )


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
MINISTRAL3_PARTS = Parts(temperature_beta=0.1)
MISTRAL_PARTS = Parts(sliding_window=4096)
QWEN_IDS = {"bos_token_id": None, "eos_token_id": 151645}
FALCON_PARTS = Parts(norm="layer", norm_bias=True, gated=False, parallel=True)
FALCON_7B_PARTS = dataclasses.replace(FALCON_PARTS, shared_norm=True)
MPT_PARTS = Parts(norm="layer", gated=False, alibi_exponent=8.0)
NO_GATE = {"hidden_act": "gelu", "tie_word_embeddings": True}
FALCON_IDS = {"bos_token_id": 11, "eos_token_id": 11}
MPT_IDS = {"bos_token_id": None, "eos_token_id": 0}
SHAPES |= {
    "mistral-7b": _llama(
        *(4096, 14336, 32, 32, 8, 1e4, 32768, 32000), family="mistral", parts=MISTRAL_PARTS
    ),
    "ministral-8b": _llama(
        *(4096, 12288, 36, 32, 8, 1e8, 32768, 131072),
        head_dim=128,
        family="ministral",
        parts=Parts(sliding_window=32768, windowed=(False, True, True, True) * 9),
    ),
    "ministral3-8b": _llama(
        *(4096, 14336, 34, 32, 8, 1e6, 16384, 131072),
        head_dim=128,
        family="ministral3",
        parts=MINISTRAL3_PARTS,
        pad_token_id=11,
    ),
    "qwen2.5-7b": _llama(
        *(3584, 18944, 28, 28, 4, 1e6, 32768, 152064),
        rms_norm_eps=1e-6,
        family="qwen2",
        parts=Parts(qkv_bias=True),
        **QWEN_IDS,
    ),
    "qwen3-8b": _llama(
        *(4096, 12288, 36, 32, 8, 1e6, 40960, 151936),
        rms_norm_eps=1e-6,
        family="qwen3",
        parts=Parts(qk_norm=True),
        **QWEN_IDS,
    ),
    "smollm3-3b": _llama(
        *(2048, 11008, 36, 16, 4, 5e6, 65536, 128256),
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        family="smollm3",
        parts=Parts(rotary=(True, True, True, False) * 9),
        bos_token_id=128000,
        eos_token_id=128012,
    ),
    "falcon-7b": _llama(
        *(4544, 18176, 32, 71, 1, 1e4, 2048, 65024),
        family="falcon",
        parts=FALCON_7B_PARTS,
        **FALCON_IDS,
        **NO_GATE,
    ),
    "falcon-40b": _llama(
        *(8192, 32768, 60, 128, 8, 1e4, 2048, 65024),
        family="falcon",
        parts=FALCON_PARTS,
        **FALCON_IDS,
        **NO_GATE,
    ),
    "mpt-7b": _llama(
        *(4096, 16384, 32, 32, 32, 1e4, 2048, 50432),
        family="mpt",
        parts=MPT_PARTS,
        **MPT_IDS,
        **NO_GATE,
    ),
    "mpt-30b": _llama(
        *(7168, 28672, 48, 64, 64, 1e4, 8192, 50432),
        family="mpt",
        parts=MPT_PARTS,
        **MPT_IDS,
        **NO_GATE,
    ),
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
