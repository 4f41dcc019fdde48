"""Check an HF or Meta checkpoint and write it as a base directory, tensor by tensor.

ctxext import meta-llama-dir --original 4096 --out base
"""

import argparse

from ctxext.cli import numbers, options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="A directory or a hub name.")
    parser.add_argument("--out", required=True, metavar="DIR", help="The directory to write.")
    parser.add_argument(
        "--dtype",
        type=options.dtype,
        choices=list(options.DTYPES.values()),
        help="The number type, also as f32, f16, bf16; default: as it is stored.",
    )
    parser.add_argument(
        "--original",
        type=numbers.count,
        metavar="N",
        help="Meta format, which does not hold it: the window L of pre-training, in tokens.",
    )
    options.add_links(parser)
    options.add_bos(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(rest)
    from ctxext import export

    export.convert(args.source, args.out, dtype=args.dtype, original=args.original, bos=args.bos)
    print(f"wrote {args.out}")
