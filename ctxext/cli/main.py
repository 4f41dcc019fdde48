"""The command line: reads it, runs one command, and turns bad input into one line."""

import argparse
import os
import sys
from collections.abc import Sequence

from ctxext.cli.arguments import parser
from ctxext.cli.commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Bad input prints one line and returns 2; Ctrl-C returns 130."""
    args, rest = parser().parse_known_args(argv)
    from ctxext.cli import compilation
    from ctxext.parallel import distributed

    compilation.keep_programs()

    return distributed.exit_with(_run(args, rest))


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    from ctxext.parallel import distributed

    try:
        if hasattr(args, "coordinator"):
            distributed.initialize(args.coordinator, args.num_processes, args.process_id)
        return COMMANDS[args.command](args, rest) or 0
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if os.environ.get("CTXEXT_TRACEBACK"):
            raise
        distributed.unmute()
        print(f"ctxext: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:
        if not distributed.is_initialized() or os.environ.get("CTXEXT_TRACEBACK"):
            raise
        distributed.unmute()  # in most cases another process has failed, and says why itself
        print(
            f"ctxext: process {distributed.process_index()}: {type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("ctxext: interrupted", file=sys.stderr)
        return 130
