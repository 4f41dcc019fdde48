"""Reload an export, or a PEFT adapter on its base, in independent readers and compare.

ctxext prove llama2-8k
ctxext prove llama2-8k.gguf --against runs/mine
ctxext prove merged --against HF_DIR --adapter PEFT_DIR

It exits with 0 if they are equal and with 1 if not. Without --against, readings of the same files
are compared with each other. A file that changed since proof.json was written is named.
"""

import argparse
import json
from pathlib import Path

from ctxext.cli import numbers, options

GROUP = "Checkpoints and texts"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="DIR|FILE.gguf",
        help="An export in HF, Meta or GGUF format, from any writer.",
    )
    parser.add_argument(
        "--against",
        metavar="RUN|HF_DIR",
        help="The model to compare with, instead of the export itself; for an "
        "adapter it is the base.",
    )
    parser.add_argument(
        "--adapter",
        metavar="PEFT_DIR",
        help="With --against: an adapter that was merged into that model before the export.",
    )
    options.add_method(parser)
    options.add_allow_shorter(parser)
    parser.add_argument(
        "--original",
        type=numbers.count,
        metavar="N",
        help="Meta format without rope.json: the window L of pre-training, in tokens.",
    )
    parser.add_argument(
        "--seq-len",
        type=numbers.count,
        metavar="N",
        help="With --against: the extended window L' that the export was written with, in tokens, "
        "if --seq-len of ctxext export chose it.",
    )
    options.add_checkpoint(parser)
    options.add_bos(parser)
    options.add_links(parser)
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    from ctxext import prove

    proof = prove.prove(
        Path(args.source),
        against=args.against,
        checkpoint=args.checkpoint,
        original=args.original,
        seq_len=args.seq_len,
        methods=options.read_methods(args, rest),
        allow_shorter=args.allow_shorter,
        bos=args.bos,
        adapter=args.adapter,
    )
    print(json.dumps(proof) if args.json else prove.describe(proof))
    return 0 if proof["equal"] else 1
