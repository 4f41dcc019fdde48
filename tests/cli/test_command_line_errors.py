"""A wrong command line is one sentence that names the word and what was probably meant."""

import re

import pytest

import ctxext
from ctxext.cli.commands import GROUPS, all_commands
from ctxext.cli.main import main, parsers
from ctxext.nearest import hint, nearest
from support.command_line import argv

WRONG = {
    "": "no command is given; begin with: ctxext demo; see ctxext --help",
    "evl x": "there is no command 'evl'; did you mean eval? See ctxext --help",
    "zzz": "there is no command 'zzz'; see ctxext --help",
    "--verson": "unknown option --verson; see ctxext --help",
    "eval": "missing: RUN|HF_DIR; see ctxext eval --help",
    "prepare x": "missing: --out, --tokenizer; see ctxext prepare --help",
    "eval x y": "unexpected argument y; see ctxext eval --help",
    "eval x -v": "unknown option -v; see ctxext eval --help",
    "eval x --seq-len": "--seq-len needs a value: N; see ctxext eval --help",
    "eval x --compute-dtype": "--compute-dtype needs a value: float32 or bfloat16; see ctxext eval",
    "eval x --json=3": "--json takes no value, got '3'; see",
    "eval x --seq-len four": "--seq-len: must be a whole number, got 'four'; see ctxext eval",
    "generate x --prompt a --prompt-file b": "--prompt-file and --prompt exclude each other; leave",
    "generate tiny-lama --prompt a": "tiny-lama does not exist; did you mean 'tiny-llama'? Or give",
    "export x --out o --to huf": "--to: 'huf' is unknown; did you mean hf? Known: hf, meta, gguf",
    "eval x --methd yarn --factor 4": "unknown option --methd; did you mean --method?",
    "eval x --factor 4 --methd yarn": "unknown option --methd; did you mean --method?",
    "eval x --seqlen 4": "unknown option --seqlen; did you mean --seq-len?",
    "eval x --method yarn --factr 4": "unknown option --factr; did you mean --factor?",
    "eval x --method yran --factor 4": "there is no method 'yran'; did you mean 'yarn'?",
    "eval x --evals paskey": "there is no evaluation 'paskey'; did you mean 'passkey'?",
    "eval x --zzz": "unknown option --zzz; the fields of a method are options after --method NAME",
    "generate x --max-new-token 3": "unknown option --max-new-token; did you mean --max-new-token",
    "rope yarn --fctor 4": "unknown option --fctor; did you mean --factor?",
    "report x --sedes": "unknown option --sedes; did you mean --seeds?",
    "bench --parts stp": "there is no benchmark 'stp'; did you mean 'step'?",
    "ruler tiny-llama --seq-len 512 --out o --tasks qa1": "RULER has no task qa1; did you mean",
    # An unknown option before the only argument takes it for its value.
    "run --rsume x.py": "unknown option --rsume; did you mean --resume? See ctxext run --help",
    "run --quiet x.py": "unknown option --quiet; see ctxext run --help",
    "run --factor 4 x.py": "missing: EXPERIMENT; give it first, as the words after --factor are",
    "run EXPERIMENT --train.stepz 4": "unknown option --train.stepz; did you mean --train.steps?",
    "run EXPERIMENT --run-dri x": "unknown option --run-dri; did you mean --run-dir?",
    "run EXPERIMENT --track wandbb": "--track: there is no tracker 'wandbb'; did you mean 'wandb'?",
    "run EXPERIMENT --export.to gfuf": "there is no format 'gfuf'; did you mean 'gguf'?",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_said_in_one_line(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(argv(line.replace("EXPERIMENT", ctxext.__path__[0] + "/demo.py")))
    except SystemExit as exit_:
        status = exit_.code
    out, err = capsys.readouterr()
    assert status == 2
    assert err.startswith(f"ctxext: {WRONG[line]}")
    assert err.count("\n") == 1
    assert not out
    assert list(tmp_path.iterdir()) == []


def test_the_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"ctxext {ctxext.__version__}\n"


def test_help_lists_every_command_once_in_its_group_with_an_example(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    groups = re.findall(r"^(\S.*):\n((?:  .*\n)+)", text, re.MULTILINE)
    assert [name for name, _ in groups] == list(GROUPS)
    listed = [re.findall(r"^  (\w+)", lines, re.MULTILINE) for _, lines in groups]
    commands = all_commands()
    assert sorted(sum(listed, [])) == sorted(commands)
    for name, command in commands.items():
        assert name in listed[GROUPS.index(command.GROUP)]
        assert re.search(rf"^ +ctxext {name}\b", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100


def test_resume_is_an_option_of_every_command_that_goes_on_where_it_stopped():
    _, by_command = parsers()
    resumed = {name for name, parser in by_command.items() if "resume" in parser.option_names}
    assert resumed == {"demo", "run", "train", "sweep", "eval", "prepare"}
    assert all(hasattr(all_commands()[name], "KEPT") for name in resumed)


OFF = (
    "--adapter --against --coordinator --cpu-isa --include-path --original --partition --plot "
    "--process-id --prompt --prompt-file --questions --ruler --seq-len --system"
)
"""Options that ask for something more: without them it is not done, or not needed."""


def test_every_other_option_with_a_value_says_its_default():
    _, by_command = parsers()
    without = {
        action.option_strings[0]
        for parser in by_command.values()
        for action in parser._actions
        if action.option_strings and action.nargs != 0 and not action.required
        if action.default in (None, [], "") and "default" not in (action.help or "").lower()
    }
    assert without == set(OFF.split())


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("yran", ["yarn", "ntk"], "yarn"),
        ("YaRN", ["yarn"], "yarn"),
        ("self_extend", ["Self-Extend", "string"], "Self-Extend"),
        ("zzz", ["yarn"], None),
        ("x", [], None),
    ],
)
def test_the_nearest_name(name, known, found):
    assert nearest(name, known) == found
    assert hint(name, known) == (
        f"did you mean {found!r}?" if found else f"known: {', '.join(known)}"
    )
