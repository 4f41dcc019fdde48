"""Every command has a help text of sentences, with an example."""

import argparse

import pytest

from ctxext.cli.commands import all_commands
from ctxext.cli.main import main, parsers
from ctxext.evals.published_passkeys import PROTOCOLS
from ctxext.evals.suite import STANDARD

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
    """Also one of 0, which is the default of a temperature, a seed and a share."""

    def help_of(command: str) -> str:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        return " ".join(capsys.readouterr().out.split())

    text = help_of("generate")
    assert "add up to this. Default: 1.0." in text
    assert "whatever generation_config.json says. Default: 0.0." in text
    assert "The seed of sampling. Default: 0." in text
    text = help_of("prepare")
    assert "the hash of a document decides; 0 for none. Default: 0.01." in text
    assert "End each document with EOS. Default: --eos." in text
    text = help_of("eval")
    assert all(f"passkey:{name}" in text for name in PROTOCOLS)
    assert f"Default: {' '.join(STANDARD)}." in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_default_that_is_a_number_or_a_word_is_shown(name: str) -> None:
    _, by_command = parsers()
    parser = by_command[name]
    formatter = parser._get_formatter()
    for action in parser._actions:
        default = action.default
        if (
            action.option_strings
            and isinstance(default, int | float | str)
            and default is not False
        ):
            shown = formatter._expand_help(action)
            is_hidden = default == argparse.SUPPRESS or default == ""
            assert is_hidden or shown.endswith((f"Default: {default}.", "Default: --eos.")), shown
            assert shown.lower().count("default:") <= 1, shown


def test_options_and_arguments_may_come_in_any_order() -> None:
    _, by_command = parsers()
    arguments = ["a.py", "--train.steps", "4", "--init", "DIR", "--rope.factor=8", "--json"]
    known, unknown = by_command["run"].split(arguments)
    assert known == ["a.py", "--init", "DIR", "--json"]
    assert unknown == ["--train.steps", "4", "--rope.factor=8"]
