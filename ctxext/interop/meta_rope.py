"""rope.json beside a Meta checkpoint: the window and the frequencies, which params.json has no fields for."""

from pathlib import Path
from typing import Any

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
PLAIN = "The frequencies are those that Llama 2 was pre-trained with: Meta's code runs this checkpoint as it is."
OTHER_THETA = """Only theta is another one, {rope_theta}, and stands in `params.json`. The code of Code Llama reads it;
that of Llama 2 does not know the key."""
SCALED = """**Stock Llama 2 code ignores this scaling: it runs the checkpoint with the frequencies of pre-training,
without a word.** The right ones stand in `rope.json`. To use them, run this before the model is built:

```python
import json

import llama.model
import torch


def precompute_freqs_cis(dim, end, theta=None):
    with open("rope.json") as file:
        rope = json.load(file)
    inv_freq = torch.tensor(rope["inv_freq"], dtype=torch.float64)
    angles = torch.outer(torch.arange(end, dtype=torch.float64), inv_freq)
    return torch.polar(torch.full_like(angles, rope["attention_factor"]), angles).to(torch.complex64)


llama.model.precompute_freqs_cis = precompute_freqs_cis
```"""


def rope_json(config: LlamaConfig, scaling: RopeScaling, seq_len: int) -> dict[str, Any]:
    """rope.json: inv_freq in radians per token, the factor on cos and sin, both windows, and config.json's own keys.

    Raises ValueError for frequencies that depend on the length of the text.
    """
    if scaling.depends_on_length:
        raise ValueError(
            f"{type(scaling).__name__} changes its frequencies with the length of the text, which Meta's "
            "format cannot say; export a static scaling at the factor you need, such as Yarn"
        )
    keys, window = rope_to_config(scaling, config, seq_len), config.max_position_embeddings
    rope = rope_at(scaling, config.rope_base(), seq_len)
    return {
        "method": label([scaling]),
        "original_max_position_embeddings": window,
        **keys,
        "attention_factor": float(rope.attention_factor),
        "inv_freq": rope.inv_freq.tolist(),
    }


def readme(rope: dict[str, Any], *, dtype: str, shards: int) -> str:
    """README.md, which says whether Meta's code understands the checkpoint, and what to do if it does not."""
    plain = rope["rope_scaling"] is None
    warning = (
        SCALED
        if not plain
        else PLAIN
        if rope["rope_theta"] == 10000.0
        else OTHER_THETA.format(**rope)
    )
    return README.format(**rope, dtype=dtype, shards=shards, warning=warning, begin=BEGIN, end=END)


def read_rope(
    path: Path, theta: float | None, head_dim: int, original: int | None
) -> tuple[float, int, RopeScaling, int]:
    """(theta, window L, scaling, extended window L') of rope.json, or of params.json's `theta` and `original`.

    Raises ValueError if they contradict each other, or if nothing says the window.
    """
    if not path.is_file():
        if original is None:
            raise ValueError(
                f"{path.parent} does not say the window of pre-training; give it with --original: 4096 "
                "for Llama 2, 2048 for Llama 1, 16384 for Code Llama"
            )
        keys = {"max_position_embeddings": original, "rope_theta": theta}
        return *rope_from_config(keys), original
    data = read_json(path)
    try:
        found, window, scaling = rope_from_config(data)
        rope = scaling.rope(RopeBase(head_dim, found, window), data["max_position_embeddings"])
        m, inv_freq = data["attention_factor"], np.asarray(data["inv_freq"], np.float64)
        near = 1 / LARGEST_DIVISOR  # what stands for a frequency of zero
        if inv_freq.shape != rope.inv_freq.shape or not np.allclose(
            inv_freq, rope.inv_freq, rtol=1e-6, atol=near
        ):
            raise ValueError("inv_freq and rope_parameters contradict each other")
        if not np.isclose(m, rope.attention_factor, rtol=1e-6):
            raise ValueError("attention_factor and rope_parameters contradict each other")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
    for key, here, there in (
        ("rope_theta", found, theta),
        ("window of pre-training", window, original),
    ):
        if there is not None and here != there:
            raise ValueError(f"{path} says the {key} is {here}, not {there}; which is it?")
    return found, window, scaling, data["max_position_embeddings"]
