"""The forward pass of Llama (arXiv 2302.13971), whatever the files look like."""

import abc
import math
from collections.abc import Sequence

import numpy as np

ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "gelu_pytorch_tanh": lambda x: (
        x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    ),
    "relu": lambda x: np.maximum(x, 0),
}


class Textbook(abc.ABC):
    """A Llama over files that a subclass knows. Tensors go by Hugging Face's names, in the format's own order of rows.

    `neighbours`: the format rotates rows 2j and 2j + 1 of a head, not j and j + d / 2. `rounded`: it holds frequencies
    in float32.
    """

    neighbours = False
    rounded = False
    num_hidden_layers: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str = "silu"

    @abc.abstractmethod
    def weight(self, name: str) -> np.ndarray:
        """One tensor, float64."""

    @abc.abstractmethod
    def rope(self, seq_len: int) -> tuple[np.ndarray, float]:
        """(frequencies [head_dim / 2] in radians per token, factor m on cos and sin) at `seq_len` tokens."""

    def bias(self, name: str) -> np.ndarray | float:
        """What a linear map adds."""
        return 0.0

    def output(self) -> np.ndarray:
        """The output projection [vocabulary, model dim]."""
        return self.weight("lm_head.weight")

    def token_ids(self, texts: Sequence[str]) -> list[list[int]] | None:
        """Ids of each text as the format's own readers begin it; None where its tokenizer is not read here."""
        return None

    def logits(self, tokens: np.ndarray, positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Logits [len(rows), vocabulary] of tokens [T] at increasing positions [T]; each sees those before it."""
        turn = self._turn(positions, int(positions.max()) + 1)
        x = self.weight("model.embed_tokens.weight")[tokens]
        for layer in range(self.num_hidden_layers):
            at = f"model.layers.{layer}"
            x = x + self._attention(self._norm(x, f"{at}.input_layernorm"), turn, f"{at}.self_attn")
            y = self._norm(x, f"{at}.post_attention_layernorm")
            gate = ACTIVATIONS[self.hidden_act](self._linear(y, f"{at}.mlp.gate_proj"))
            x = x + self._linear(gate * self._linear(y, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")
        return self._norm(x[rows], "model.norm") @ self.output().T

    def rotated(
        self, tokens: np.ndarray, positions: np.ndarray, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first layer's queries and keys [T, heads, head_dim] after their rotation, pairs as halves."""
        x = self._norm(
            self.weight("model.embed_tokens.weight")[tokens], "model.layers.0.input_layernorm"
        )
        return self._rotated(x, self._turn(positions, seq_len), "model.layers.0.self_attn")

    def _turn(self, positions: np.ndarray, seq_len: int) -> np.ndarray:
        f, m = self.rope(seq_len)
        return (m * np.exp(1j * np.outer(positions, f)))[:, None]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return (
            self.weight(f"{name}.weight")
            * x
            / np.sqrt((x**2).mean(-1, keepdims=True) + self.rms_norm_eps)
        )

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weight(f"{name}.weight").T + self.bias(f"{name}.bias")

    def _rotated(self, x: np.ndarray, turn: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        def rotated(y: np.ndarray) -> np.ndarray:
            half = self.head_dim // 2
            one, other = (
                (y[..., ::2], y[..., 1::2]) if self.neighbours else (y[..., :half], y[..., half:])
            )
            z = (one + 1j * other) * turn
            return np.concatenate([z.real, z.imag], -1)

        q, k = (
            self._linear(x, f"{name}.{part}_proj").reshape(len(x), -1, self.head_dim)
            for part in "qk"
        )
        return rotated(q), rotated(k)

    def _attention(self, x: np.ndarray, turn: np.ndarray, name: str) -> np.ndarray:
        T = len(x)
        q, k = self._rotated(x, turn, name)
        v = self._linear(x, f"{name}.v_proj").reshape(T, -1, self.head_dim)
        group = q.shape[1] // k.shape[1]
        out = np.empty_like(q)
        later = np.triu(np.ones((T, T), bool), 1)
        for head in range(q.shape[1]):
            scores = np.where(
                later, -np.inf, q[:, head] @ k[:, head // group].T / math.sqrt(self.head_dim)
            )
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = p / p.sum(-1, keepdims=True) @ v[:, head // group]
        return self._linear(out.reshape(T, -1), f"{name}.o_proj")
