"""One instance of every frequency and attention method, for heads of 16 and a window of 32.

Methods are discovered. CHOSEN and CHOSEN_ATTENTION replace the examples that would show little on
so small a model.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxext import methods as m
from ctxext.attention.pieces import Attention
from ctxext.rope import RopeBase, RopeScaling

BASE = RopeBase(head_dim=16, theta=1e4, original_max_position_embeddings=32)
ONES = (1.0,) * 8
DIVISORS = tuple(np.geomspace(1, 4, 8).round(3).tolist())

CHOSEN = (
    m.ABF(7e4),
    m.DynamicNTK(2.0),
    m.NTKByParts(4.0, beta_fast=4.0),
    m.Yarn(4.0, beta_fast=4.0),
    m.DynamicYarn(1.0, beta_fast=4.0),
    m.RevisedYarn(4.0, beta_fast=4.0),
    m.LongRope(4.0, ONES, DIVISORS, leading_positions=9),
    m.DynamicLongRope(8.0, DIVISORS),
    m.PRope(2.0, 0.75),
    m.Custom(DIVISORS, 1.1),
    m.CoPE(5, inner=m.Yarn(4.0, beta_fast=4.0)),
    m.HardClip(3, inner=m.Linear(2.0)),
    m.Resonance(inner=m.Linear(3.0)),
    m.LongRope2(4.0, 3),
    m.FullAttentionOnly(inner=m.Linear(2.5)),
)
CHECKED_LESS_OFTEN = (m.HardClip, m.Resonance, m.NTKMixed, m.NoPE, m.LongRope2, m.FullAttentionOnly)
"""Methods whose kind another one represents in tests that compile a model: CoPE is a wrapper, Yarn
static frequencies, LongRope two lists of divisors."""


def every_scaling() -> tuple[RopeScaling, ...]:
    chosen = {type(scaling): scaling for scaling in CHOSEN}
    classes = [method for method in m.all_methods().values() if m.seam(method) == "rope"]
    return tuple(chosen.get(cls) or m.example(cls, BASE, factor=4.0) for cls in classes)


CHOSEN_ATTENTION = (
    m.SelfExtend(4, 21),
    m.LMInfinite(40, 3),
    m.Rerope(21, training_length=16),
    m.LeakyRerope(21, 3, training_length=16),
    m.DCA(32, 9, training_length=32),
    m.StreamingLLM(40, 3),
    m.String(40, 5),
    m.JetLong(30, 20),
    m.JetLongFreq(30, 10, beta_fast=4.0),
    m.S2Attn(17),
    m.S2AttnAsReleased(96, 24),
    m.LogTemperature(8),
    m.Llama4Temperature(16, layers="all"),
    m.Ministral3Temperature(16),
)


def every_attention() -> tuple[Attention, ...]:
    chosen = {type(attention): attention for attention in CHOSEN_ATTENTION}
    classes = [method for method in m.all_methods().values() if m.seam(method) == "attention"]
    return tuple(chosen.get(cls) or m.example(cls, BASE, factor=4.0) for cls in classes)


EVERY = every_scaling()
EVERY_ATTENTION = every_attention()
"""Each differs from causal attention within 93 tokens."""
BY_LENGTH = tuple(scaling for scaling in EVERY if scaling.depends_on_length)


def sparingly(scalings: tuple[RopeScaling, ...]) -> list[Any]:
    """Parameters of a test; those of `CHECKED_LESS_OFTEN` have the mark `check`."""
    return [
        pytest.param(scaling, marks=pytest.mark.check)
        if isinstance(scaling, CHECKED_LESS_OFTEN)
        else scaling
        for scaling in scalings
    ]


def flags(scaling: RopeScaling, folder: Path, prefix: str = "--") -> list[str]:
    """Command-line flags for the fields of a method; vectors are written to JSON files."""
    arguments = []
    for name, value in vars(scaling).items():
        if value is None:
            continue
        if isinstance(value, RopeScaling):
            arguments += [f"{prefix}{name}", m.method_name(value)]
            arguments += flags(value, folder, f"{prefix}{name}.")
            continue
        if isinstance(value, tuple):
            file = folder / f"{name}-{abs(hash(value))}.json"
            file.write_text(json.dumps(value))
            value = file
        arguments += [f"{prefix}{name.replace('_', '-')}", str(value)]
    return arguments
