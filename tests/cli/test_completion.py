"""What the scripts complete, asked in the shells themselves where they are installed."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from ctxext.cli.completion import SHELLS, words_of
from ctxext.cli.main import main, parsers

ASK = {
    "bash": 'COMP_LINE={line}; COMP_POINT=${{#COMP_LINE}}; _ctxext; echo "${{COMPREPLY[@]}}"',
    "zsh": "words=({words}); CURRENT=$#words; _ctxext",
    "fish": "complete -C {line}",
}
"""How each shell is asked for what may stand at the end of a line."""
BEFORE = {
    "bash": "",
    "zsh": "compdef() {}; _files() {}; compadd() { shift; print -l -- ${(M)@:#$words[-1]*} }",
    "fish": "",
}
COMPLETED = {
    "ctxext ev": ["eval"],
    "ctxext report runs/mine --se": ["--seeds"],
    "ctxext run x.py --train.ste": ["--train.steps"],
    "ctxext eval x --method yarn --beta-f": ["--beta-fast"],
    "ctxext eval x --method yar": ["yarn"],
    "ctxext rope yar": ["yarn"],
    "ctxext export x --to ggu": ["gguf"],
    "ctxext eval x --json --evals passkey ppl:tok": ["ppl:token"],
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("completion")
    words = words_of(parsers()[1])
    for shell, write in SHELLS.items():
        (place / shell).write_text(write(words))
    return place


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_what_commands_take(shell: str, scripts: Path):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    lines = [BEFORE[shell], f"source {scripts / shell}"]
    for line in COMPLETED:
        words = " ".join(map(shlex.quote, line.split()))
        lines += [f"echo '> {line}'", ASK[shell].format(line=shlex.quote(line), words=words)]
    done = subprocess.run(
        [program, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    asked = done.stdout.split("> ")[1:]
    found = {block.partition("\n")[0]: block.partition("\n")[2].split() for block in asked}
    # Bash completes what follows a colon, and fish adds what a command does.
    for line, expected in COMPLETED.items():
        assert found[line][0] in (*expected, expected[0].rpartition(":")[2]), line
        assert shell == "fish" or len(found[line]) == 1, line


def test_the_command_prints_a_script(capsys):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out.endswith("complete -o default -F _ctxext ctxext\n")
