"""Write a run or a checkpoint for other programs: HF, Meta or GGUF format, or a PEFT adapter.

ctxext export runs/mine --out llama2-8k
ctxext export HF_DIR --method yarn --factor 2 --out scaled
ctxext export runs/mine --to gguf --out llama2-8k.gguf --dtype q8_0
"""

import argparse
import shlex
import sys

from ctxext.cli import numbers, options

GROUP = "Checkpoints and texts"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument(
        "--to",
        choices=options.LazyNames(_formats),  # pyright: ignore[reportArgumentType]
        default="hf",
        metavar="FORMAT",
        help="%(choices)s: a whole model (gguf: one file), or for peft what a LoRA run trained.",
    )
    parser.add_argument(
        "--out", required=True, metavar="PATH", help="The directory or GGUF file to write."
    )
    parser.add_argument(
        "--base",
        metavar="HF_DIR",
        help="With --to peft: the base that the adapter is for; default: the run's own.",
    )
    parser.add_argument(
        "--dtype",
        type=options.dtype,
        metavar="DTYPE",
        choices=options.LazyNames(_dtypes),  # pyright: ignore[reportArgumentType]
        help="The number type: %(choices)s, also as f32, f16, bf16; q8_0 is for gguf; default: "
        "that of HF_DIR, and bfloat16 for a run.",
    )
    parser.add_argument(
        "--seq-len",
        type=numbers.count,
        metavar="N",
        help="The extended window L' in tokens; default: factor x L, and without a method what the "
        "checkpoint declares.",
    )
    parser.add_argument(
        "--shards",
        type=numbers.integer,
        metavar="N",
        help="With --to meta: the number of consolidated.NN.pth files; default: by size.",
    )


def _formats() -> list[str]:
    from ctxext.interop.formats import FORMATS

    return [*FORMATS, "peft"]


def _dtypes() -> list[str]:
    from ctxext.interop.gguf_metadata import FILE_TYPES

    return [*FILE_TYPES]


def run(args: argparse.Namespace, rest: list[str]) -> None:
    if args.to == "peft":
        _export_adapter(args, rest)
        print(f"wrote {args.out}")
        return
    if args.base:
        raise ValueError("--base belongs to --to peft")
    _export_model(args, rest)
    methods = [word for name in args.method for word in ("--method", name)]
    words = ["ctxext", "prove", args.out, "--against", args.source, *methods, *rest]
    words += ["--allow-shorter"] * args.allow_shorter
    if args.seq_len:
        words += ["--seq-len", str(args.seq_len)]
    if args.checkpoint != "latest":
        words += ["--checkpoint", str(args.checkpoint)]
    if args.adapter:
        words += ["--adapter", str(args.adapter)]
    if args.bos is not None:
        words += ["--bos" if args.bos else "--no-bos"]
    print(f"wrote {args.out}; check it with: {shlex.join(words)}")


def _export_adapter(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import export

    if rest or args.method or args.adapter or args.dtype or args.seq_len or args.shards:
        raise ValueError(
            "--to peft writes what a run trained, as it is, in float32; it takes only --base and "
            "--out"
        )
    export.export_adapter(
        args.source,
        args.out,
        base=args.base,
        checkpoint=args.checkpoint,
        mesh=options.read_mesh(args),
        trust=args.trust_run,
    )


def _export_model(args: argparse.Namespace, rest: list[str]) -> None:
    """A run is loaded and written; a checkpoint is converted tensor by tensor."""
    from ctxext import export, loading
    from ctxext.interop.model_card import public_name
    from ctxext.rope import RopeScaling, Unscaled
    from ctxext.rundir import RunDir, command_line

    path = loading.locate(args.source)
    is_run = loading.is_run(path)
    if args.adapter or is_run:
        named = options.open_named_model(args, options.read_methods(args, rest))
        options.say_context(named.lm.context, named.lm.scaling)
        model = named.describe(named.lm, directory=named.directory)
        if is_run:
            card = export.run_card(RunDir(path), model)
        else:
            card = _checkpoint_card(args.source, model.label)
        if args.adapter:
            card["adapter"] = public_name(args.adapter)
        if "weights" in card:
            print(f"exported is {card['weights']}; so is what a proof compares", file=sys.stderr)
        dtype = "bfloat16" if is_run else export.stored_dtype(path)
        export.export(
            named.lm,
            args.out,
            to=args.to,
            dtype=args.dtype or dtype,
            seq_len=args.seq_len,
            card=card,
            shards=args.shards,
            allow_shorter=args.allow_shorter,
        )
    else:
        methods = options.read_methods(args, rest)
        scalings = [method for method in methods if isinstance(method, RopeScaling)]
        scaling = scalings[0] if scalings else Unscaled()
        options.say_context(loading.read_context(path), scaling)
        options.say_bos(args.source, args.bos)
        export.convert(
            args.source,
            args.out,
            methods=methods,
            to=args.to,
            dtype=args.dtype,
            seq_len=args.seq_len,
            shards=args.shards,
            bos=args.bos,
            allow_shorter=args.allow_shorter,
            command=command_line(),
        )


def _checkpoint_card(source: str, method: str) -> dict[str, str]:
    """The facts for the card of a checkpoint."""
    from ctxext.interop.model_card import public_command, public_name
    from ctxext.rundir import command_line

    command = public_command(command_line())
    return {"base model": public_name(source), "method": method, "command": command}
