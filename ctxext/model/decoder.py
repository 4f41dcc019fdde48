"""Llama as Flax NNX pytrees: segments of stacked layers, scanned. No method and no sharding in here.

Shapes: B batch, T tokens, D model dim, N query heads, K key-value heads, H head_dim, F MLP dim, V vocabulary,
L layers. Parameters leave this file as a pure nested dict with string keys and HF's names; kernels are [in, out].
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ctxext.attention import Attend
from ctxext.model.config import LlamaConfig
from ctxext.model.linear import Linear, Places
from ctxext.model.segments import segment_sizes

Params = dict[str, Any]
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
REMAT = ("none", "attention", "full")
DTYPES = ("float32", "bfloat16")
"""What the model computes in; angles, norms, softmax and loss are float32 in both."""


class RMSNorm(nnx.Module):
    """w x / rms(x) (arXiv 1910.07467), the mean square in float32."""

    def __init__(self, dim: int, eps: float):
        self.weight, self.eps = nnx.Param(jnp.ones(dim)), eps

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        y = x.astype(jnp.float32)  # squares of bfloat16 lose the small entries
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        # As a product: fused into a sum, the weight's gradient takes the mean anew for every element, on CPU.
        return jnp.einsum("btd,d->btd", y.astype(x.dtype), self.weight[...].astype(x.dtype))


class SelfAttention(nnx.Module):
    """Grouped-query attention (arXiv 2305.13245); `attend` rotates, masks and knows the cache."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        D, N, K, H = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        bias, std = config.attention_bias, config.initializer_range
        self.q_proj = Linear(D, N * H, bias, std, rngs)
        self.k_proj = Linear(D, K * H, bias, std, rngs)
        self.v_proj = Linear(D, K * H, bias, std, rngs)
        self.o_proj = Linear(N * H, D, bias, std, rngs)
        self.head_dim = H

    def __call__(
        self,
        x: Float[Array, "b t d"],
        attend: Attend,
        cache: Any,
        layer: Array | None,
        places: Places,
    ) -> tuple[Array, Any]:
        B, T, _ = x.shape
        q, k, v = (
            f(x, places).reshape(B, T, -1, self.head_dim)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        out, cache = attend(q, k, v, cache, layer)
        return self.o_proj(out.reshape(B, T, -1), places), cache


def _product(act: str, gate: Array, up: Array) -> Array:
    return ACTIVATIONS[act](gate) * up


def _product_backward(act: str, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    _, backward = jax.vjp(functools.partial(_product, act), *saved)
    return jax.lax.optimization_barrier(
        backward(grad)
    )  # else XLA makes both anew for each use, one of them turned


_gated = jax.custom_vjp(_product, nondiff_argnums=(0,))
_gated.defvjp(lambda act, gate, up: (_product(act, gate, up), (gate, up)), _product_backward)


class MLP(nnx.Module):
    """down(act(gate x) * up x), SwiGLU for silu (arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        D, F, bias, std = (
            config.hidden_size,
            config.intermediate_size,
            config.mlp_bias,
            config.initializer_range,
        )
        self.gate_proj = Linear(D, F, bias, std, rngs)
        self.up_proj = Linear(D, F, bias, std, rngs)
        self.down_proj = Linear(F, D, bias, std, rngs)
        self.hidden_act = config.hidden_act

    def __call__(self, x: Float[Array, "b t d"], places: Places = None) -> Float[Array, "b t d"]:
        gate, up = self.gate_proj(x, places), self.up_proj(x, places)
        # Going backward the product is made again: it costs little, and saved it takes as much as gate or up.
        down = jax.checkpoint(
            lambda gate, up: self.down_proj(_gated(self.hidden_act, gate, up), places)
        )
        return down(gate, up)


class Layer(nnx.Module):
    """One pre-norm block."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        attend: Attend,
        cache: Any,
        layer: Array | None,
        places: Places,
        run_mlp: Callable | None,
    ) -> tuple[Array, Any]:
        with jax.named_scope("attention"):
            out, cache = self.self_attn(self.input_layernorm(x), attend, cache, layer, places)
            x = x + out
        with jax.named_scope("mlp"):
            y = self.post_attention_layernorm(x)
            return x + (
                self.mlp(y, places) if run_mlp is None else run_mlp(self.mlp, y, places)
            ), cache


class Embedding(nnx.Module):
    """A vector per token."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = nnx.Param(
            config.initializer_range * jax.random.normal(rngs.params(), shape)
        )

    def __call__(self, tokens: Int[Array, "b t"], dtype: str) -> Float[Array, "b t d"]:
        return self.embedding[...][tokens].astype(
            dtype
        )  # cast last: gradients of frequent tokens add up in float32


class Llama(nnx.Module):
    """A decoder of `segments`, each a stack of equal layers run by one scan."""

    def __init__(self, config: LlamaConfig, segments: tuple[int, ...], rngs: nnx.Rngs):
        def stack(size: int) -> Layer:
            return jax.vmap(lambda key: Layer(config, nnx.Rngs(params=key)))(
                jax.random.split(rngs.params(), size)
            )

        self.embed_tokens = Embedding(config, rngs)
        self.segments = nnx.Dict({str(i): stack(size) for i, size in enumerate(segments)})
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        sizes = (config.hidden_size, config.vocab_size)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(*sizes, False, config.initializer_range, rngs)
        )

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        attend: Attend,
        caches: Any = None,
        *,
        dtype: str,
        remat: str = "none",
        places: Places = None,
        run_mlp: Callable[[MLP, Array, Places], Array] | None = None,
    ) -> tuple[Float[Array, "b t d"], Any]:
        """The last layer's normed output, and the caches that `attend` filled, one for each segment.

        places: for parameters that make it drop inputs, see `drops`. run_mlp: runs an MLP where that is not to be done
        in one piece.
        """
        if remat not in REMAT:
            raise ValueError(f"remat {remat!r} is not known; choose one of {', '.join(REMAT)}")

        def step(carry: tuple, layer: tuple[Layer, Array | None]) -> tuple[tuple, None]:
            x, cache = carry
            return layer[0](x, attend, cache, layer[1], places, run_mlp), None

        if remat != "none":
            kept = jax.checkpoint_policies.save_only_these_names(
                *["attention"] * (remat == "attention")
            )
            step = jax.checkpoint(
                step, prevent_cse=False, policy=kept
            )  # a scan keeps the recomputation apart
        x, filled = self.embed_tokens(tokens, dtype), []
        for i in range(len(self.segments)):
            segment, carry = self.segments[str(i)], (x, caches and caches[i])
            if (size := segment.input_layernorm.weight.shape[0]) == 1:
                (x, cache), _ = step(carry, (jax.tree.map(lambda leaf: leaf[0], segment), None))
            else:
                (x, cache), _ = jax.lax.scan(step, carry, (segment, jnp.arange(size)))
            filled.append(cache)
        # Also a barrier to their gradients: else the norm's waits until after the layers and keeps what it is made of.
        norm, x = jax.lax.optimization_barrier((self.norm, x))
        return norm(x), tuple(filled)

    def output_kernel(self) -> Float[Array, "d v"]:
        """The output projection, which is the transposed embedding when they are tied."""
        return (
            self.embed_tokens.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
        )

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Unnormalised log-probabilities, float32."""
        return jnp.matmul(
            hidden, self.output_kernel().astype(hidden.dtype), preferred_element_type=jnp.float32
        )


@functools.lru_cache
def _skeleton(
    config: LlamaConfig, segments: tuple[int, ...], adapters: tuple[tuple, ...] = ()
) -> tuple[Any, Any]:
    def build() -> Llama:
        model = Llama(config, segments, nnx.Rngs(0))
        for number, block, linear, leaf in adapters:
            module = getattr(getattr(model.segments[number], block), linear)
            setattr(module, leaf, nnx.data(nnx.Param(jnp.zeros(()))))
        return model

    return nnx.split(nnx.eval_shape(build), nnx.Param)


def _adapters(segments: Params) -> tuple[tuple[str, str, str, str], ...]:
    """(segment, block, linear, leaf) of every adapter's leaf."""
    paths = (
        tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(segments)
    )
    return tuple(path for path in paths if path[-1].startswith("lora_"))


def drops(params: Params) -> bool:
    """Whether these parameters make the model drop inputs of its adapters."""
    return any(leaf == "lora_key" for *_, leaf in _adapters(params["segments"]))


def bind(config: LlamaConfig, params: Params) -> Llama:
    """The model around given parameters (arrays, tracers or shapes), with whatever adapters they hold; no copies."""
    graph, state = _skeleton(config, segment_sizes(params), _adapters(params["segments"]))
    state = jax.tree.map(lambda x: x, state)  # a fresh container: the next line fills it in place
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def param_shapes(
    config: LlamaConfig, dtype: str = "float32", segments: tuple[int, ...] | None = None
) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`; allocates nothing."""
    _, state = _skeleton(config, segments or (config.num_hidden_layers,))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), nnx.to_pure_dict(state))


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _random(key: Array, *, config: LlamaConfig, dtype: str) -> Mapping[str, Any]:
    model = Llama(config, (config.num_hidden_layers,), nnx.Rngs(params=key))
    return jax.tree.map(lambda x: x.astype(dtype), nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def init_params(config: LlamaConfig, seed: int, dtype: str = "float32") -> Params:
    """Random parameters: normal with `initializer_range`, norms one, biases zero."""
    return dict(_random(jax.random.key(seed), config=config, dtype=dtype))
