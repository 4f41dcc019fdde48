"""Write RULER's own samples for a model's tokenizer, by its own scripts. Needs the extra ruler.

ctxext ruler HF_DIR --seq-len 8192 --out ruler-8k
ctxext eval HF_DIR --evals ruler:reference --ruler ruler-8k
ctxext ruler HF_DIR --seq-len 8192 --scripts RULER --out ruler-8k-now

Without --scripts they are the scripts of 2024, which the package nvidia-long-context-eval 26.3 has.
The benchmark's current scripts write other samples, whose numbers are not comparable.
"""

import argparse
import shlex
from pathlib import Path

from ctxext.cli import numbers, options

GROUP = "Measure"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="RUN|HF_DIR", help="The model, of which only the tokenizer is read."
    )
    parser.add_argument(
        "--seq-len",
        type=numbers.count,
        required=True,
        metavar="N",
        help="The nominal length in tokens.",
    )
    parser.add_argument("--n", type=numbers.integer, default=50, help="Samples of each task.")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="Tasks, from niah_single_1 to qa_2; default: all 13.",
    )
    parser.add_argument(
        "--scripts",
        type=Path,
        metavar="DIR",
        help="A clone of github.com/NVIDIA/RULER with the texts that it downloads; its code is "
        "run, so name only one that you trust. Default: the package's scripts of 2024.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Where to write.")
    options.add_links(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(args, rest)
    from ctxext import loading
    from ctxext.evals.ruler import RULER_TASKS
    from ctxext.evals.ruler_generators import prepare
    from ctxext.plan.longest_text import check_samples

    check_samples(args.seq_len, args.n)
    tokenizer = loading.open_tokenizer(args.source)
    tasks = args.tasks or tuple(RULER_TASKS)
    samples = prepare(
        args.out, tokenizer, seq_len=args.seq_len, n=args.n, tasks=tasks, scripts=args.scripts
    )
    words = ["ctxext", "eval", args.source, "--evals", "ruler:reference", "--ruler", str(args.out)]
    print(f"wrote {args.out}: {samples.variant}; evaluate with: {shlex.join(words)}")
    if args.scripts is None:
        print("the benchmark's current scripts write other samples: --scripts CLONE")
