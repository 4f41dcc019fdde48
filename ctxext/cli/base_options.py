"""The base that methods are shown over: the checkpoint of --init, or a shape given by options."""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from ctxext.cli import numbers

if TYPE_CHECKING:
    from ctxext.model.config import LlamaConfig

# Llama 2 7B.
HEAD_DIM = 128
THETA = 10000.0
ORIGINAL = 4096
LAYERS = 32

SHAPE = {
    "head_dim": "head_dim",
    "theta": "rope_theta",
    "original": "max_position_embeddings",
    "layers": "num_hidden_layers",
}
"""The options of a shape, and the field of a model that each one is."""


def add_base(parser: argparse.ArgumentParser, *, layers: bool = False) -> None:
    """Declare --init and the options of a shape; layers: how many there are is one of them."""
    parser.add_argument(
        "--init",
        metavar="DIR",
        help="The checkpoint that the methods are for: its head dimension, theta, window"
        f"{' and layers' if layers else ''}, and its own frequencies under the name none; default: "
        "the shape of Llama 2 7B.",
    )
    parser.add_argument(
        "--head-dim",
        type=numbers.count,
        metavar="H",
        help=f"The head dimension; default: {HEAD_DIM}.",
    )
    parser.add_argument(
        "--theta", type=numbers.number, help=f"The base of the frequencies; default: {THETA}."
    )
    parser.add_argument(
        "--original",
        type=numbers.count,
        metavar="L",
        help=f"The window of pre-training, in tokens; default: {ORIGINAL}.",
    )
    if layers:
        parser.add_argument(
            "--layers", type=numbers.count, metavar="N", help=f"How many layers; default: {LAYERS}."
        )


def read_base(args: argparse.Namespace) -> "LlamaConfig":
    """The model of --init, or Llama 2 7B with the shape that the options give.

    Raises ValueError for a shape next to --init.
    """

    from ctxext import loading
    from ctxext.model.config import SHAPES

    if args.init is not None:
        refuse_shape(args, "--init names a checkpoint")
        return loading.read_config(args.init)[0]
    given = {SHAPE[option]: value for option, value in _shape(args).items() if value is not None}
    return dataclasses.replace(SHAPES["llama2-7b"], **given)


def refuse_shape(args: argparse.Namespace, reason: str) -> None:
    """Raise ValueError, which begins with the reason, if an option of a shape is given."""
    shape = _shape(args)
    if any(value is not None for value in shape.values()):
        *most, last = [f"--{option.replace('_', '-')}" for option in shape]
        raise ValueError(f"{reason}; leave out {', '.join(most)} and {last}")


def _shape(args: argparse.Namespace) -> dict[str, int | float | None]:
    """The value of each option of a shape that the command has."""
    return {option: getattr(args, option) for option in SHAPE if hasattr(args, option)}
