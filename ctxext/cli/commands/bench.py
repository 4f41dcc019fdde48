"""Measure what things cost on this machine, on request interleaved with transformers on torch.

Every result is printed when it is there. Before steps and the like, the rate of matrix products of
each library is measured: the limit of this CPU, of which the others reach a share.

ctxext bench --parts step decode
ctxext bench --parts step prefill attention --against hf --cpu-isa avx2
ctxext bench --parts memory --plot memory.html --against hf
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ctxext.cli import numbers, options

GROUP = "Measure"


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
        help="What to measure: eval, product, step, prefill, decode, attention, loss, io, or "
        "memory, for steps of 8k to 64k tokens.",
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
        "--cpu-isa",
        choices=["avx2"],
        help="Use no wider vector instructions, in both libraries, as on another kind of CPU.",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.svg|FILE.html",
        help="Draw time and memory against the length.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    options.refuse_rest(args, rest)
    from ctxext import bench
    from ctxext.bench import tables

    if args.plot and "memory" not in args.parts:
        raise ValueError("--plot draws time and memory against the length; add memory to --parts")
    results = []
    measuring = bench.measurements(
        args.source, args.parts, against=args.against, rounds=args.rounds, cpu_isa=args.cpu_isa
    )
    try:
        with measuring as listed:
            for number, measurement in enumerate(listed, 1):
                with _shown(f"{number}/{len(listed)} {measurement.name}"):
                    result = measurement.run()
                print(json.dumps(result) if args.json else tables.describe(result), flush=True)
                results.append(result)
    except KeyboardInterrupt:
        kept = f"{len(results)} results are printed, and kept nowhere else"
        print(f"ctxext: interrupted: {kept}; the same command begins again", file=sys.stderr)
        return 130
    if args.plot:
        for page in tables.plot(results, args.plot):
            print(f"plot: {page}", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _shown(title: str) -> Iterator[None]:
    """In the block, standard error shows what is measured: a bar, or a line where it is a file."""
    from ctxext.progress_bar import WorkBar

    bar = WorkBar(title)
    if not bar.is_visible:
        print(f"measuring {title}", file=sys.stderr, flush=True)
    with bar.shown():
        yield
