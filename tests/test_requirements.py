"""Missing text is reported before anything starts, with the command that prepares it."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from ctxext import pipeline, requirements
from ctxext.assets import TINY_LLAMA
from ctxext.attention import Attention
from ctxext.cli.main import main
from ctxext.data import Files, Mix, Stdlib, Upsampled
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import load_experiment
from ctxext.methods import S2AttnAsReleased
from ctxext.model.trainable import LoRA
from ctxext.optim import Optim
from ctxext.tokenization.tokenizer import load_tokenizer
from support.tiny_train import tiny_experiment

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


def write_texts(folder: Path, *repeats: int) -> str:
    """Write one file for each number, which repeats WORDS that many times."""
    folder.mkdir()
    for number, n in enumerate(repeats):
        (folder / f"{number}.txt").write_text(WORDS * n)
    return str(folder)


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The only line that a refused command prints."""
    assert main(command) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def last_error_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line that a refused command prints."""
    assert main(command) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.check
def test_the_commands_of_the_error_prepare_what_is_missing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line names everything that is missing; after its commands, the run succeeds."""
    source = write_texts(here / "books", 40, 60, 80)
    line = refused(["run", "needy.py", "--no-wandb"], capsys)
    documents = "3 documents of at least 500 tokens"
    assert f"ppl:truncate reads proof-pile, which is not there: {documents}" in line
    assert "data reads long-text, which is not there" in line
    assert "--data.path" in line
    assert not (here / "runs").exists()
    for part in line.split("which is not there")[1:]:
        command = part[part.index("ctxext prepare") :].split(", or name")[0].partition(";")[0]
        _, *arguments = shlex.split(command.replace("YOUR_TEXTS", source))
        assert main(arguments) == 0
    capsys.readouterr()
    assert main(["run", "needy.py", "--no-wandb"]) == 0


