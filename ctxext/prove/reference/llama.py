"""The forward pass of Llama (arXiv 2302.13971), whatever the files look like.

Other families differ from it in the attributes of `Decoder`.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence

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


@dataclasses.dataclass
class Decoder:
    """How the decoder of a family differs from Llama's."""

    layer_norm: bool = False
    """LayerNorm (arXiv 1607.06450) in place of RMS norm."""
    gated: bool = True
    clip: float | None = None
    """Queries, keys and values are clipped to this magnitude."""
    qk_norm: bool = False
    """Queries and keys are RMS-normed per head."""
    parallel: bool = False
    """Attention and MLP read the same input."""
    one_norm: bool = False
    """They read it through the same norm."""
    windows: list[int | None] | None = None
    """How many tokens each layer sees, None: all."""
    rotates: list[bool] | None = None
    """Which layers rotate queries and keys."""
    alibi: float | None = None
    """The largest exponent of ALiBi's slopes (arXiv 2108.12409); None: no ALiBi."""
    temperature: tuple[float, int] | None = None
    """beta and L of queries times 1 + beta ln(1 + floor(p / L)); None: no such factor."""


def _slopes(heads: int, exponent: float) -> list[float]:
    """ALiBi's slopes; between powers of two, every second one of the next list comes first."""
    n = 1
    while n < heads:
        n *= 2
    slopes = [2 ** (-exponent * (i + 1) / n) for i in range(n)]
    return slopes if n == heads else (slopes[1::2] + slopes[::2])[:heads]


