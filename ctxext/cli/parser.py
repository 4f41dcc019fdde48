"""The parser of one command: its help, and what is wrong with a command line in one sentence."""

import argparse
import ast
import re
from collections.abc import Sequence
from typing import NoReturn

from ctxext.nearest import nearest


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

    def read(self, known: Sequence[str], rest: Sequence[str]) -> argparse.Namespace:
        """The values of what `split` found; exits with one line if they are wrong.

        The names of all options are in `option_names`, for suggestions.
        """
        self.exit_on_error = False
        try:
            args, others = self.parse_known_args(known)
        except argparse.ArgumentError as error:
            self.error(self._in_words(error))
        except _Missing as missing:
            self.error(_missing_in_words(missing, rest, self.option_names))
        if others:
            kind = "unknown option" if others[0].startswith("-") else "unexpected argument"
            self.error(f"{kind} {others[0]}")
        args.option_names = self.option_names
        return args

    @property
    def option_names(self) -> list[str]:
        """The names of the options as fields have them: "seq_len" for --seq-len."""
        return [
            option.removeprefix("--").replace("-", "_")
            for option in self._option_string_actions
            if option.startswith("--")
        ]

    def error(self, message: str) -> NoReturn:
        missing = re.fullmatch("the following arguments are required: (.*)", message)
        if missing:
            raise _Missing(missing[1])
        join = " See" if message.endswith("?") else "; see"
        self.exit(2, f"ctxext: {message}{join} {self.prog} --help\n")

    def _in_words(self, error: argparse.ArgumentError) -> str:
        """The message about a wrong value of an option."""
        name = error.argument_name or ""
        action = self._option_string_actions.get(name.partition("/")[0])
        missing = re.fullmatch("the following arguments are required: (.*)", error.message)
        if missing:
            raise _Missing(missing[1])
        if error.message.startswith("expected ") and action is not None:
            return f"{name} needs a value{_described(action)}"
        if value := re.match(r"ignored explicit argument ('.*')", error.message):
            return f"{name} takes no value, got {value[1]}"
        if other := re.fullmatch("not allowed with argument (.*)", error.message):
            return f"{name} and {other[1]} exclude each other; leave one of them out"
        value = re.match(r"invalid choice: ('.*?') \(", error.message)
        if value and action is not None and action.choices is not None:
            return _not_a_choice(name, ast.literal_eval(value[1]), [*map(str, action.choices)])
        return f"{name}: {error.message}" if name else error.message


class _Missing(Exception):
    """Arguments that a command needs and did not get, by their names in its help."""


def _missing_in_words(missing: _Missing, rest: Sequence[str], option_names: list[str]) -> str:
    """That an argument is missing, unless an unknown option has taken it for its value."""
    options = [word for word in rest if word.startswith("--")]
    if options and not any(".py:" in word for word in rest):
        from ctxext.cli.flags import parse_flags, unknown_option
        from ctxext.cli.known_fields import field_names

        fields = field_names()
        for flag in parse_flags(rest):
            if flag.name.rpartition(".")[2].removeprefix("no_") not in fields:
                return str(unknown_option(flag, option_names, ""))
    if options and len(rest) > len(options):
        return f"missing: {missing}; give it first, as the words after {options[-1]} are its values"
    return f"missing: {missing}"


def _described(action: argparse.Action) -> str:
    if action.choices is not None and not action.metavar:
        return f": {' or '.join(map(str, action.choices))}"
    return f": {action.metavar}" if action.metavar else ""


def _not_a_choice(name: str, value: str, choices: list[str]) -> str:
    close = nearest(value, choices)
    suggestion = f"did you mean {close}? " if close else ""
    return f"{name}: {value!r} is unknown; {suggestion}Known: {', '.join(choices)}"


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
