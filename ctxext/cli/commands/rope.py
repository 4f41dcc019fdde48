"""Print the frequencies, the attention factor and the HF keys of methods.

ctxext rope yarn --factor 4
ctxext rope none yarn ntk --factor 4 --beta-fast 16 --plot waves.svg
ctxext rope none plain yarn --factor 32 --init meta-llama/Llama-3.1-8B

Methods come first, then their fields; each field goes to every method that has it.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ctxext.cli import base_options, numbers, options

if TYPE_CHECKING:
    from ctxext.model.config import LlamaConfig

GROUP = "Methods"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        metavar="METHOD",
        nargs="*",
        help="A method by its name or as FILE.py:Class; the same as --method.",
    )
    options.add_method(parser)
    base_options.add_base(parser)
    options.add_allow_shorter(parser)
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
    from ctxext import loading
    from ctxext.cli.method_options import make_methods
    from ctxext.cli.rope_view import RopeView

    names = [*args.names, *args.method]
    if not names:
        raise ValueError("name a method, as in: ctxext rope yarn --factor 4")
    methods = make_methods(names, rest, known=options.option_names(args))
    config = base_options.read_base(args)
    context = None
    if args.init is not None:
        _check_rotates(args.init, config)
        context = loading.read_context(args.init)
    view = RopeView.of(
        methods,
        config=config,
        seq_len=args.seq_len,
        context=context,
        allow_shorter=args.allow_shorter,
    )
    page = view.plot(args.plot) if args.plot else None
    print(view.json() if args.json else view.text(), flush=True)
    if page:
        print(f"\nplot: {page}", file=sys.stderr if args.json else sys.stdout)


def _check_rotates(source: str, config: "LlamaConfig") -> None:
    if not config.layers.rotates:
        raise ValueError(
            f"{source} has no rotary embedding: model_type {config.family} has {config.positions}"
        )
