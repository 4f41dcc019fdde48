"""Scripts that let a shell complete commands, options, and the names that options take.

They are written from the parsers of the commands, and hold all words: completing starts no Python.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Iterable, Mapping

from ctxext.cli import flags, known_fields
from ctxext.cli.parser import Parser
from ctxext.methods import all_methods

POSITIONAL = ""
"""Stands for the words that belong to no option."""
METHODS_FIRST = ("audit", "rope")
"""Commands whose words that belong to no option are methods."""


@dataclasses.dataclass(frozen=True)
class Words:
    """The options of a command, and the possible values of those that have only a few."""

    summary: str
    options: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]
    """Of an option, or of POSITIONAL. Where there are none, files are completed."""


def words_of(parsers: Mapping[str, Parser]) -> dict[str, Words]:
    """The words of every command, by its name."""
    methods = tuple(sorted(all_methods()))
    by_command = {}
    for name, parser in parsers.items():
        options: list[str] = []
        values: dict[str, tuple[str, ...]] = {}
        for action in parser._actions:
            options += action.option_strings
            chosen = methods if "--method" in action.option_strings else _choices(action)
            if chosen:
                values |= dict.fromkeys(action.option_strings or [POSITIONAL], chosen)
        if name in METHODS_FIRST:
            values[POSITIONAL] = methods
        fields: list[str] = []
        if "--method" in options:
            fields += known_fields.method_fields()
        if "--run-dir" in options or " EXPERIMENT" in parser.format_usage():
            fields += known_fields.experiment_fields()
        summary = (parser.description or "").partition("\n")[0]
        every_option = dict.fromkeys([*options, *map(flags.option, fields)])
        by_command[name] = Words(summary, tuple(every_option), values)
    return by_command


def _choices(action: argparse.Action) -> tuple[str, ...]:
    return tuple(map(str, action.choices or ()))


def bash(commands: Mapping[str, Words]) -> str:
    """A script for bash. A colon separates words there, so that it is put back by hand."""
    return "\n".join(
        [
            "# Completion of ctxext for bash.",
            "_ctxext() {",
            '    local line="${COMP_LINE:0:COMP_POINT}"',
            "    local -a typed",
            '    read -ra typed <<< "$line"',
            '    [[ $line == *[[:space:]] ]] && typed+=("")',
            "    local count=${#typed[@]}",
            '    local current="${typed[count-1]}" option="" words="" i',
            *_chosen_words('"${typed[1]}"', "count > 2", "${typed[i]}", "count - 2", "1", commands),
            '    local colons="${current%"${current##*:}"}"',
            '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
            '    COMPREPLY=("${COMPREPLY[@]#"$colons"}")',
            "}",
            "complete -o default -F _ctxext ctxext",
            "",
        ]
    )


def zsh(commands: Mapping[str, Words]) -> str:
    """A script for zsh, also as a file called _ctxext in a directory of its fpath."""
    return "\n".join(
        [
            "#compdef ctxext",
            "_ctxext() {",
            '    local current="${words[CURRENT]}" option="" found="" i',
            "    local -a typed",
            '    typed=("${(@)words[1,CURRENT]}")',
            *[
                line.replace("words=", "found=").replace("$words", "$found")
                for line in _chosen_words(
                    '"${typed[2]}"', "CURRENT > 2", "${typed[i]}", "CURRENT - 1", "2", commands
                )
            ],
            "    if [[ -n $found ]]; then",
            "        compadd -- ${=found}",
            "    else",
            "        _files",
            "    fi",
            "}",
            'if [[ "$funcstack[1]" == _ctxext ]]; then',
            '    _ctxext "$@"',
            "else",
            "    compdef _ctxext ctxext",
            "fi",
            "",
        ]
    )


def _chosen_words(
    command: str, after: str, word: str, last: str, first: str, commands: Mapping[str, Words]
) -> list[str]:
    """Lines, in the language that bash and zsh share, which set `words` to what may come next."""
    lines = [
        f"    if (({after})); then",
        f"        for ((i = {last}; i > {first}; i--)); do",
        f'            if [[ "{word}" == --* ]]; then option="{word}"; break; fi',
        "        done",
        "    else",
        f"        words={_quoted(commands)}",
        "    fi",
        f"    if (({after})) && [[ $current == -* ]]; then",
        f"        case {command} in",
        *(f"        {name}) words={_quoted(one.options)} ;;" for name, one in commands.items()),
        "        esac",
        f"    elif (({after})); then",
        f'        case {command}" $option" in',
    ]
    for name, one in commands.items():
        for option, values in one.values.items():
            lines.append(f"        {_quoted([name, option])}) words={_quoted(values)} ;;")
    return [*lines, "        esac", "    fi"]


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


LAST_OPTION = """
function __ctxext_option
    for word in (commandline -opc)[-1..1]
        if string match -q -- '--*' $word
            echo -- $word
            return
        end
    end
    echo none
end
"""
"""A function for fish that prints the option whose values are typed, none before the first."""


def fish(commands: Mapping[str, Words]) -> str:
    """A script for fish."""
    first = "complete -c ctxext -n __fish_use_subcommand -f"
    lines = ["# Completion of ctxext for fish.", LAST_OPTION]
    for name, one in commands.items():
        lines.append(f"{first} -a {name} -d {shlex.quote(one.summary)}")
        after = f"__fish_seen_subcommand_from {name}"
        for option in one.options:
            if option.startswith("--"):
                values = one.values.get(option)
                takes = f" -x -a {_quoted(values)}" if values else ""
                lines.append(f"complete -c ctxext -n {shlex.quote(after)} -l {option[2:]}{takes}")
        # For fish, an option has one value: here are those after the first, and those of none.
        for option, values in one.values.items():
            last = f"{after}; and string match -q -- {option or 'none'} (__ctxext_option)"
            lines.append(f"complete -c ctxext -n {shlex.quote(last)} -f -a {_quoted(values)}")
    return "\n".join([*lines, ""])


SHELLS: dict[str, Callable[[Mapping[str, Words]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""The function that writes the script of each shell."""
