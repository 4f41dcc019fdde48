"""Print a script that lets bash, zsh or fish complete commands, options and names.

ctxext completion bash > ~/.local/share/bash-completion/completions/ctxext
ctxext completion zsh > ~/.zfunc/_ctxext
ctxext completion fish > ~/.config/fish/completions/ctxext.fish

zsh looks where fpath says: fpath=(~/.zfunc $fpath) comes before compinit in ~/.zshrc. Print it
again after an update, as it holds the names of methods and options.
"""

import argparse

from ctxext.cli import options

GROUP = "Shell"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=["bash", "zsh", "fish"], help="The shell that reads the script."
    )


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(args, rest)
    from ctxext.cli.completion import SHELLS, words_of
    from ctxext.cli.main import parsers

    print(SHELLS[args.shell](words_of(parsers()[1])), end="")
