"""Read the command line, run one command, and turn bad input into one line."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ctxext.cli.commands import all_commands
from ctxext.cli.out_of_memory import is_out_of_memory, memory_advice
from ctxext.terminal import printable_output, warned_once


class Parser(argparse.ArgumentParser):
    """Prints errors as one line, and separates its options from those of methods and leaves."""

    def split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """(words for this parser, options that it does not know, each with the words after it)."""
        known: list[str] = []
        unknown: list[str] = []
        words_of_option = known
        for word in words:
            if word.partition("=")[0] in self._option_string_actions:
                words_of_option = known
            elif word.startswith("--"):
                words_of_option = unknown
            words_of_option.append(word)
        return known, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ctxext: {message}; see {self.prog} --help\n")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description, and adds the default to the help of an option."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        is_unset = default in (None, "", [], argparse.SUPPRESS) or default is False
        if not action.help or not action.option_strings or is_unset:
            return action.help
        text = "%(default)s"
        if isinstance(default, list):
            text = " ".join(default)
        elif default is True:
            text = action.option_strings[0]
        return f"{action.help} Default: {text}."


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and that of each command."""
    root = Parser(
        "ctxext",
        description="Stretch the context window of Llama models, and know whether it worked.",
        epilog="Begin with: ctxext demo",
        allow_abbrev=False,
    )
    subparsers = root.add_subparsers(metavar="COMMAND", required=True)
    by_command: dict[str, Parser] = {}
    for name, command in all_commands().items():
        title, _, description = (command.__doc__ or "").partition("\n")
        subparser = subparsers.add_parser(
            name,
            help=title,
            description=f"{title}\n{description}".rstrip(),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        subparser.set_defaults(command=command)
        command.add_options(subparser)
        by_command[name] = subparser
    return root, by_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Bad input prints one line and returns 2; Ctrl-C returns 130.

    Too little memory prints one line too, and returns 1.
    """
    with printable_output(), warned_once():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    root, by_command = parsers()
    if not words or words[0] not in by_command:
        root.parse_args(words)  # prints the help or an error, and exits
    command_parser = by_command[words[0]]
    known, rest = command_parser.split(words[1:])
    args = command_parser.parse_args(known)
    from ctxext.cli import compile_cache
    from ctxext.parallel import distributed

    compile_cache.keep_programs()
    return distributed.exit_if_failed(_run(args, rest, words))


def _run(args: argparse.Namespace, rest: list[str], words: Sequence[str]) -> int:
    from ctxext.child_python import safe_path
    from ctxext.cli.heartbeat import sign_of_life
    from ctxext.files import following_links
    from ctxext.parallel import distributed

    try:
        if hasattr(args, "coordinator"):
            distributed.initialize(args.coordinator, args.num_processes, args.process_id)
        with contextlib.ExitStack() as stack:
            stack.enter_context(sign_of_life(words[0]))
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
    except KeyboardInterrupt:
        print(_interrupted(args.command, words), file=sys.stderr)
        return 130


def _interrupted(command: Any, words: Sequence[str]) -> str:
    """The line that says which work is kept after Ctrl-C, and how to continue."""
    kept = getattr(command, "KEPT", None)
    if kept is None:
        return "ctxext: interrupted: nothing is kept, and no file was left half-written"
    return f"ctxext: interrupted: {kept}; go on with: {shlex.join(['ctxext', *words])}"


def _one_line(error: ValueError | OSError) -> str:
    """The message of an error; that of the system names the file first, and no number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(text.split())
