"""Measure what things cost on this machine, on request interleaved with transformers on torch.

ctxext bench --parts step decode
ctxext bench --parts memory --plot memory.html --against hf
"""

import argparse
import json
import sys
from pathlib import Path

from ctxext.cli import numbers, options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="RUN|HF_DIR",
        nargs="?",
        default="tiny-llama",
        help="The model of the part eval; the others have random weights.",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["eval"],
        metavar="PART",
        help="What to measure: eval, step, prefill, decode, attention, loss, io, or memory, "
        "for steps of 8k to 64k tokens.",
    )
    parser.add_argument(
        "--against", choices=["hf"], help="Do the same with transformers on torch, interleaved."
    )
    parser.add_argument(
        "--rounds",
        type=numbers.integer,
        default=5,
        metavar="N",
        help="How often each is measured, after two rounds that do not count.",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.svg|FILE.html",
        help="Draw time and memory against the length.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(rest)
    from ctxext import bench
    from ctxext.bench import tables

    if args.plot and "memory" not in args.parts:
        raise ValueError("--plot draws time and memory against the length; add memory to --parts")
    figures = bench.measure(args.source, args.parts, against=args.against, rounds=args.rounds)
    print(json.dumps(figures) if args.json else tables.describe(figures), flush=True)
    if args.plot:
        for page in tables.plot(figures, args.plot):
            print(f"plot: {page}", file=sys.stderr)
