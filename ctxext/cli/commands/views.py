"""What is only looked at: reports, methods, frequencies, benchmark samples."""

import argparse
import json
import sys

from ctxext.cli.commands.shared import refuse_rest


def report(args: argparse.Namespace, rest: list[str]) -> None:
    refuse_rest(rest)
    from ctxext import report as module

    if args.seeds:
        tasks = module.across_seeds(args.runs, args.plot)
        print(
            json.dumps([task.data for task in tasks])
            if args.json
            else "\n\n".join(task.text for task in tasks)
        )
        return
    if args.plot:
        raise ValueError(
            "--plot draws the variants of --seeds; the page of a run has its own charts"
        )
    rows, expected = module.read_rows(args.runs), module.expectations(args.runs)
    if args.json:
        also = {"expected": [x.data for x in expected]} if expected else {}
        print(json.dumps(module.summary(rows) | also), flush=True)
    else:
        said = [*module.verdict(rows), *(x.text for x in expected)]
        print("\n".join([*said, "", module.tables(rows)]), flush=True)
    page = module.write_report(args.runs, args.out)
    print(f"\npage: {page}", file=sys.stderr if args.json else sys.stdout)


def ruler(args: argparse.Namespace, rest: list[str]) -> None:
    refuse_rest(rest)
    from ctxext import loading
    from ctxext.evals.ruler_reference import TASKS, prepare

    tokenizer = loading.open_tokenizer(args.source)
    prepare(args.out, tokenizer, seq_len=args.seq_len, n=args.n, tasks=args.tasks or TASKS)
    print(
        f"wrote {args.out}; ask them with: ctxext eval {args.source} --evals ruler:reference --ruler {args.out}"
    )


def dashboard(args: argparse.Namespace, rest: list[str]) -> None:
    refuse_rest(rest)
    from ctxext.tracking import dashboard as module

    if args.json:
        print(json.dumps(module.as_json(args.project, args.entity)))
    else:
        print(module.save(args.project, args.entity))


def methods(args: argparse.Namespace, rest: list[str]) -> None:
    refuse_rest(rest)
    from ctxext.cli.methods_table import methods_table

    print(methods_table(as_json=args.json))


def rope(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext.cli import methods_table
    from ctxext.cli.overrides import make_methods, parse_fields

    view = methods_table.RopeView.of(
        make_methods(args.names, parse_fields(rest)),
        args.head_dim,
        args.theta,
        args.original,
        args.seq_len,
    )
    page = view.plot(args.plot) if args.plot else None
    print(view.json() if args.json else view.text(), flush=True)
    if page:
        print(f"\nplot: {page}", file=sys.stderr if args.json else sys.stdout)
