"""What every command does: thin, and everything heavy is imported when it runs."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _experiment(args: argparse.Namespace, rest: list[str]) -> Any:
    """The experiment file with --init, --method and leaf overrides applied."""
    from ctxext import door
    from ctxext.experiment import BUNDLED, load_experiment
    from ctxext.interop import hf
    from ctxext.overrides import override, swap_method

    init = args.init or BUNDLED
    experiment = load_experiment(args.experiment, lambda: hf.read_config(door.locate(init))[0])
    if args.init:
        rest = ["--init", args.init, *rest]
    for name in args.method or ():
        experiment = swap_method(experiment, name, rest)
    return override(experiment, rest)


def _inspect(args: argparse.Namespace, experiment: Any) -> bool:
    """Serve --print-config and --dry-run; True if one of them was asked for."""
    from ctxext import door
    from ctxext.experiment import to_json

    if args.print_config:
        print(json.dumps(to_json(experiment), indent=2))
    if args.dry_run:
        from ctxext.dryrun import dry_run

        config, scaling = door.base_config(experiment)
        print(dry_run(experiment, config, scaling))
    return args.print_config or args.dry_run


def run(args: argparse.Namespace, rest: list[str]) -> None:
    experiment = _experiment(args, rest)
    if not _inspect(args, experiment):
        from ctxext import pipeline as module

        result = module.run(experiment, run_dir=args.run_dir, file=args.experiment, wandb=not args.no_wandb)
        print(json.dumps(result.summary) if args.json else result.text)


def demo(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import demo as module

    args.experiment, args.init, args.method = module.__file__, None, None
    run(args, rest)


def train(args: argparse.Namespace, rest: list[str]) -> None:
    experiment = _experiment(args, rest)
    if not _inspect(args, experiment):
        from ctxext import pipeline as module

        path = module.train_only(experiment, args.run_dir, file=args.experiment, wandb=not args.no_wandb)
        print(json.dumps({"run": str(path)}) if args.json else f"run directory: {path}")


def plan(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import door
    from ctxext.plan.view import Plan

    experiment = _experiment(args, rest)
    found = Plan.of(experiment, *door.base_config(experiment), on=args.topology, compiled=args.compile,
                    precise=args.precise, searched=args.search)  # fmt: skip
    print(found.json() if args.json else found.text())


def _methods(args: argparse.Namespace, rest: list[str]) -> tuple[Any, ...]:
    """The methods of --method and --attention, with their fields from the other options."""
    from ctxext.overrides import make_methods, parse_fields

    return make_methods([*(args.method or ()), *([args.attention] if args.attention else ())], parse_fields(rest))


def _open(args: argparse.Namespace, rest: list[str]) -> Any:
    """The model of SOURCE under those methods."""
    from ctxext import door

    return door.load(args.source, method=_methods(args, rest), adapter=args.adapter, checkpoint=args.checkpoint,
                     dtype=args.compute_dtype, mesh=_mesh(args), trust=args.trust_run)  # fmt: skip


def _mesh(args: argparse.Namespace) -> Any:
    from ctxext.sharding import Mesh

    return Mesh.parse(args.mesh)


def evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import evaluate as module
    from ctxext import report
    from ctxext.data import haystack
    from ctxext.suite import Choice

    chosen = _methods(args, rest)
    asked = Choice((), args.budget, haystack(args.haystack), args.questions, args.ruler, args.wording)
    sink, rows = module.evaluate_checkpoint(
        args.source, adapter=args.adapter, checkpoint=args.checkpoint, methods=[chosen or None], evals=args.evals,
        seq_lens=args.seq_len, asked=asked, out=args.out, part=module.Part.parse(args.part), dtype=args.compute_dtype,
        mesh=_mesh(args),
        trust=args.trust_run,
    )  # fmt: skip
    print(json.dumps(report.summary(rows)) if args.json else f"{report.tables(rows)}\n\nrows: {sink}")


def harness(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext.harness import tasks as module

    request = module.Request(tuple(args.tasks), args.include_path, args.limit, args.num_fewshot, args.max_length,
                             args.seed)  # fmt: skip
    found = module.report(module.Asked.load(args.source, methods=_methods(args, rest), adapter=args.adapter,
                                            dtype=args.compute_dtype, mesh=_mesh(args), trust=args.trust_run),
                          request, against=args.against)  # fmt: skip
    where = found.save(args.out)
    print(json.dumps(found.data) if args.json else f"{found.text}\n\nresults and samples: {where}")


def export(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import door
    from ctxext import export as module

    if args.to == "peft":
        if rest or args.method or args.attention or args.adapter or args.dtype or args.seq_len or args.shards:
            raise ValueError("--to peft writes what a run trained, as it is, in float32; it takes --base and --out")
        module.export_adapter(args.source, args.out, base=args.base, checkpoint=args.checkpoint, mesh=_mesh(args),
                              trust=args.trust_run)  # fmt: skip
        print(f"wrote {args.out}")
        return
    if args.base:
        raise ValueError("--base belongs to --to peft")
    if args.adapter or door.is_run(door.locate(args.source)):
        seq_len = args.seq_len or (None if args.method else door.declared_window(args.source))
        module.export(_open(args, rest), args.out, to=args.to, dtype=args.dtype or "bfloat16", seq_len=seq_len,
                      shards=args.shards)  # fmt: skip
    else:
        module.convert(args.source, args.out, methods=_methods(args, rest), to=args.to, dtype=args.dtype,
                       seq_len=args.seq_len, shards=args.shards)  # fmt: skip
    print(f"wrote {args.out}" + f"; check it with: ctxext prove {args.out}" * (args.to == "hf"))


def prove(args: argparse.Namespace, rest: list[str]) -> int:
    _refuse(rest)
    from ctxext import prove as module

    proof = module.prove(Path(args.source), against=args.against, checkpoint=args.checkpoint)
    print(json.dumps(proof) if args.json else module.describe(proof))
    return 0 if proof["equal"] else 1


def import_(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    from ctxext import export as module

    module.convert(args.source, args.out, dtype=args.dtype, original=args.original)
    print(f"wrote {args.out}")


def generate(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import answer as module

    if not args.chat and (args.chat_template or args.system):
        raise ValueError("--chat-template and --system belong to --chat")
    talk = args.chat and not args.json and args.prompt is args.prompt_file is None and sys.stdin.isatty()
    asked = module.typed() if talk else [module.read_prompt(args.prompt, args.prompt_file)]
    lm = _open(args, rest)
    writer = module.Writer(lm, module.stop_ids(lm, args.source), args.max_new_tokens, args.temperature, args.top_p,
                           args.seed, quiet=args.json)  # fmt: skip
    found = writer.converse(asked, args.system, args.chat_template) if args.chat else writer.go_on(*asked)
    if args.json:
        print(json.dumps(found.data))


def report(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    from ctxext import report as module

    if args.seeds:
        tasks = module.across_seeds(args.runs, args.plot)
        print(json.dumps([task.data for task in tasks]) if args.json else "\n\n".join(task.text for task in tasks))
        return
    if args.plot:
        raise ValueError("--plot draws the arms of --seeds; the page of a run has its own charts")
    rows = module.read_rows(args.runs)
    if args.json:
        print(json.dumps(module.summary(rows)), flush=True)
    else:
        print("\n".join([*module.verdict(rows), "", module.tables(rows)]), flush=True)
    page = module.write_report(args.runs, args.out)
    print(f"\npage: {page}", file=sys.stderr if args.json else sys.stdout)


def ruler(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    from ctxext import door
    from ctxext.evals.reference import TASKS, prepare
    from ctxext.tokenizer import load_tokenizer

    where = door.locate(args.source)
    tokenizer = load_tokenizer(where / "base" if door.is_run(where) else where)
    prepare(args.out, tokenizer, seq_len=args.seq_len, n=args.n, tasks=args.tasks or TASKS)
    print(f"wrote {args.out}; ask them with: ctxext eval {args.source} --evals ruler:reference --ruler {args.out}")


def bench(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    from ctxext import bench as module
    from ctxext import door

    figures = module.measure(door.load(args.source), args.parts)
    print(json.dumps(figures) if args.json else module.describe(figures))


def methods(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    from ctxext.listing import methods_table

    print(methods_table(as_json=args.json))


def rope(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import listing
    from ctxext.overrides import make_methods, parse_fields

    view = listing.RopeView.of(make_methods(args.names, parse_fields(rest)), args.head_dim, args.theta, args.original,
                               args.seq_len)  # fmt: skip
    page = view.plot(args.plot) if args.plot else None
    print(view.json() if args.json else view.text(), flush=True)
    if page:
        print(f"\nplot: {page}", file=sys.stderr if args.json else sys.stdout)


def _refuse(rest: list[str]) -> None:
    if rest:
        raise ValueError(f"unknown option {rest[0]}; see --help")


COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], Any]] = {
    "demo": demo, "run": run, "train": train, "plan": plan, "eval": evaluate, "harness": harness, "export": export,
    "prove": prove, "import": import_, "generate": generate, "report": report, "ruler": ruler, "bench": bench,
    "methods": methods, "rope": rope,
}  # fmt: skip
