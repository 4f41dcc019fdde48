"""The forward pass of Llama (arXiv 2302.13971), whatever the files look like."""

import abc
import math
from collections.abc import Sequence

import numpy as np


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


ACTIVATIONS = {
    "silu": _silu,
    "swish": _silu,
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
}


class ReferenceReader(abc.ABC):
    """A Llama in files that a subclass reads.

    Tensors have Hugging Face's names, and the format's own order of rows. `neighbours`: the format
    rotates rows 2j and 2j + 1 of a head, not j and j + d / 2. `rounded`: it stores frequencies in
    float32. `reads_model`: it has the SentencePiece model and no files next to it. `library`: name
    and version of a package that makes numbers of quantized weights for it, empty if none does.
    """

    neighbours = False
    rounded = False
    reads_model = False
    library = ""
    num_hidden_layers: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str = "silu"

    @abc.abstractmethod
    def weight(self, name: str) -> np.ndarray:
        """One tensor, float64."""

    @abc.abstractmethod
    def rope(self, seq_len: int) -> tuple[np.ndarray, float]:
        """(inv_freq [head_dim / 2] in radians per token, factor m on cos and sin) at `seq_len`."""

    def bias(self, name: str) -> np.ndarray | float:
        """The bias of a linear map, 0 if it has none."""
        return 0.0

    def output(self) -> np.ndarray:
        """The output projection [vocabulary, model dim]."""
        return self.weight("lm_head.weight")

    def token_ids(self, texts: Sequence[str]) -> list[list[int]] | None:
        """The ids of each text as the format's own readers begin it.

        None where the tokenizer of the format is not read here.
        """
        return None

    def vocabulary(self) -> dict[int, str] | None:
        """The spelling of every token by its id, None where the tokenizer is not read here."""
        return None

    def logits(self, tokens: np.ndarray, positions: np.ndarray, compared: np.ndarray) -> np.ndarray:
        """Logits [len(compared), vocabulary] at the indices `compared` of the tokens [T].

        The positions [T] increase; each token attends to itself and those before it.
        """
        turn = self._turn(positions, int(positions.max()) + 1)
        x = self.weight("model.embed_tokens.weight")[tokens]
        for layer in range(self.num_hidden_layers):
            at = f"model.layers.{layer}"
            x = x + self._attention(self._norm(x, f"{at}.input_layernorm"), turn, f"{at}.self_attn")
            y = self._norm(x, f"{at}.post_attention_layernorm")
            gate = ACTIVATIONS[self.hidden_act](self._linear(y, f"{at}.mlp.gate_proj"))
            x = x + self._linear(gate * self._linear(y, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")
        return self._norm(x[compared], "model.norm") @ self.output().T

    def rotated(
        self, tokens: np.ndarray, positions: np.ndarray, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first layer's rotated queries and keys [T, heads, head_dim], with pairs as halves."""
        x = self.weight("model.embed_tokens.weight")[tokens]
        x = self._norm(x, "model.layers.0.input_layernorm")
        return self._rotated(x, self._turn(positions, seq_len), "model.layers.0.self_attn")

    def _turn(self, positions: np.ndarray, seq_len: int) -> np.ndarray:
        f, m = self.rope(seq_len)
        return (m * np.exp(1j * np.outer(positions, f)))[:, None]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x**2).mean(-1, keepdims=True) + self.rms_norm_eps)
        return self.weight(f"{name}.weight") * x / scale

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weight(f"{name}.weight").T + self.bias(f"{name}.bias")

    def _rotated(self, x: np.ndarray, turn: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        def rotated(part: str) -> np.ndarray:
            y = self._linear(x, f"{name}.{part}_proj").reshape(len(x), -1, self.head_dim)
            half = self.head_dim // 2
            if self.neighbours:
                z = (y[..., ::2] + 1j * y[..., 1::2]) * turn
            else:
                z = (y[..., :half] + 1j * y[..., half:]) * turn
            return np.concatenate([z.real, z.imag], -1)

        return rotated("q"), rotated("k")

    def _attention(self, x: np.ndarray, turn: np.ndarray, name: str) -> np.ndarray:
        T = len(x)
        q, k = self._rotated(x, turn, name)
        v = self._linear(x, f"{name}.v_proj").reshape(T, -1, self.head_dim)
        group = q.shape[1] // k.shape[1]
        out = np.empty_like(q)
        later = np.triu(np.ones((T, T), bool), 1)
        for head in range(q.shape[1]):
            scores = q[:, head] @ k[:, head // group].T / math.sqrt(self.head_dim)
            scores = np.where(later, -np.inf, scores)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = p / p.sum(-1, keepdims=True) @ v[:, head // group]
        return self._linear(out.reshape(T, -1), f"{name}.o_proj")
