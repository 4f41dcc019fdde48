"""The decoder as Flax NNX pytrees: segments of stacked layers, scanned.

It is Llama's, with the parts of other families as data (`parts.Parts`), and knows no family, no
method and no sharding.

Shapes: B batch, T tokens, D model dim, N query heads, K key-value heads, H head_dim, F MLP dim,
V vocabulary, L layers. Parameters leave this file as a pure nested dict with string keys and HF's
names; kernels are [in, out].
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ctxext.attention import Attend
from ctxext.attention.layers import Kind
from ctxext.model.config import ACTIVATIONS, LlamaConfig
from ctxext.model.linear import Linear, TokenIndices
from ctxext.model.quantized import is_quantized
from ctxext.model.remat import rematerialised
from ctxext.model.segments import segment_sizes

Params = dict[str, Any]
COMPUTE_DTYPES = ("float32", "bfloat16")
"""Dtypes that the model computes in; angles, norms, softmax and loss are float32 in both."""


class LayerPlace(NamedTuple):
    """Which layer it is, as attention asks for it."""

    layer: Any
    """Its number in its segment and in the cache of that, None in a segment of one layer."""
    kind: Kind
    number: Any
    """Its number in the model, from 0."""


class RMSNorm(nnx.Module):
    """w x / rms(x) (arXiv 1910.07467), the mean square in float32."""

    def __init__(self, dim: int, eps: float):
        self.weight = nnx.Param(jnp.ones(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        y = x.astype(jnp.float32)  # squares of bfloat16 lose the small entries
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        # y * weight, written as a matrix product: XLA on CPU would fuse the gradient of an
        # elementwise one into a sum that recomputes the mean for every element.
        return jnp.einsum("btd,d->btd", y.astype(x.dtype), self.weight[...].astype(x.dtype))


class LayerNorm(nnx.Module):
    """w (x - mean(x)) / std(x) + b (arXiv 1607.06450), mean and variance in float32."""

    def __init__(self, dim: int, eps: float, bias: bool):
        self.weight = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim)) if bias else None
        self.eps = eps

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        y = jnp.einsum("btd,d->btd", y.astype(x.dtype), self.weight[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[None, None]


def _make_norm(config: LlamaConfig) -> RMSNorm | LayerNorm:
    if config.parts.norm == "rms":
        return RMSNorm(config.hidden_size, config.rms_norm_eps)
    return LayerNorm(config.hidden_size, config.rms_norm_eps, config.parts.norm_bias)


class SelfAttention(nnx.Module):
    """Grouped-query attention (arXiv 2305.13245); `attend` rotates, masks and uses the cache."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        D, H = config.hidden_size, config.head_dim
        N, K = config.num_attention_heads, config.num_key_value_heads
        bias, std = config.has_qkv_bias, config.initializer_range
        self.q_proj = Linear(D, N * H, bias, std, rngs)
        self.k_proj = Linear(D, K * H, bias, std, rngs)
        self.v_proj = Linear(D, K * H, bias, std, rngs)
        self.o_proj = Linear(N * H, D, config.attention_bias, std, rngs)
        self.head_dim = H
        self.clip = config.parts.clip_qkv
        has_norms = config.parts.qk_norm
        self.q_norm = RMSNorm(H, config.rms_norm_eps) if has_norms else None
        self.k_norm = RMSNorm(H, config.rms_norm_eps) if has_norms else None

    def queries_keys_values(
        self, x: Float[Array, "b t d"], token_indices: TokenIndices
    ) -> tuple[Array, Array, Array]:
        """q [B, T, N, H], k and v [B, T, K, H], before their rotation."""
        q, k, v = (
            self._heads(project(x, token_indices))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is None or self.k_norm is None:
            return q, k, v
        return _normed_heads(self.q_norm, q), _normed_heads(self.k_norm, k), v

    def _heads(self, x: Float[Array, "b t f"]) -> Float[Array, "b t n h"]:
        B, T, _ = x.shape
        if self.clip is not None:
            x = jnp.clip(x, -self.clip, self.clip)
        return x.reshape(B, T, -1, self.head_dim)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        attend: Attend,
        cache: Any,
        place: LayerPlace,
        token_indices: TokenIndices,
    ) -> tuple[Array, Any]:
        B, T, _ = x.shape
        q, k, v = self.queries_keys_values(x, token_indices)
        out, cache = attend(q, k, v, cache, *place)
        return self.o_proj(out.reshape(B, T, -1), token_indices), cache


