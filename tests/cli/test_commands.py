"""Every command has a help text of sentences, with an example."""

import pytest

from ctxext.cli.commands import all_commands
from ctxext.cli.main import main, parsers

COMMANDS = sorted(all_commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_has_a_summary_an_example_and_sentences(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, *rest = (all_commands()[name].__doc__ or "").splitlines()
    assert summary.endswith(".")
    assert len(summary) <= 100
    assert any(line.startswith(f"ctxext {name}") for line in rest)
    _, by_command = parsers()
    for action in by_command[name]._actions:
        if "-h" not in action.option_strings:
            assert action.help, action.dest
            assert action.help[0] == action.help[0].upper(), action.dest
            assert action.help.endswith("."), action.dest
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    assert summary in capsys.readouterr().out


def test_a_default_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert "add up to this. Default: 1.0." in capsys.readouterr().out


def test_options_and_arguments_may_come_in_any_order() -> None:
    _, by_command = parsers()
    arguments = ["a.py", "--train.steps", "4", "--init", "DIR", "--rope.factor=8", "--json"]
    known, unknown = by_command["run"].split(arguments)
    assert known == ["a.py", "--init", "DIR", "--json"]
    assert unknown == ["--train.steps", "4", "--rope.factor=8"]
