"""List every method: seam, paper, fields, and the formats that can represent it.

ctxext methods
"""

import argparse

from ctxext.cli import options

GROUP = "Methods"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(args, rest)
    from ctxext.cli.method_list import method_list

    print(method_list(as_json=args.json))
