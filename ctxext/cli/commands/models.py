"""What is done with a run or a checkpoint: evaluate, export, prove, import, generate."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from ctxext.cli.commands.shared import open_model, read_mesh, read_methods, refuse_rest


def evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import evaluate as module
    from ctxext import report
    from ctxext.data import haystack
    from ctxext.evals.suite import SuiteConfig

    chosen = read_methods(args, rest)
    asked = SuiteConfig(
        (), args.budget, haystack(args.haystack), args.questions, args.ruler, args.wording
    )
    sink, rows = module.evaluate_checkpoint(
        args.source,
        adapter=args.adapter,
        checkpoint=args.checkpoint,
        methods=[chosen or None],
        evals=args.evals,
        seq_lens=args.seq_len,
        asked=asked,
        out=args.out,
        part=module.Part.parse(args.part),
        dtype=args.compute_dtype,
        mesh=read_mesh(args),
        trust=args.trust_run,
    )
    print(
        json.dumps(report.summary(rows)) if args.json else f"{report.tables(rows)}\n\nrows: {sink}"
    )


def harness(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext.harness import tasks as module

    request = module.Request(
        tuple(args.tasks),
        args.include_path,
        args.limit,
        args.num_fewshot,
        args.max_length,
        args.seed,
    )
    found = module.report(
        module.Asked.load(
            args.source,
            methods=read_methods(args, rest),
            adapter=args.adapter,
            dtype=args.compute_dtype,
            mesh=read_mesh(args),
            trust=args.trust_run,
        ),
        request,
        against=args.against,
    )
    where = found.save(args.out)
    print(json.dumps(found.data) if args.json else f"{found.text}\n\nresults and samples: {where}")


def export(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import export as module
    from ctxext import loading

    if args.to == "peft":
        if (
            rest
            or args.method
            or args.attention
            or args.adapter
            or args.dtype
            or args.seq_len
            or args.shards
        ):
            raise ValueError(
                "--to peft writes what a run trained, as it is, in float32; it takes --base and --out"
            )
        module.export_adapter(
            args.source,
            args.out,
            base=args.base,
            checkpoint=args.checkpoint,
            mesh=read_mesh(args),
            trust=args.trust_run,
        )
        print(f"wrote {args.out}")
        return
    if args.base:
        raise ValueError("--base belongs to --to peft")
    if args.adapter or loading.is_run(loading.locate(args.source)):
        seq_len = args.seq_len or (None if args.method else loading.declared_window(args.source))
        module.export(
            open_model(args, rest),
            args.out,
            to=args.to,
            dtype=args.dtype or "bfloat16",
            seq_len=seq_len,
            shards=args.shards,
        )
    else:
        module.convert(
            args.source,
            args.out,
            methods=read_methods(args, rest),
            to=args.to,
            dtype=args.dtype,
            seq_len=args.seq_len,
            shards=args.shards,
        )
    source = [
        "--against",
        args.source,
        *(x for name in args.method or () for x in ("--method", name)),
        *rest,
    ]
    words = ["ctxext", "prove", args.out, *(source if args.to == "gguf" else ())]
    print(
        f"wrote {args.out}; check it with: {shlex.join(words)}"
        if not args.adapter
        else f"wrote {args.out}"
    )


def prove(args: argparse.Namespace, rest: list[str]) -> int:
    from ctxext import prove as module
    from ctxext.cli.overrides import make_methods, parse_fields

    proof = module.prove(
        Path(args.source),
        against=args.against,
        checkpoint=args.checkpoint,
        original=args.original,
        methods=make_methods(args.method or [], parse_fields(rest)),
    )
    print(json.dumps(proof) if args.json else module.describe(proof))
    return 0 if proof["equal"] else 1


def import_(args: argparse.Namespace, rest: list[str]) -> None:
    refuse_rest(rest)
    from ctxext import export as module

    module.convert(args.source, args.out, dtype=args.dtype, original=args.original)
    print(f"wrote {args.out}")


def generate(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext.cli import generate as module

    if not args.chat and (args.chat_template or args.system):
        raise ValueError("--chat-template and --system belong to --chat")
    talk = (
        args.chat
        and not args.json
        and args.prompt is args.prompt_file is None
        and sys.stdin.isatty()
    )
    asked = module.typed() if talk else [module.read_prompt(args.prompt, args.prompt_file)]
    lm = open_model(args, rest)
    writer = module.Writer(
        lm,
        module.stop_ids(lm, args.source),
        args.max_new_tokens,
        args.temperature,
        args.top_p,
        args.seed,
        quiet=args.json,
    )
    found = (
        writer.converse(asked, args.system, args.chat_template)
        if args.chat
        else writer.go_on(*asked)
    )
    if args.json:
        print(json.dumps(found.data))


def bench(args: argparse.Namespace, rest: list[str]) -> None:
    refuse_rest(rest)
    from ctxext import bench as module
    from ctxext.bench import tables

    if args.plot and "memory" not in args.parts:
        raise ValueError("--plot draws time and memory against the length; add memory to --parts")
    figures = module.measure(args.source, args.parts, against=args.against, rounds=args.rounds)
    print(json.dumps(figures) if args.json else tables.describe(figures), flush=True)
    for page in tables.plot(figures, args.plot) if args.plot else ():
        print(f"plot: {page}", file=sys.stderr)
