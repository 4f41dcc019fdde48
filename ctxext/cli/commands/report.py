"""Report on runs: verdict, tables, and one HTML page, computed again from their records.

ctxext report runs/mine
ctxext report runs/seed-* --seeds --plot seeds.svg
ctxext report runs/sweep

The directory of a sweep stands for its finished trials. Of several paths, those that are no runs,
such as logs, and runs that are not finished are left out, which is said.
"""

import argparse
import json
import sys
from pathlib import Path

from ctxext.cli import options

GROUP = "Measure"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        type=Path,
        help="Run directories, or the --out of a sweep for its finished trials.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="The page; default: report.html in RUN or in the sweep; for several runs, in the "
        "directory that they are in, or here if they are in several.",
    )
    parser.add_argument(
        "--seeds",
        action="store_true",
        help="The runs differ only in their seed: summarise their variants over the seeds.",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.svg|FILE.html",
        help="With --seeds: draw one dot per variant.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(args, rest)
    if args.plot and not args.seeds:
        raise ValueError(
            "--plot draws the variants of --seeds; the page of a run has its own charts"
        )
    from ctxext import report
    from ctxext.terminal import printable_line

    given = args.runs
    runs, unfinished = report.run_directories(given)
    if len(given) == 1 and runs != given:
        args.out = args.out or given[0] / "report.html"
    args.runs, left_out = report.choose_runs(runs)
    if unfinished:
        left_out.append(f"left out, not finished: {', '.join(unfinished)}")
    for line in left_out:
        print(printable_line(line), file=sys.stderr)
    if args.seeds:
        _report_seeds(args)
    else:
        _report_runs(args)


def _report_seeds(args: argparse.Namespace) -> None:
    from ctxext import report

    text = report.seeds_text(args.runs, plot=args.plot)
    print(json.dumps(report.seeds_data(args.runs)) if args.json else text)


def _report_runs(args: argparse.Namespace) -> None:
    from ctxext import report
    from ctxext.terminal import printable_line

    for line in report.repeated_seeds(args.runs):
        print(printable_line(line), file=sys.stderr)
    records = report.read_records(args.runs)
    if args.json:
        summary = report.summary(records)
        if expected := report.expectations_data(args.runs):
            summary["expected"] = expected
        print(json.dumps(summary), flush=True)
    else:
        lines = [*report.verdict(records), *report.expectations(args.runs)]
        print("\n".join([*lines, "", report.tables(records)]), flush=True)
    page = report.write_report(args.runs, args.out)
    print(f"\npage: {page}", file=sys.stderr if args.json else sys.stdout)
