"""Check an HF, Meta or GGUF checkpoint and write it as a base directory, tensor by tensor.

ctxext import meta-llama-dir --original 4096 --out base
ctxext import smollm2 --dtype bfloat16 --out base
"""

import argparse
import shlex

from ctxext.cli import numbers, options

GROUP = "Checkpoints and texts"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", help="A directory, a GGUF file, a hub name, or smollm2."
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="The directory to write.")
    parser.add_argument(
        "--dtype",
        type=options.dtype,
        choices=list(options.DTYPES.values()),
        help="The number type, also as f32, f16, bf16; default: as it is stored, float32 for what "
        "is quantized.",
    )
    parser.add_argument(
        "--original",
        type=numbers.count,
        metavar="N",
        help="The window L of pre-training in tokens, for a Meta directory or a GGUF file that "
        "does not hold it.",
    )
    options.add_allow_shorter(parser)
    options.add_links(parser)
    options.add_bos(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(args, rest)
    from ctxext import export
    from ctxext.rundir import command_line

    export.convert(
        args.source,
        args.out,
        dtype=args.dtype,
        original=args.original,
        bos=args.bos,
        allow_shorter=args.allow_shorter,
        command=command_line(),
    )
    options.say_bos(args.source, args.bos)
    base = shlex.quote(args.out)
    print(f"wrote {args.out}; check it with: ctxext prove {base}; measure it: ctxext eval {base}")