def _normed_heads(norm: RMSNorm, x: Float[Array, "b t n h"]) -> Float[Array, "b t n h"]:
    B, T, N, H = x.shape
    return norm(x.reshape(B, T * N, H)).reshape(B, T, N, H)


def _gated(act: str, gate: Array, up: Array) -> Array:
    """act(gate) * up, with a gradient that is computed once."""
    return ACTIVATIONS[act](gate) * up


def _gated_forward(act: str, gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return _gated(act, gate, up), (gate, up)


def _gated_backward(act: str, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    _, backward = jax.vjp(functools.partial(_gated, act), *saved)
    # Both gradients are used twice: in the product for the weights and, transposed, in that for the
    # inputs. As their formula is cheap, XLA would fuse it into both products and evaluate it for
    # each. It fuses nothing across a barrier, which returns its arguments.
    return jax.lax.optimization_barrier(backward(grad))


_gated_product = jax.custom_vjp(_gated, nondiff_argnums=(0,))
_gated_product.defvjp(_gated_forward, _gated_backward)


class MLP(nnx.Module):
    """down(act(gate x) * up x), SwiGLU for silu (arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        bias, std = config.mlp_bias, config.initializer_range
        self.gate_proj = Linear(D, F, bias, std, rngs)
        self.up_proj = Linear(D, F, bias, std, rngs)
        self.down_proj = Linear(F, D, bias, std, rngs)
        self.hidden_act = config.hidden_act

    def __call__(
        self, x: Float[Array, "b t d"], token_indices: TokenIndices = None
    ) -> Float[Array, "b t d"]:
        # The backward pass recomputes the product of gate and up, which is cheap: kept, it would
        # take as much memory as gate or up.
        @jax.checkpoint
        def down(gate: Array, up: Array) -> Array:
            product = _gated_product(self.hidden_act, gate, up)
            return self.down_proj(product, token_indices)

        return down(self.gate_proj(x, token_indices), self.up_proj(x, token_indices))


class PlainMLP(nnx.Module):
    """down(act(up x)), without a gate."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        bias, std = config.mlp_bias, config.initializer_range
        self.up_proj = Linear(D, F, bias, std, rngs)
        self.down_proj = Linear(F, D, bias, std, rngs)
        self.hidden_act = config.hidden_act

    def __call__(
        self, x: Float[Array, "b t d"], token_indices: TokenIndices = None
    ) -> Float[Array, "b t d"]:
        @jax.checkpoint  # as in `MLP`
        def down(up: Array) -> Array:
            return self.down_proj(ACTIVATIONS[self.hidden_act](up), token_indices)

        return down(self.up_proj(x, token_indices))


class Layer(nnx.Module):
    """One pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)).

    A parallel one is x + attention(norm(x)) + mlp(norm(x)), with one norm for both or one each.
    """

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.input_layernorm = _make_norm(config)
        self.self_attn = SelfAttention(config, rngs)
        if not config.parts.shared_norm:
            self.post_attention_layernorm = _make_norm(config)
        self.mlp = MLP(config, rngs) if config.parts.gated else PlainMLP(config, rngs)
        self.parallel = config.parts.parallel
        self.shared_norm = config.parts.shared_norm

    def __call__(
        self,
        x: Float[Array, "b t d"],
        attend: Attend,
        cache: Any,
        place: LayerPlace,
        token_indices: TokenIndices,
        run_mlp: Callable | None,
    ) -> tuple[Array, Any]:
        with jax.named_scope("attention"):
            y = self.input_layernorm(x)
            out, cache = self.self_attn(y, attend, cache, place, token_indices)
            after_attention = x + out
        with jax.named_scope("mlp"):
            if not self.shared_norm:
                y = self.post_attention_layernorm(x if self.parallel else after_attention)
            if run_mlp is None:
                out = self.mlp(y, token_indices)
            else:
                out = run_mlp(self.mlp, y, token_indices)
            return after_attention + out, cache


class Embedding(nnx.Module):
    """One vector per token of the vocabulary, [V, D]."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        std = config.initializer_range
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), shape))

    def __call__(self, tokens: Int[Array, "b t"], dtype: str) -> Float[Array, "b t d"]:
        # Cast last, so that the gradients of frequent tokens add up in float32.
        return self.embedding[...][tokens].astype(dtype)


class Llama(nnx.Module):
    """A decoder; `segments` are the sizes of its stacks of layers, each run by one scan."""

    def __init__(self, config: LlamaConfig, segments: tuple[int, ...], rngs: nnx.Rngs):
        def stack(size: int) -> Layer:
            keys = jax.random.split(rngs.params(), size)
            return jax.vmap(lambda key: Layer(config, nnx.Rngs(params=key)))(keys)

        self.embed_tokens = Embedding(config, rngs)
        self.segments = nnx.Dict({str(i): stack(size) for i, size in enumerate(segments)})
        self.norm = _make_norm(config)
        self.kinds = tuple(config.layers.kinds.index(kind) for kind in config.layer_kinds)
        D, V, std = config.hidden_size, config.vocab_size, config.initializer_range
        self.lm_head = None if config.tie_word_embeddings else Linear(D, V, False, std, rngs)

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        attend: Attend,
        caches: Any = None,
        *,
        dtype: str,
        remat: str = "none",
        token_indices: TokenIndices = None,
        run_mlp: Callable[[MLP, Array, TokenIndices], Array] | None = None,
    ) -> tuple[Float[Array, "b t d"], Any]:
        """The last layer's output after the final norm, and one cache per segment from `attend`.

        token_indices: needed by parameters with dropout, see `has_dropout`. run_mlp: applies an MLP
        to its input where that is to be done in chunks. Raises ValueError for an unknown `remat`.
        """

        x, filled, _ = self._run_layers(
            tokens, attend, caches, dtype, remat, token_indices, run_mlp, keeps_outputs=False
        )
        return self._normed(x), filled

    def hidden_of_layers(
        self,
        tokens: Int[Array, "b t"],
        attend: Attend,
        numbers: tuple[int, ...],
        *,
        dtype: str,
        remat: str = "none",
        token_indices: TokenIndices = None,
        run_mlp: Callable[[MLP, Array, TokenIndices], Array] | None = None,
    ) -> tuple[Float[Array, "b t d"], ...]:
        """The outputs of some layers by number, from 1; that of the last is after the final norm.

        As `hidden_states[number]` of transformers. The other arguments are those of `hidden`. The
        outputs of all layers are held, unless the last is the only one asked for.
        """
        last = len(self.kinds)
        x, _, outputs = self._run_layers(
            tokens,
            attend,
            None,
            dtype,
            remat,
            token_indices,
            run_mlp,
            keeps_outputs=set(numbers) != {last},
        )
        return tuple(self._normed(x) if n == last else outputs[n - 1] for n in numbers)

    def _normed(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        # For the backward pass, in which the barrier holds as well: the gradient of the norm's
        # weight is computed before the layers are gone through. As nothing waits for it, XLA would
        # compute it at the end and keep its inputs until then.
        norm, x = jax.lax.optimization_barrier((self.norm, x))
        return norm(x)

    def _run_layers(
        self,
        tokens: Int[Array, "b t"],
        attend: Attend,
        caches: Any,
        dtype: str,
        remat: str,
        token_indices: TokenIndices,
        run_mlp: Callable[[MLP, Array, TokenIndices], Array] | None,
        *,
        keeps_outputs: bool,
    ) -> tuple[Float[Array, "b t d"], Any, list[Array]]:
        """(the last layer's output, one cache per segment, the output of each layer if kept)."""

        def step_of(first: int, kind: int | None) -> Callable[[tuple, tuple], tuple[tuple, Any]]:
            """One layer of the segment that begins with layer `first`.

            Its kind is known, or comes with the layer if it is None here.
            """

            def step(carry: tuple, layer: tuple) -> tuple[tuple, Any]:
                x, cache = carry
                block, index, *own_kind = layer
                number = first if index is None else first + index
                place = LayerPlace(index, own_kind[0] if kind is None else kind, number)
                x, cache = block(x, attend, cache, place, token_indices, run_mlp)
                return (x, cache), x if keeps_outputs else None

            return rematerialised(step, remat)

        x = self.embed_tokens(tokens, dtype)
        filled = []
        outputs: list[Array] = []
        layers_before = 0
        for i in range(len(self.segments)):
            segment = self.segments[str(i)]
            carry = (x, caches and caches[i])
            size = segment.input_layernorm.weight.shape[0]
            kinds = self.kinds[layers_before : layers_before + size]
            step = step_of(layers_before, kinds[0] if len(set(kinds)) == 1 else None)
            layers_before += size
            if size == 1:
                layer = jax.tree.map(lambda leaf: leaf[0], segment)
                (x, cache), output = step(carry, (layer, None))
                of_layers = None if output is None else output[None]
            elif len(set(kinds)) == 1:
                layers = (segment, jnp.arange(size))
                (x, cache), of_layers = jax.lax.scan(step, carry, layers)
            else:
                layers = (segment, jnp.arange(size), jnp.asarray(kinds))
                (x, cache), of_layers = jax.lax.scan(step, carry, layers)
            filled.append(cache)
            if of_layers is not None:
                outputs += [of_layers[n] for n in range(size)]
        return x, tuple(filled), outputs

    def run_layer(
        self,
        x: Float[Array, "b t d"],
        attend: Attend,
        cache: Any,
        of_segment: Array | None,
        place: LayerPlace,
    ) -> tuple[Float[Array, "b t d"], Any]:
        """The output of one layer of the only segment, and the cache from `attend`.

        of_segment: its number in the segment, None where there is one layer only, as in `place`,
        which has its number in the cache.
        """
        (segment,) = self.segments.values()
        block = jax.tree.map(lambda leaf: leaf[0 if of_segment is None else of_segment], segment)
        return block(x, attend, cache, place, None, None)

    def output_kernel(self) -> Float[Array, "d v"]:
        """The output projection, which is the transposed embedding where they are tied."""
        if self.lm_head is None:
            return self.embed_tokens.embedding[...].T
        return self.lm_head.kernel[...]

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Unnormalised log-probabilities, float32."""
        kernel = self.output_kernel().astype(hidden.dtype)
        return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)


@functools.lru_cache
def _skeleton(
    config: LlamaConfig, segments: tuple[int, ...], adapters: tuple[tuple, ...] = ()
) -> tuple[Any, Any]:
    """(graph, abstract state) of a model without arrays."""

    def build() -> Llama:
        model = Llama(config, segments, nnx.Rngs(0))
        for segment, block, linear, leaf in adapters:
            module = getattr(getattr(model.segments[segment], block), linear)
            setattr(module, leaf, nnx.data(nnx.Param(jnp.zeros(()))))
        return model

    return nnx.split(nnx.eval_shape(build), nnx.Param)


def _adapters(segments: Params) -> tuple[tuple[str, str, str, str], ...]:
    """(segment, block, linear, leaf) of each leaf of the adapters."""
    leaves = jax.tree_util.tree_leaves_with_path(segments, is_leaf=is_quantized)
    paths = (tuple(key.key for key in path) for path, _ in leaves)
    return tuple(path for path in paths if path[-1].startswith("lora_"))


def has_dropout(params: Params) -> bool:
    """True if these parameters make the model drop inputs of its adapters."""
    return any(leaf == "lora_key" for *_, leaf in _adapters(params["segments"]))


def bind(config: LlamaConfig, params: Params) -> Llama:
    """The model with these parameters (arrays, tracers or shapes) and their adapters; no copies."""
    graph, state = _skeleton(config, segment_sizes(params), _adapters(params["segments"]))
    # A fresh container, because the next line fills it in place.
    state = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def param_shapes(
    config: LlamaConfig, dtype: str = "float32", segments: tuple[int, ...] | None = None
) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`; allocates nothing. Default: one segment."""
    _, state = _skeleton(config, segments or (config.num_hidden_layers,))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), nnx.to_pure_dict(state))


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _random(key: Array, *, config: LlamaConfig, dtype: str) -> Mapping[str, Any]:
    model = Llama(config, (config.num_hidden_layers,), nnx.Rngs(params=key))
    return jax.tree.map(lambda x: x.astype(dtype), nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def init_params(config: LlamaConfig, seed: int, dtype: str = "float32") -> Params:
    """Random parameters: normal with `initializer_range`, norms one, biases zero."""
    return dict(_random(jax.random.key(seed), config=config, dtype=dtype))
