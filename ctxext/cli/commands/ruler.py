"""Write RULER's own samples for a model's tokenizer, by its package. Needs the extra ruler.

ctxext ruler HF_DIR --seq-len 8192 --out ruler-8k
ctxext eval HF_DIR --evals ruler:reference --ruler ruler-8k
"""

import argparse
import shlex
from pathlib import Path

from ctxext.cli import options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="RUN|HF_DIR", help="The model, of which only the tokenizer is read."
    )
    parser.add_argument(
        "--seq-len", type=int, required=True, metavar="N", help="The nominal length in tokens."
    )
    parser.add_argument("--n", type=int, default=50, help="Samples of each task.")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="Tasks, from niah_single_1 to qa_2; default: all 13.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Where to write.")
    options.add_links(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(rest)
    from ctxext import loading
    from ctxext.evals.ruler import RULER_TASKS
    from ctxext.evals.ruler_generators import prepare

    tokenizer = loading.open_tokenizer(args.source)
    tasks = args.tasks or tuple(RULER_TASKS)
    prepare(args.out, tokenizer, seq_len=args.seq_len, n=args.n, tasks=tasks)
    words = ["ctxext", "eval", args.source, "--evals", "ruler:reference", "--ruler", str(args.out)]
    print(f"wrote {args.out}; evaluate with: {shlex.join(words)}")
