"""One of every frequency method, for heads of 16 and a window of 32, and how it is said on the command line."""

import json
from pathlib import Path

import numpy as np

from ctxext import methods as m
from ctxext.rope import RopeScaling, Unscaled

ONE = (1.0,) * 8
LONG = tuple(np.geomspace(1, 4, 8).round(3).tolist())

EVERY: tuple[RopeScaling, ...] = (
    Unscaled(),
    m.ABF(7e4),
    m.Linear(4.0),
    m.DynamicLinear(),
    m.NTK(4.0),
    m.DynamicNTK(2.0),
    m.NTKByParts(4.0, beta_fast=4.0),
    m.PartNTK(4.0),
    m.DynamicPartNTK(),
    m.Yarn(4.0, beta_fast=4.0),
    m.DynamicYarn(1.0, beta_fast=4.0),
    m.RevisedYarn(4.0, beta_fast=4.0),
    m.Llama3(4.0),
    m.LongRope(4.0, ONE, LONG, leading_positions=9),
    m.DynamicLongRope(8.0, LONG),
    m.PowerBasis(4.0, power=0.5),
    m.TruncatedBasis(4.0, truncate_length=128),
    m.PRope(2.0, 0.75),
    m.Custom(LONG, 1.1),
)
BY_LENGTH = tuple(scaling for scaling in EVERY if scaling.depends_on_length)


def flags(scaling: RopeScaling, folder: Path, prefix: str = "--") -> list[str]:
    """Command-line fields of a method; vectors are written to JSON files."""
    found = []
    for name, value in vars(scaling).items():
        if isinstance(value, tuple):
            file = folder / f"{name}-{abs(hash(value))}.json"
            file.write_text(json.dumps(value))
            value = file
        if value is not None:
            found += [f"{prefix}{name.replace('_', '-')}", str(value)]
    return found
