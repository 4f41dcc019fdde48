"""A reference Llama in plain numpy and float64, straight from the definitions."""

import math
from collections.abc import Callable

import jax
import numpy as np

from ctxext.model.config import LlamaConfig
from ctxext.rope import Rope

ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * np.vectorize(lambda y: 0.5 * (1 + math.erf(y / 2**0.5)))(x),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
}
ACTIVATIONS["gelu_pytorch_tanh"] = ACTIVATIONS["gelu_new"]


class ReferenceLlama:
    """A Llama that reads one row of text, one or many tokens at a time.

    The cache holds keys before rotation, one array per layer.
    """

    def __init__(self, config: LlamaConfig, params):
        L = config.num_hidden_layers
        self.config = config
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        self.keys = [np.zeros((0, config.num_key_value_heads, config.head_dim))] * L
        self.values = list(self.keys)
        # Multipliers of the queries of a layer at these positions, [T].
        self.query_scale: Callable[[int, np.ndarray], np.ndarray] | None = None
        # The largest attention logit of each layer.
        self.peaks = [-np.inf] * L

    def feed(self, tokens, rope: Rope) -> np.ndarray:
        """Logits [T, V] after each of `tokens`; all keys so far are rotated by this `rope`."""
        config, params = self.config, self.params
        N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        T = len(tokens)
        start = len(self.keys[0])
        x = params["embed_tokens"]["embedding"][tokens]
        for i in range(config.num_hidden_layers):
            layer = jax.tree.map(lambda p, i=i: p[i], params["segments"]["0"])
            attention = layer["self_attn"]
            y = self.norm(x, layer["input_layernorm"])
            q, k, v = (
                self.linear(y, attention[name]).reshape(T, -1, H)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            self.keys[i] = np.concatenate([self.keys[i], k])
            self.values[i] = np.concatenate([self.values[i], v])
            q = self.rotate(q, start + np.arange(T), rope)
            if self.query_scale is not None:
                q = q * self.query_scale(i, start + np.arange(T))[:, None, None]
            k = self.rotate(self.keys[i], np.arange(start + T), rope).repeat(N // K, 1)
            scores = np.einsum("tnh,snh->nts", q, k) / H**0.5
            causal = np.tri(T, start + T, start)
            self.peaks[i] = max(self.peaks[i], scores[:, causal == 1].max())
            weights = np.exp(scores - scores.max(-1, keepdims=True)) * causal
            weights /= weights.sum(-1, keepdims=True)
            out = np.einsum("nts,snh->tnh", weights, self.values[i].repeat(N // K, 1))
            x = x + self.linear(out.reshape(T, N * H), attention["o_proj"])
            mlp = layer["mlp"]
            y = self.norm(x, layer["post_attention_layernorm"])
            gate = ACTIVATIONS[config.hidden_act](self.linear(y, mlp["gate_proj"]))
            x = x + self.linear(gate * self.linear(y, mlp["up_proj"]), mlp["down_proj"])
        tied = config.tie_word_embeddings
        kernel = params["embed_tokens"]["embedding"].T if tied else params["lm_head"]["kernel"]
        return self.norm(x, params["norm"]) @ kernel

    def norm(self, x: np.ndarray, layer) -> np.ndarray:
        mean_square = (x**2).mean(-1, keepdims=True)
        return x / np.sqrt(mean_square + self.config.rms_norm_eps) * layer["weight"]

    def linear(self, x: np.ndarray, layer) -> np.ndarray:
        return x @ layer["kernel"] + layer.get("bias", 0)

    def rotate(self, x: np.ndarray, positions: np.ndarray, rope: Rope) -> np.ndarray:
        half = x.shape[-1] // 2
        pairs = x[..., :half] + 1j * x[..., half:]
        positions = positions[:, None, None]
        rotated = pairs * rope.attention_factor * np.exp(1j * positions * rope.inv_freq)
        if rope.leading:
            count, inv_freq = rope.leading
            leading = pairs * np.exp(1j * positions * inv_freq)
            rotated = np.where(positions < count, leading, rotated)
        return np.concatenate([rotated.real, rotated.imag], -1)
