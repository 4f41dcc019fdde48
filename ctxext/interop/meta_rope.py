"""rope.json in a Meta directory: the window and frequencies that params.json has no keys for."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctxext.files import read_json
from ctxext.interop.model_card import BEGIN, END
from ctxext.interop.ropespec import LARGEST_DIVISOR, rope_from_config, rope_to_config
from ctxext.methods import label
from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeBase, RopeScaling, rope_at

README = """# Llama in Meta's format

- context: {max_position_embeddings} tokens (pre-trained with {original_max_position_embeddings})
- method: {method}
- weights: {dtype}, {shards} shard(s); queries and keys in Meta's order of rows

{warning}

## Proof

{begin}
Not compared with another reader yet.
{end}
"""
PLAIN = """The frequencies are those of Llama 2's pre-training: Meta's code runs this checkpoint
as it is."""
OTHER_THETA = """Only theta differs: it is {rope_theta}, in `params.json`. The code of Code Llama
reads it; that of Llama 2 does not know the key."""
SCALED = """**Stock Llama 2 code ignores this scaling: it silently runs the checkpoint with the
frequencies of pre-training.** The right ones are in `rope.json`. To use them, run this before the
model is built:

```python
import json

import llama.model
import torch


def precompute_freqs_cis(dim, end, theta=None):
    with open("rope.json") as file:
        rope = json.load(file)
    inv_freq = torch.tensor(rope["inv_freq"], dtype=torch.float64)
    angles = torch.outer(torch.arange(end, dtype=torch.float64), inv_freq)
    factor = torch.full_like(angles, rope["attention_factor"])
    return torch.polar(factor, angles).to(torch.complex64)


llama.model.precompute_freqs_cis = precompute_freqs_cis
```"""


def rope_json(config: LlamaConfig, scaling: RopeScaling, seq_len: int) -> dict[str, Any]:
    """The contents of rope.json for contexts of `seq_len` tokens.

    `inv_freq` in radians per token, `attention_factor` on cos and sin, both windows, and the keys
    of config.json. Raises ValueError for frequencies that depend on the length of the text.
    """
    if scaling.depends_on_length:
        raise ValueError(
            f"{type(scaling).__name__} changes its frequencies with the length of the text, which "
            "Meta's format cannot represent; export a static scaling at the factor you need, such "
            "as Yarn"
        )
    rope = rope_at(scaling, config.rope_base(), seq_len)
    return {
        "method": label([scaling]),
        "original_max_position_embeddings": config.max_position_embeddings,
        **rope_to_config(scaling, config, seq_len),
        "attention_factor": float(rope.attention_factor),
        "inv_freq": rope.inv_freq.tolist(),
    }


def readme(rope: dict[str, Any], *, dtype: str, shards: int) -> str:
    """README.md, which tells whether Meta's code reads the checkpoint right, or what to do."""
    if rope["rope_scaling"] is not None:
        warning = SCALED
    elif rope["rope_theta"] == 10000.0:
        warning = PLAIN
    else:
        warning = OTHER_THETA.format(**rope)
    return README.format(**rope, dtype=dtype, shards=shards, warning=warning, begin=BEGIN, end=END)


class MetaRope(NamedTuple):
    """The frequencies of a checkpoint in Meta's format, and its windows in tokens."""

    theta: float
    window: int
    """Of pre-training, L."""
    scaling: RopeScaling
    extended_window: int
    """L', which is L without a scaling."""


def read_rope(path: Path, theta: float | None, head_dim: int, original: int | None) -> MetaRope:
    """The frequencies that rope.json at `path` declares.

    theta: that of params.json, if it has one. original: the window of pre-training in tokens, if
    the user gives it. Without rope.json these two declare an unscaled model. Raises ValueError if
    the file and they contradict each other, or if nothing declares the window.
    """
    if not path.is_file():
        if original is None:
            raise ValueError(
                f"{path.parent} does not declare the window of pre-training; give it with "
                "--original: 4096 for Llama 2, 2048 for Llama 1, 16384 for Code Llama"
            )
        keys = {"max_position_embeddings": original, "rope_theta": theta}
        theta, window, scaling = rope_from_config(keys)
        return MetaRope(theta, window, scaling, extended_window=original)
    data = read_json(path)
    try:
        rope_theta, window, scaling = rope_from_config(data)
        length = data["max_position_embeddings"]
        base = RopeBase(head_dim, rope_theta, window)
        _check_frequencies(data, base, scaling, length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
    _check_agreement(path, "rope_theta", rope_theta, theta)
    _check_agreement(path, "window of pre-training", window, original)
    return MetaRope(rope_theta, window, scaling, length)


def _check_frequencies(
    data: dict[str, Any], base: RopeBase, scaling: RopeScaling, length: int
) -> None:
    rope = scaling.rope(base, length)
    inv_freq = np.asarray(data["inv_freq"], np.float64)
    # A divisor that stands for a frequency of zero leaves at most this much.
    near_zero = 1 / LARGEST_DIVISOR
    if inv_freq.shape != rope.inv_freq.shape or not np.allclose(
        inv_freq, rope.inv_freq, rtol=1e-6, atol=near_zero
    ):
        raise ValueError("inv_freq and rope_parameters contradict each other")
    if not np.isclose(data["attention_factor"], rope.attention_factor, rtol=1e-6):
        raise ValueError("attention_factor and rope_parameters contradict each other")


def _check_agreement(path: Path, name: str, value: float, other: float | None) -> None:
    if other is not None and value != other:
        raise ValueError(f"the {name} is {value} in {path}, but elsewhere {other}; correct one")