class ReferenceReader(abc.ABC):
    """A Llama in files that a subclass reads.

    Tensors have Hugging Face's names, and the format's own order of rows. `neighbours`: the format
    rotates rows 2j and 2j + 1 of a head, not j and j + d / 2. `rounded`: it stores frequencies in
    float32. `reads_model`: it has the SentencePiece model and no files next to it. `library`: name
    and version of a package that makes numbers of quantized weights for it, empty if none does.
    `told`: hears the share of the layers that `logits` has passed.
    """

    neighbours = False
    rounded = False
    reads_model = False
    library = ""
    num_hidden_layers: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str = "silu"
    decoder: Decoder = Decoder()
    told: Callable[[float], None] | None = None

    @abc.abstractmethod
    def weight(self, name: str) -> np.ndarray:
        """One tensor, float64."""

    @abc.abstractmethod
    def rope(self, seq_len: int) -> tuple[np.ndarray, float]:
        """(inv_freq [head_dim / 2] in radians per token, factor m on cos and sin) at `seq_len`."""

    def sliding_rope(self, seq_len: int) -> tuple[np.ndarray, float]:
        """The same for layers with a sliding window, which may have another theta or scaling."""
        return self.rope(seq_len)

    @property
    def has_rotary(self) -> bool:
        """Whether any layer rotates queries and keys."""
        return self.decoder.alibi is None

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
        turns: dict[bool, np.ndarray] = {}
        if self.has_rotary:
            seq_len = int(positions.max()) + 1
            windowed = {self._window(layer) is not None for layer in range(self.num_hidden_layers)}
            turns = {slides: self._turn(positions, seq_len, slides) for slides in windowed}
        x = self.weight("model.embed_tokens.weight")[tokens]
        for layer in range(self.num_hidden_layers):
            at = f"model.layers.{layer}"
            y = self._norm(x, f"{at}.input_layernorm")
            turn = turns.get(self._window(layer) is not None)
            attended = x + self._attention(y, turn, positions, layer)
            if not self.decoder.one_norm:
                before = x if self.decoder.parallel else attended
                y = self._norm(before, f"{at}.post_attention_layernorm")
            x = attended + self._mlp(y, f"{at}.mlp")
            if self.told is not None:
                self.told((layer + 1) / self.num_hidden_layers)
        return self._norm(x[compared], "model.norm") @ self.output().T

    def rotated(
        self, tokens: np.ndarray, positions: np.ndarray, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first layer's rotated queries and keys [T, heads, head_dim], with pairs as halves."""
        x = self.weight("model.embed_tokens.weight")[tokens]
        x = self._norm(x, "model.layers.0.input_layernorm")
        turn = None
        if self._layer_rotates(0):
            turn = self._turn(positions, seq_len, self._window(0) is not None)
        return self._rotated(x, turn, "model.layers.0.self_attn")

    def _layer_rotates(self, layer: int) -> bool:
        rotates = self.decoder.rotates
        return self.has_rotary and (rotates is None or rotates[layer])

    def _window(self, layer: int) -> int | None:
        return None if self.decoder.windows is None else self.decoder.windows[layer]

    def _turn(self, positions: np.ndarray, seq_len: int, slides: bool) -> np.ndarray:
        f, m = self.sliding_rope(seq_len) if slides else self.rope(seq_len)
        return (m * np.exp(1j * np.outer(positions, f)))[:, None]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        if self.decoder.layer_norm:
            x = x - x.mean(-1, keepdims=True)
        y = self._rms_norm(x, name)
        return y + self.bias(f"{name}.bias") if self.decoder.layer_norm else y

    def _rms_norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x**2).mean(-1, keepdims=True) + self.rms_norm_eps)
        return self.weight(f"{name}.weight") * x / scale

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weight(f"{name}.weight").T + self.bias(f"{name}.bias")

    def _mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        up = self._linear(x, f"{name}.up_proj")
        activation = ACTIVATIONS[self.hidden_act]
        if self.decoder.gated:
            hidden = activation(self._linear(x, f"{name}.gate_proj")) * up
        else:
            hidden = activation(up)
        return self._linear(hidden, f"{name}.down_proj")

    def _heads(self, x: np.ndarray, name: str) -> np.ndarray:
        y = self._linear(x, name).reshape(len(x), -1, self.head_dim)
        clip = self.decoder.clip
        return y if clip is None else np.maximum(np.minimum(y, clip), -clip)

    def _rotated(
        self, x: np.ndarray, turn: np.ndarray | None, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Queries and keys [T, heads, head_dim], with pairs as halves; without a `turn` as is."""

        def rotated(part: str) -> np.ndarray:
            y = self._heads(x, f"{name}.{part}_proj")
            if self.decoder.qk_norm:
                y = self._rms_norm(y, f"{name}.{part}_norm")
            if turn is None:
                return y
            half = self.head_dim // 2
            if self.neighbours:
                z = (y[..., ::2] + 1j * y[..., 1::2]) * turn
            else:
                z = (y[..., :half] + 1j * y[..., half:]) * turn
            return np.concatenate([z.real, z.imag], -1)

        return rotated("q"), rotated("k")

    def _attention(
        self, x: np.ndarray, turn: np.ndarray | None, positions: np.ndarray, layer: int
    ) -> np.ndarray:
        T = len(x)
        name = f"model.layers.{layer}.self_attn"
        q, k = self._rotated(x, turn if self._layer_rotates(layer) else None, name)
        v = self._heads(x, f"{name}.v_proj")
        if self.decoder.temperature is not None:
            beta, length = self.decoder.temperature
            q = q * (1 + beta * np.log(1 + np.floor(positions / length)))[:, None, None]
        group = q.shape[1] // k.shape[1]
        out = np.empty_like(q)
        hidden = np.triu(np.ones((T, T), bool), 1)
        window = self._window(layer)
        if window is not None:
            hidden |= ~np.triu(np.ones((T, T), bool), 1 - window)
        for head in range(q.shape[1]):
            scores = q[:, head] @ k[:, head // group].T / math.sqrt(self.head_dim)
            if self.decoder.alibi is not None:
                slope = _slopes(q.shape[1], self.decoder.alibi)[head]
                scores = scores - slope * (positions[:, None] - positions[None, :])
            scores = np.where(hidden, -np.inf, scores)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = p / p.sum(-1, keepdims=True) @ v[:, head // group]
        return self._linear(out.reshape(T, -1), f"{name}.o_proj")
