"""Save the wandb workspace of a project and print its address. Needs the extra dashboard.

ctxext dashboard --project ctxext
ctxext dashboard --json > dashboard.json        (offline)
"""

import argparse
import json
import os

from ctxext.cli import options

GROUP = "Measure"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--project",
        default=os.environ.get("WANDB_PROJECT", "ctxext"),
        metavar="NAME",
        help="The wandb project.",
    )
    parser.add_argument(
        "--entity",
        default=os.environ.get("WANDB_ENTITY", ""),
        metavar="NAME",
        help="The wandb user or team; default: yours.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(args, rest)
    from ctxext.tracking import dashboard

    if args.json:
        print(json.dumps(dashboard.as_json(args.project, args.entity)))
    else:
        print(dashboard.save(args.project, args.entity))
