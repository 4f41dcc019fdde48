"""Run the whole way on the bundled model: train, evaluate, export, prove, report.

ctxext demo

It takes minutes. The experiment is ctxext/demo.py; its leaves are options, as in `ctxext run`.
"""

import argparse

from ctxext.cli import options
from ctxext.cli.commands import run as run_command

GROUP = "Train"
KEPT = "every finished record and checkpoint is kept"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_method(parser)
    options.add_budget(parser)
    options.add_run(parser)
    parser.set_defaults(init=None, trial=None, trust_run=False)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    from ctxext import demo

    args.experiment = demo.__file__
    return run_command.run(args, rest)
