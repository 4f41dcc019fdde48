"""Print the frequencies, the attention factor and the HF keys of methods.

ctxext rope yarn --factor 4
ctxext rope none yarn ntk --factor 4 --beta-fast 16 --plot waves.svg
ctxext rope none plain yarn --factor 32 --init meta-llama/Llama-3.1-8B

Methods come first, then their fields; each field goes to every method that has it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxext.cli import numbers, options

if TYPE_CHECKING:
    from ctxext.cli.rope_view import RopeView


# The rotary embedding of Llama 2.
HEAD_DIM = 128
THETA = 10000.0
ORIGINAL = 4096


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        metavar="METHOD",
        nargs="*",
        help="A method by its name or as FILE.py:Class; the same as --method.",
    )
    options.add_method(parser)
    parser.add_argument(
        "--init",
        metavar="DIR",
        help="The checkpoint that the methods are for: its head dimension, theta and window, and "
        "its own frequencies under the name none.",
    )
    options.add_allow_shorter(parser)
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
    parser.add_argument(
        "--seq-len",
        type=numbers.count,
        metavar="N",
        help="The target length in tokens; default: the largest factor x L.",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.svg|FILE.html",
        help="Draw the wavelengths against the window.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext.cli.method_options import make_methods
    from ctxext.cli.rope_view import RopeView

    names = [*args.names, *args.method]
    if not names:
        raise ValueError("name a method, as in: ctxext rope yarn --factor 4")
    methods = make_methods(names, rest)
    if args.init is None:
        view = RopeView.of(
            methods,
            head_dim=HEAD_DIM if args.head_dim is None else args.head_dim,
            theta=THETA if args.theta is None else args.theta,
            original=ORIGINAL if args.original is None else args.original,
            seq_len=args.seq_len,
        )
    else:
        view = _view_of_checkpoint(args, methods)
    page = view.plot(args.plot) if args.plot else None
    print(view.json() if args.json else view.text(), flush=True)
    if page:
        print(f"\nplot: {page}", file=sys.stderr if args.json else sys.stdout)


def _view_of_checkpoint(args: argparse.Namespace, methods: Sequence[Any]) -> "RopeView":
    """The methods over the checkpoint of --init, which has its own shape and frequencies."""
    from ctxext import loading
    from ctxext.cli.rope_view import RopeView

    if not (args.head_dim is args.theta is args.original is None):
        raise ValueError("--init names a checkpoint; leave out --head-dim, --theta and --original")
    config, _ = loading.read_config(args.init)
    if not config.layers.rotates:
        raise ValueError(
            f"{args.init} has no rotary embedding: model_type {config.family} has "
            f"{config.positions}"
        )
    return RopeView.of(
        methods,
        head_dim=config.head_dim,
        theta=config.rope_theta,
        original=config.max_position_embeddings,
        seq_len=args.seq_len,
        positions=config.positions,
        context=loading.read_context(args.init),
        allow_shorter=args.allow_shorter,
    )
