"""Missing text is reported before anything starts, with the command that makes it."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from ctxext import requirements
from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.data import Files, Mix, Stdlib, Upsampled
from ctxext.experiment import load_experiment
from ctxext.tokenization.tokenizer import load_tokenizer

RECIPES = Path(__file__).parents[1] / "experiments"
WORDS = "def window(tokens):\n    return tokens[-256:]\n"
FILE = """
from ctxext.data import Files
from ctxext.evals import RollingPerplexity
from ctxext.experiment import Experiment, Train
from ctxext.methods import Yarn
from ctxext.optim import Optim

experiment = Experiment(
    name="needy",
    init="tiny-llama",
    rope=Yarn(2.0),
    data=Files("long-text"),
    optim=Optim(learning_rate=1e-4),
    train=Train(steps=1, seq_len=128, batch_size=1), export=None,
    evals=(
        RollingPerplexity(
            (128,), "truncate", num_documents=3, min_tokens=500, source=Files("proof-pile")
        ),
    ),
)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needy.py").write_text(FILE)
    return tmp_path


def texts(folder: Path, *times: int) -> str:
    folder.mkdir()
    for number, n in enumerate(times):
        (folder / f"{number}.txt").write_text(WORDS * n)
    return str(folder)


def said(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that is refused."""
    assert main(command) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.check
def test_the_error_s_commands_make_what_is_missing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line names all that is missing; its commands, pasted, are all that a run needs."""
    source = texts(here / "books", 40, 60, 80)
    line = said(["run", "needy.py", "--no-wandb"], capsys)
    assert (
        "ppl:truncate reads proof-pile, which is not there: 3 documents of at least 500 tokens"
        in line
    )
    assert "data reads long-text, which is not there" in line
    assert "--data.path" in line
    assert not (here / "runs").exists()
    for part in line.split("which is not there")[1:]:
        command = part[part.index("ctxext prepare") :].split(", or name")[0].partition(";")[0]
        assert main([*shlex.split(command.replace("YOUR_TEXTS", source))[1:]]) == 0
    capsys.readouterr()
    assert main(["run", "needy.py", "--no-wandb"]) == 0


def test_training_alone_wants_its_own_text_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(["train", "needy.py", "--no-wandb"], capsys)
    assert "long-text" in line
    assert "proof-pile" not in line
    assert main(["train", "needy.py", "--no-wandb", "--data.path", texts(here / "mine", 40)]) == 0
    capsys.readouterr()
    assert "proof-pile" in said(["run", "needy.py", "--no-wandb", "--data.path", "mine"], capsys)


def test_prepared_tokens_that_do_not_fit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts(here / "long-text", 40)
    prepare = [
        "prepare",
        texts(here / "few", 40, 5, 60),
        "--out",
        "proof-pile",
        "--tokenizer",
        "tiny-llama",
    ]
    assert main(prepare) == 0
    capsys.readouterr()
    line = said(["run", "needy.py", "--no-wandb"], capsys)
    assert (
        "3 documents of at least 500 tokens from proof-pile, which has 2 of 3: prepare more text"
        in line
    )
    ids = [load_tokenizer(TINY_LLAMA).encode(WORDS * n) for n in (40, 5, 60)]
    assert sum(len(x) >= 500 for x in ids) == 2
    index = here / "proof-pile" / "index.json"
    index.write_text(index.read_text().replace(load_tokenizer(TINY_LLAMA).sha256, "0" * 64))
    assert "prepared with another tokenizer" in said(["run", "needy.py", "--no-wandb"], capsys)


def test_every_text_of_a_recipe_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text of a published number, and each part of a mixture; bundled text is not on disk."""
    for path in RECIPES.glob("llama*.py"):
        recipe = load_experiment(path)
        found = "".join(requirements.missing(recipe))
        for expected in recipe.expect:
            assert f"{expected.evaluation} reads proof-pile, which is not there" in found, path.name
        assert "data reads " in found, path.name
    assert len(requirements.missing(load_experiment(RECIPES / "llama3_8b_prolong_64k.py"))) == 3
    assert (
        main(["run", str(RECIPES / "llama2_7b_yarn_8k.py"), "--dry-run", "--data.path", str(here)])
        == 0
    )
    assert "--out proof-pile --tokenizer HF_DIR --min-tokens 131074" in capsys.readouterr().out
    mixed = Mix(((1.0, Upsampled(Files("a"), 10, 2.0)), (1.0, Stdlib("train")), (1.0, Files("b"))))
    experiment = dataclasses.replace(load_experiment(here / "needy.py"), data=mixed, evals=())
    assert [text.path for text in requirements.requirements(experiment)] == ["a", "b"]


def test_questions_and_documents_that_do_not_fit_are_refused_before_training(
    here: Path, capsys
) -> None:
    """Text that is too short, or a needle longer than its length, is refused before training."""
    texts(here / "long-text", 40)
    texts(here / "proof-pile", 40, 5, 60)
    run = ["run", "needy.py", "--no-wandb", "--run-dir", "out"]
    assert "2 of 3 documents have the 500 tokens that the longest length" in last_error_line(
        run, capsys
    )
    perplexity = """RollingPerplexity(
            (128,), "truncate", num_documents=3, min_tokens=500, source=Files("proof-pile")
        )"""
    assert perplexity in FILE
    retrieval = 'Retrieval((16, 128), n=1, source=Files("proof-pile"))'
    file = FILE.replace(perplexity, retrieval)
    (here / "needy.py").write_text(file.replace("import RollingPerplexity", "import Retrieval"))
    run[-1] = "other"
    assert "passkey: " in (line := last_error_line(run, capsys))
    assert "16" in line
    for name in ("out", "other"):
        assert not list((here / name).glob("checkpoints/*"))
        assert not (here / name / "metrics.jsonl").exists()


def last_error_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 2
    return capsys.readouterr().err.splitlines()[-1]
