"""A Llama in plain numpy and float64, straight from the definitions: what the real one is compared with."""

import math

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


class Textbook:
    """One row of text, fed token by token or many at a time; keys are kept un-rotated, one list per layer."""

    def __init__(self, config: LlamaConfig, params):
        self.config, self.params = config, jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        self.keys = [
            np.zeros((0, config.num_key_value_heads, config.head_dim))
        ] * config.num_hidden_layers
        self.values = list(self.keys)
        self.peaks = [
            -np.inf
        ] * config.num_hidden_layers  # the largest score that a softmax has seen

    def feed(self, tokens, rope: Rope) -> np.ndarray:
        """Logits [T, V] after each of `tokens`; all keys so far are turned by the frequencies given now."""
        config, params = self.config, self.params
        N, K, H, T = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            len(tokens),
        )
        start = len(self.keys[0])
        x = params["embed_tokens"]["embedding"][tokens]
        for i in range(config.num_hidden_layers):
            layer = jax.tree.map(lambda p, i=i: p[i], params["segments"]["0"])
            y, attention = self.norm(x, layer["input_layernorm"]), layer["self_attn"]
            q, k, v = (
                self.linear(y, attention[name]).reshape(T, -1, H)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            self.keys[i], self.values[i] = (
                np.concatenate([self.keys[i], k]),
                np.concatenate([self.values[i], v]),
            )
            q = self.turn(q, start + np.arange(T), rope)
            k = self.turn(self.keys[i], np.arange(start + T), rope).repeat(N // K, 1)
            scores = np.einsum("tnh,snh->nts", q, k) / H**0.5
            self.peaks[i] = max(self.peaks[i], scores[:, np.tri(T, start + T, start) == 1].max())
            weights = np.exp(scores - scores.max(-1, keepdims=True)) * np.tri(T, start + T, start)
            weights /= weights.sum(-1, keepdims=True)
            out = np.einsum("nts,snh->tnh", weights, self.values[i].repeat(N // K, 1))
            x = x + self.linear(out.reshape(T, N * H), attention["o_proj"])
            y, mlp = self.norm(x, layer["post_attention_layernorm"]), layer["mlp"]
            gate = ACTIVATIONS[config.hidden_act](self.linear(y, mlp["gate_proj"]))
            x = x + self.linear(gate * self.linear(y, mlp["up_proj"]), mlp["down_proj"])
        tied = config.tie_word_embeddings
        kernel = params["embed_tokens"]["embedding"].T if tied else params["lm_head"]["kernel"]
        return self.norm(x, params["norm"]) @ kernel

    def norm(self, x: np.ndarray, layer) -> np.ndarray:
        return (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.rms_norm_eps) * layer["weight"]
        )

    def linear(self, x: np.ndarray, layer) -> np.ndarray:
        return x @ layer["kernel"] + layer.get("bias", 0)

    def turn(self, x: np.ndarray, positions: np.ndarray, rope: Rope) -> np.ndarray:
        half = x.shape[-1] // 2
        z, at = x[..., :half] + 1j * x[..., half:], positions[:, None, None]
        turned = z * rope.attention_factor * np.exp(1j * at * rope.inv_freq)
        if rope.leading:
            count, inv_freq = rope.leading
            turned = np.where(at < count, z * np.exp(1j * at * inv_freq), turned)
        z = turned
        return np.concatenate([z.real, z.imag], -1)