def test_training_alone_requires_only_its_own_text(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(["train", "needy.py", "--no-wandb"], capsys)
    assert "long-text" in line
    assert "proof-pile" not in line
    mine = write_texts(here / "mine", 40)
    assert main(["train", "needy.py", "--no-wandb", "--data.path", mine]) == 0
    capsys.readouterr()
    assert "proof-pile" in refused(["run", "needy.py", "--no-wandb", "--data.path", "mine"], capsys)


def test_prepared_tokens_that_do_not_fit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_texts(here / "long-text", 40)
    few = write_texts(here / "few", 40, 5, 60)
    assert main(["prepare", few, "--out", "proof-pile", "--tokenizer", "tiny-llama"]) == 0
    capsys.readouterr()
    line = refused(["run", "needy.py", "--no-wandb"], capsys)
    documents = "3 documents of at least 500 tokens"
    assert f"{documents} from proof-pile, which has 2 of 3: prepare more text" in line
    tokenizer = load_tokenizer(TINY_LLAMA)
    lengths = [len(tokenizer.encode(WORDS * n)) for n in (40, 5, 60)]
    assert sum(length >= 500 for length in lengths) == 2
    index = here / "proof-pile" / "index.json"
    index.write_text(index.read_text().replace(tokenizer.sha256, "0" * 64))
    assert "prepared with another tokenizer" in refused(["run", "needy.py", "--no-wandb"], capsys)


def test_every_text_of_a_recipe_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text of published results and every part of a mixture, but not the bundled text."""
    for path in RECIPES.glob("llama*.py"):
        recipe = load_experiment(path)
        report = "".join(requirements.missing(recipe))
        for expected in recipe.expect:
            message = f"{expected.evaluation} reads proof-pile, which is not there"
            assert message in report, path.name
        assert "data reads " in report, path.name
    assert len(requirements.missing(load_experiment(RECIPES / "llama3_8b_prolong_64k.py"))) == 3
    recipe = str(RECIPES / "llama2_7b_yarn_8k.py")
    assert main(["run", recipe, "--dry-run", "--data.path", str(here)]) == 0
    assert "--out proof-pile --tokenizer HF_DIR --min-tokens 131074" in capsys.readouterr().out
    mixed = Mix(((1.0, Upsampled(Files("a"), 10, 2.0)), (1.0, Stdlib("train")), (1.0, Files("b"))))
    experiment = dataclasses.replace(load_experiment(here / "needy.py"), data=mixed, evals=())
    assert [text.path for text in requirements.requirements(experiment)] == ["a", "b"]


def test_a_training_that_teaches_little_is_said(here: Path, capsys) -> None:
    recipe = load_experiment(RECIPES / "llama2_7b_yarn_8k.py")
    assert recipe.optim == Optim(2e-5, warmup_steps=20) and recipe.train.steps == 400
    assert requirements.doubts(recipe) == []
    lora = dataclasses.replace(recipe, trainable=LoRA())
    (sentence,) = requirements.doubts(lora)
    assert "(--optim.learning-rate 2e-4)" in sentence
    assert not requirements.doubts(dataclasses.replace(lora, optim=Optim(2e-4)))
    # As LongLoRA was published.
    assert not requirements.doubts(load_experiment(RECIPES / "llama2_7b_longlora_8k.py"))
    # The rate of step n, from 0, is (n + 1) / 21 of the peak.
    write_texts(here / "mine", 40)
    recipe_of_file = [str(RECIPES / "llama2_7b_yarn_8k.py"), "--data.path", "mine"]
    assert main(["run", *recipe_of_file, "--dry-run", "--train.steps", "20"]) == 0
    said = "optim.warmup_steps 20 of train.steps 20: it comes to 1.9e-05 of 2e-05; give fewer"
    assert said in capsys.readouterr().out
    assert float(Optim(2e-5, warmup_steps=20).learning_rates(20)(19)) == pytest.approx(
        1.905e-5, 1e-3
    )


def test_questions_and_documents_that_do_not_fit_are_refused_before_training(
    here: Path, capsys
) -> None:
    """Text that is too short, or a needle longer than its length, is refused before training."""
    write_texts(here / "long-text", 40)
    write_texts(here / "proof-pile", 40, 5, 60)
    run = ["run", "needy.py", "--no-wandb", "--run-dir", "out"]
    message = "needs 3 documents of at least 500 tokens, and the text has 2 "
    assert message in last_error_line(run, capsys)
    perplexity = """RollingPerplexity(
            (128,), "truncate", num_documents=3, min_tokens=500, source=Files("proof-pile")
        )"""
    assert perplexity in FILE
    retrieval = 'Retrieval((16, 128), n=1, source=Files("proof-pile"))'
    file = FILE.replace(perplexity, retrieval)
    (here / "needy.py").write_text(file.replace("import RollingPerplexity", "import Retrieval"))
    run[-1] = "other"
    line = last_error_line(run, capsys)
    assert "passkey: " in line
    assert "16" in line
    for name in ("out", "other"):
        assert not list((here / name).glob("checkpoints/*"))
        assert not (here / name / "metrics.jsonl").exists()


@pytest.mark.parametrize("start", [pipeline.run, pipeline.train_only])
def test_the_context_is_checked_before_all_text_is_read(start, tmp_path, monkeypatch):
    """Reading the text may take hours."""

    def refuse(*_, **__):
        raise ValueError("less than declared")

    monkeypatch.setattr(requirements, "check", lambda *_, **__: pytest.fail("it read the text"))
    monkeypatch.setattr(requirements, "check_context", refuse)
    with pytest.raises(ValueError, match="less than declared"):
        start(tiny_experiment(tmp_path), run_dir=tmp_path / "run")


FOR_TRAINING = S2AttnAsReleased(64, 16)


@dataclasses.dataclass(frozen=True)
class Leaking(Attention):
    """The same pieces as a method of its own, which a trained model keeps."""

    def pieces(self, seq_len):
        return FOR_TRAINING.pieces(seq_len)


LEAKING = Leaking()
PASSKEY = Retrieval((128,), n=1)


@pytest.mark.parametrize(
    ("changes", "train", "training_only", "message"),
    [
        ({"attention": LEAKING, "evals": (PASSKEY,)}, {}, False, "passkey: Leaking shows"),
        ({"zero_shot": (FOR_TRAINING,), "evals": (PASSKEY,)}, {}, False, "or leave this one out"),
        ({"attention": LEAKING}, {"eval_every": 3}, True, "train.eval_set: passkey: Leaking"),
    ],
)
def test_attention_that_sees_later_tokens_is_not_asked_to_write(
    changes, train, training_only, message
):
    """Refused before the training, not when the trained model is first asked."""
    experiment = dataclasses.replace(tiny_experiment(Stdlib("train"), **train), **changes)
    with pytest.raises(ValueError, match=message):
        requirements.check_context(experiment, training_only=training_only)


def test_what_writes_may_follow_a_training_that_leaks():
    """After S2-Attn as released, a run has full attention."""
    experiment = tiny_experiment(Stdlib("train"), eval_every=3)
    experiment = dataclasses.replace(experiment, attention=FOR_TRAINING, evals=(PASSKEY,))
    requirements.check_context(experiment)


@pytest.mark.parametrize(
    ("changes", "train", "training_only"),
    [
        ({"evals": (Perplexity((256,)),)}, {"eval_every": 3, "eval_set": ("loss",)}, False),
        ({"evals": (PASSKEY,)}, {}, True),
    ],
)
def test_what_reads_only_may_follow_such_a_training(changes, train, training_only):
    experiment = tiny_experiment(Stdlib("train"), **train)
    experiment = dataclasses.replace(experiment, attention=LEAKING, **changes)
    requirements.check_context(experiment, training_only=training_only)
