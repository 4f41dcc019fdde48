"""rope.json in a Meta directory: the window and frequencies that params.json has no keys for."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctxext.files import read_json
from ctxext.interop import validation
from ctxext.interop.model_card import BEGIN, END
from ctxext.interop.ropespec import LARGEST_DIVISOR, rope_from_config, rope_spec, rope_to_config
from ctxext.methods import label
from ctxext.methods.llama3 import Llama3
from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeBase, RopeScaling, rope_at, scaling_name

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
            f"{scaling_name(scaling)} changes its frequencies with the length of the text, which "
            "Meta's format cannot represent; export a static scaling at the factor you need, such "
            "as Yarn"
        )
    rope_spec(scaling, config, seq_len).check_alike("Meta's format")
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


SCALED_ROPE_WINDOW = 8192
"""The window of pre-training that Meta's code has for `use_scaled_rope`."""
SCALED_ROPE_LENGTH = 131072
"""The extended window of every model that Meta published with it."""
SCALED_ROPE_FACTORS = {
    (2048, 16): 32.0,
    (3072, 28): 32.0,
    (4096, 32): 8.0,
    (8192, 80): 8.0,
    (16384, 126): 8.0,
}
"""(dim, n_layers) of Llama 3.1, 3.2 and 3.3 -> factor, which params.json does not have."""

FREQUENCIES: dict[str, validation.Shape] = {
    "inv_freq": [validation.FINITE],
    "attention_factor": validation.FINITE,
}
"""The values of rope.json besides the keys of config.json."""


def _scaled_rope(path: Path, params: dict[str, Any]) -> Llama3 | None:
    """The scaling of `use_scaled_rope` in params.json."""
    if not params.get("use_scaled_rope"):
        return None
    factor = params.get("rope_scaling_factor")
    if factor is None:
        factor = SCALED_ROPE_FACTORS.get((params["dim"], params["n_layers"]))
    if factor is None:
        raise ValueError(
            f"params.json in {path.parent} has use_scaled_rope, but not the factor, and its shape "
            "is none that Meta published; add rope_scaling_factor: 8 for Llama 3.1 and 3.3, 32 for "
            "3.2"
        )
    high = params.get("rope_high_freq_factor")
    try:
        return Llama3(float(factor), high_freq_factor=4.0 if high is None else float(high))
    except ValueError as error:
        raise ValueError(f"params.json in {path.parent}: {error}") from None


def read_rope(path: Path, params: dict[str, Any], head_dim: int, original: int | None) -> MetaRope:
    """The frequencies that rope.json at `path` declares, or without that file params.json.

    params: of params.json. original: the window of pre-training in tokens, if the user gives it;
    only `use_scaled_rope` implies it. Raises ValueError if the files and it contradict each other,
    or if nothing declares the window.
    """
    theta = params.get("rope_theta")
    params_file = path.with_name("params.json")
    scaled = _scaled_rope(path, params)
    if scaled is not None and not path.is_file():
        _check_agreement(params_file, "window of pre-training", SCALED_ROPE_WINDOW, original)
        rope_theta, window, _ = _plain_rope(params_file, theta, SCALED_ROPE_WINDOW)
        return MetaRope(rope_theta, window, scaled, SCALED_ROPE_LENGTH)
    if not path.is_file():
        if original is None:
            raise ValueError(
                f"{path.parent} does not declare the window of pre-training; give it with "
                "--original: 4096 for Llama 2, 2048 for Llama 1, 16384 for Code Llama "
                "(an option of import and prove)"
            )
        theta, window, scaling = _plain_rope(params_file, theta, original)
        return MetaRope(theta, window, scaling, extended_window=original)
    data = read_json(path)
    try:
        rope_theta, window, scaling = rope_from_config(data)
        length = data["max_position_embeddings"]
        base = RopeBase(head_dim, rope_theta, window)
        _check_frequencies(data, base, scaling, length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if scaled is not None and scaling != scaled:
        raise ValueError(
            f"{path} has the scaling {label([scaling])}, but params.json next to it has "
            f"use_scaled_rope ({label([scaled])}); remove one of the two"
        )
    _check_agreement(path, "rope_theta", rope_theta, theta)
    _check_agreement(path, "window of pre-training", window, original)
    return MetaRope(rope_theta, window, scaling, length)


def _plain_rope(path: Path, theta: float | None, window: int) -> tuple[float, int, RopeScaling]:
    """Theta, L and the scaling of params.json at `path`. Raises ValueError that names it."""
    try:
        return rope_from_config({"max_position_embeddings": window, "rope_theta": theta})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_frequencies(
    data: dict[str, Any], base: RopeBase, scaling: RopeScaling, length: int
) -> None:
    for key, shape in FREQUENCIES.items():
        if key not in data:
            raise ValueError(f"{key} is missing; copy the file again")
        validation.check_shape(data[key], shape, key)
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
