"""Print the frequencies, the attention factor and the HF keys of methods.

ctxext rope yarn --factor 4
ctxext rope none yarn ntk --factor 4 --beta-fast 16 --plot waves.svg

Methods come first, then their fields; each field goes to every method that has it.
"""

import argparse
import sys
from pathlib import Path

from ctxext.cli import options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        metavar="METHOD",
        nargs="*",
        help="A method by its name or as FILE.py:Class; the same as --method.",
    )
    options.add_method(parser)
    parser.add_argument(
        "--head-dim", type=int, default=128, metavar="H", help="The head dimension."
    )
    parser.add_argument("--theta", type=float, default=10000.0, help="The base of the frequencies.")
    parser.add_argument(
        "--original",
        type=int,
        default=4096,
        metavar="L",
        help="The window of pre-training, in tokens.",
    )
    parser.add_argument(
        "--seq-len",
        type=int,
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
    view = RopeView.of(
        make_methods(names, rest),
        head_dim=args.head_dim,
        theta=args.theta,
        original=args.original,
        seq_len=args.seq_len,
    )
    page = view.plot(args.plot) if args.plot else None
    print(view.json() if args.json else view.text(), flush=True)
    if page:
        print(f"\nplot: {page}", file=sys.stderr if args.json else sys.stdout)
