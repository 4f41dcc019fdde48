"""Read the command line, run one command, and turn bad input into one line."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import ctxext
from ctxext.cli.commands import all_commands
from ctxext.cli.out_of_memory import is_out_of_memory, memory_advice
from ctxext.cli.overview import Overview
from ctxext.cli.parser import HelpFormatter, Parser
from ctxext.terminal import printable_output, warned_once


def parsers() -> tuple[Overview, dict[str, Parser]]:
    """The parser of the whole command line, and that of each command."""
    root = Overview("ctxext", allow_abbrev=False, add_help=False)
    root.add_argument("--help", "-h", action="help", help="Print this help.")
    root.add_argument("--version", action="version", version=f"ctxext {ctxext.__version__}")
    by_command: dict[str, Parser] = {}
    for name, command in all_commands().items():
        parser = Parser(
            f"ctxext {name}",
            description=(command.__doc__ or "").rstrip(),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(command=command)
        command.add_options(parser)
        by_command[name] = parser
    return root, by_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Bad input prints one line and returns 2; Ctrl-C returns 130, SIGTERM 143.

    Too little memory prints one line too, and returns 1.
    """
    with printable_output(), warned_once():
        try:
            return _main(argv)
        except KeyboardInterrupt:
            print("ctxext: interrupted before it had begun", file=sys.stderr)
            return 130


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    root, by_command = parsers()
    if not words or words[0] not in by_command:
        root.choose(words, by_command)  # prints the help or an error, and exits
    command_parser = by_command[words[0]]
    known, rest = command_parser.split(words[1:])
    args = command_parser.read(known, rest)
    from ctxext.cli import compile_cache
    from ctxext.parallel import distributed

    compile_cache.keep_programs()
    return distributed.exit_if_failed(_run(args, rest, words))


def _run(args: argparse.Namespace, rest: list[str], words: Sequence[str]) -> int:
    from ctxext.child_python import safe_path
    from ctxext.cli.heartbeat import sign_of_life
    from ctxext.cli.termination import Terminated, terminated_as_interrupted
    from ctxext.files import following_links
    from ctxext.parallel import distributed

    try:
        if hasattr(args, "coordinator"):
            distributed.initialize(args.coordinator, args.num_processes, args.process_id)
        with contextlib.ExitStack() as stack:
            subject = words[1] if len(words) > 1 and not words[1].startswith("-") else ""
            stack.enter_context(sign_of_life(words[0], subject))
            stack.enter_context(terminated_as_interrupted())
            stack.enter_context(safe_path())
            if getattr(args, "follow_links", False):
                stack.enter_context(following_links())
            return args.command.run(args, rest) or 0
    except BrokenPipeError:
        # Whoever reads our output, such as head, has stopped reading.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if os.environ.get("CTXEXT_TRACEBACK"):
            raise
        distributed.unmute()
        print(f"ctxext: {_one_line(error)}", file=sys.stderr)
        return 2
    except Exception as error:
        if is_out_of_memory(error) and not os.environ.get("CTXEXT_TRACEBACK"):
            distributed.unmute()
            print(f"ctxext: {memory_advice(args.command.__name__, error)}", file=sys.stderr)
            return 1
        if not distributed.is_initialized() or os.environ.get("CTXEXT_TRACEBACK"):
            raise
        # In most cases another process has failed and prints the reason itself.
        distributed.unmute()
        message = f"process {distributed.process_index()}: {type(error).__name__}: {error}"
        print(f"ctxext: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(_interrupted(args.command, words), file=sys.stderr)
        return 143 if isinstance(interrupt, Terminated) else 130


def _interrupted(command: Any, words: Sequence[str]) -> str:
    """The line that says which work is kept after Ctrl-C or SIGTERM, and how to continue."""
    kept = getattr(command, "KEPT", None)
    line = shlex.join(["ctxext", *words])
    if kept is None:
        nothing = "nothing is kept, and no file was left half-written"
        return f"ctxext: interrupted: {nothing}; begin again with: {line}"
    return f"ctxext: interrupted: {kept}; go on with: {line}"


def _one_line(error: ValueError | OSError) -> str:
    """The message of an error; that of the system names the file first, and no number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(text.split())
