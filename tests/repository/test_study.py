"""The study on SmolLM2: its texts, its trials, its tables, and all of it at the smoke scale."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import io
import itertools
import re
import struct
import tarfile
import tempfile
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests

from ctxext.attention import Causal
from ctxext.evals import GrowingWindow, Retrieval
from ctxext.evals.growing_window import by_fine_position
from ctxext.evals.record import EvalRecord, EvaluatedModel, LossEstimator, LossScores
from ctxext.experiment import BUNDLED, Experiment, load_sweep
from ctxext.losses import CrossEntropy
from ctxext.methods import all_methods, method_name
from ctxext.model.config import LlamaConfig
from ctxext.pipeline import run
from ctxext.rope import Unscaled
from ctxext.tasks import Niah, Passkey
from support.planted import loss_record, passkey_record, write_records

FOLDER = Path(__file__).parents[2] / "experiments"
SMOLLM2 = LlamaConfig(49152, 576, 1536, 30, 9, 3, 64, 1e-5, 1e5, 8192, tie_word_embeddings=True)
TINY = LlamaConfig(1024, 128, 384, 4, 2, 2, 64, 1e-5, 200.0, 256)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"study_{Path(name).stem}", FOLDER / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sweep(config: LlamaConfig) -> dict[str, Experiment]:
    window = config.max_position_embeddings
    return load_sweep(FOLDER / "smollm2_study.py", lambda: (config, window))


@functools.cache
def trials(config: LlamaConfig) -> dict[str, Experiment]:
    """The trials, which are listed only where there are directories of texts."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in ("train", "heldout", "heldout-long"):
            Path("runs", "austen", name).mkdir(parents=True)
        return sweep(config)


def test_missing_texts_are_named_before_anything_runs_with_the_command_that_gets_them(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "austen" / "train").mkdir(parents=True)
    page = (FOLDER.parent / "docs" / "study.md").read_text()
    (commands,) = re.findall(r"```\n(apt-get .*)\n(python .*)\n```", page)
    with pytest.raises(ValueError) as error:
        sweep(TINY)
    assert str(error.value) == (
        "the texts of this study are not in runs/austen (heldout, heldout-long): "
        + " && ".join(commands)
    )


# The texts.


def serialized(lines: list[str], version: int) -> bytes:
    """A vector of strings as R writes it: XDR, gp bits of UTF-8 or ASCII."""
    encoding = struct.pack(">i", 5) + b"UTF-8" if version == 3 else b""
    head = b"X\n" + struct.pack(">iii", version, 0x40201, 0x30500) + encoding
    body = b"".join(
        struct.pack(">ii", 0x40009 if line.isascii() else 0x8009, len(line.encode()))
        + line.encode()
        for line in lines
    )
    return head + struct.pack(">ii", 16, len(lines)) + body


def debian_package(database: bytes) -> bytes:
    """An ar archive with a compressed tar of the database in it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as files:
        member = tarfile.TarInfo("./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
        member.size = len(database)
        files.addfile(member, io.BytesIO(database))
    out = b"!<arch>\n"
    for name, data in (("debian-binary", b"2.0"), ("data.tar.xz", packed.getvalue())):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    return out


def chapters(title: str, count: int) -> list[str]:
    """A book: chapters of about 20,000 characters, with one that is not ASCII."""
    lines = [title, ""]
    for chapter in range(1, count + 1):
        lines.append(f"Chapter {chapter}" if chapter % 2 else f"CHAPTER {chapter}")
        lines += [f"Line {i} of the chapter {chapter}, said Mrs. Élan." for i in range(450)]
    return lines


@pytest.fixture
def austen(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, dict[str, str], bytes]:
    """The script with the hashes of invented books, these books, and their database."""
    module = load("texts/austen.py")
    titles = [name.replace("-", " ").title() for name in (*module.TRAIN, *module.HELD_OUT)]
    books = {title: chapters(title, 18 + i) for i, title in enumerate(titles)}
    database = b""
    for version, lines in zip(itertools.cycle((2, 3)), books.values(), strict=False):
        data = serialized(lines, version)
        database += struct.pack(">I", len(data)) + zlib.compress(data)
    texts = {
        title.lower().replace(" ", "-"): "\n".join(lines) + "\n" for title, lines in books.items()
    }
    for part in ("TRAIN", "HELD_OUT"):
        names = getattr(module, part)
        hashes = {name: hashlib.sha256(texts[name].encode()).hexdigest() for name in names}
        monkeypatch.setattr(module, part, hashes)
    return module, texts, database


def test_novels_are_taken_from_the_package_and_cut_before_chapters(austen, tmp_path, capsys):
    module, texts, database = austen
    package = tmp_path / "austen.deb"
    package.write_bytes(debian_package(database))
    out = tmp_path / "austen"
    assert module.main([str(package), "--out", str(out)]) == 0
    assert "3 files in train" in capsys.readouterr().out
    for name in module.TRAIN:
        assert (out / "train" / f"{name}.txt").read_text() == texts[name]
    for folder, least in (("heldout", 75_000), ("heldout-long", 145_000)):
        for name in module.HELD_OUT:
            parts = [path.read_text() for path in sorted((out / folder).glob(f"{name}-*.txt"))]
            assert "".join(parts) == texts[name]
            assert min(map(len, parts)) >= least
            assert all(part.lower().startswith("chapter ") for part in parts[1:])
    assert len(list((out / "heldout").iterdir())) > len(list((out / "heldout-long").iterdir())) > 3
    assert "public domain" in (out / "SOURCE.txt").read_text()
    assert module.main([str(package), "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_novels_are_read_from_an_unpacked_package_and_other_text_is_refused(
    austen, tmp_path, capsys
):
    module, texts, database = austen
    library = tmp_path / "x" / "janeaustenr" / "data"
    library.mkdir(parents=True)
    (library / "Rdata.rdb").write_bytes(database)
    assert module.novels(module.database_of(tmp_path / "x")) == texts
    module.HELD_OUT["persuasion"] = "0" * 64
    assert module.main([str(tmp_path / "x"), "--out", str(tmp_path / "out")]) == 2
    assert "persuasion has SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for data, message in (
        (debian_package(database[:-9]), "cut off"),
        (debian_package(b"")[:80], "Rdata.rdb"),
        (b"PK\3\4", "not a Debian package"),
    ):
        (tmp_path / "bad.deb").write_bytes(data)
        assert module.main([str(tmp_path / "bad.deb"), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


# The trials.


def test_every_method_of_the_protocol_is_there_and_asked_as_much():
    by_name = trials(SMOLLM2)
    stages = {
        stage: {name: x for name, x in by_name.items() if name.startswith(stage)}
        for stage in ("zero-shot-", "trained-", "far-")
    }
    assert [len(of_stage) for of_stage in stages.values()] == [18, 21, 18]
    assert sum(map(len, stages.values())) == len(by_name)
    wanted = (
        "linear ntk ntk-by-parts yarn dynamic-ntk dynamic-yarn llama3 self-extend dca rerope "
        "streaming-llm lm-infinite string jet-long cope log-temperature long-rope2 none"
    ).split()
    assert set(wanted) - {"none"} <= all_methods().keys()
    for stage in ("zero-shot-", "far-"):
        methods = [x.rope or x.attention for x in stages[stage].values()]
        assert sorted(map(method_name, methods)) == sorted(wanted)
        assert all(x.train.steps == 0 for x in stages[stage].values())
        assert len({x.evals for x in stages[stage].values()}) == 1
    same = {x.evals for stage in ("zero-shot-", "trained-") for x in stages[stage].values()}
    assert len(same) == 1
    factors = {getattr(x.rope, "factor", 2.0) for x in stages["zero-shot-"].values()}
    assert factors == {2.0, 1.0}, "1 is that of dynamic frequencies"
    assert {x.init for x in by_name.values()} == {BUNDLED}, "whose window all lengths follow"
    page = (FOLDER.parent / "docs" / "study.md").read_text()
    commands = re.findall(r"^ctxext .*smollm2_study\.py.*runs/study.*", page, re.MULTILINE)
    assert len(commands) > 3 and all("--init smollm2" in command for command in commands)


def test_every_cell_has_its_questions_and_its_controls():
    experiment = trials(SMOLLM2)["zero-shot-yarn"]
    asked = [x for x in experiment.evals if isinstance(x, Retrieval)]
    assert [(type(x.task), x.condition) for x in asked] == [
        (Passkey, "needle"),
        (Niah, "needle"),
        (Passkey, "no-needle"),
        (Passkey, "needle-only"),
    ]
    for evaluation in asked[:2]:
        assert evaluation.seq_lens == (8192, 16384)
        assert evaluation.shared_context
        assert len(evaluation.depths) * evaluation.n == 72 >= 64
        depths = [depth for depth in evaluation.depths if depth is not None]
        edges = [(depth - evaluation.jitter, depth + evaluation.jitter) for depth in depths]
        bounds = [0.0, *(high for _, high in edges)]
        assert np.allclose(bounds[:-1], [low for low, _ in edges]) and bounds[-1] == 1
    assert {x.source for x in asked} == {asked[0].source}
    (books,) = [x for x in experiment.evals if isinstance(x, GrowingWindow)]
    assert books.seq_lens == (16384,) and books.num_documents == 12
    assert str(books.source).count("heldout") == 1
    assert "heldout" not in str(experiment.data)


def test_every_training_has_the_same_budget():
    trained = {name: x for name, x in trials(SMOLLM2).items() if name.startswith("trained-")}
    same = {
        (x.train.steps, x.train.seq_len, x.train.batch_size, x.data, x.optim, x.trainable)
        for x in trained.values()
    }
    assert len(same) == 1
    for name, x in trained.items():
        assert name.endswith(f"-{x.seed}") and x.attention == Causal()
        assert (x.rope == Unscaled()) == name.startswith("trained-none")
        assert (x.loss != CrossEntropy()) == name.startswith("trained-long-ce")
        both = name.startswith("trained-long-rope2")
        assert x.train.rope_length == ("document" if both else "batch")
        assert x.trained_length == 16384
    assert {x.seed for x in trained.values()} == {0, 1, 2}


# The tables.


def book_record(method: str, seed: int, document: int, nll: np.ndarray) -> EvalRecord:
    """The record of a book: nll[t] is the loss after t + 1 tokens; the window is 256."""
    model = EvaluatedModel(window=256, rope=method, checkpoint=str(seed))
    scores = LossScores(
        nll=float(nll.sum()), count=len(nll), num_bytes=1, by_position=by_fine_position(nll, 256)
    )
    return dataclasses.replace(
        loss_record(model, 512, document, scores),
        evaluation="growing-window",
        estimator=LossEstimator("growing-window"),
    )


METHODS = {"none": 0.0, "yarn": -0.5, "pi": -0.3}


@pytest.fixture
def planted(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """Twelve books and 24 questions per trial with known losses and answers."""
    rng = np.random.default_rng(3)
    books = {}
    for method, shift in METHODS.items():
        nll = 3 + rng.normal(0, 0.02, (12, 511))
        nll[:, 255:] += shift
        books[method] = nll
        right = rng.random(24) < 0.4 - shift
        records = [book_record(method, 0, i, row) for i, row in enumerate(nll)]
        records += [
            passkey_record(method, 0, 512, 0.5, i, bool(hit)) for i, hit in enumerate(right)
        ]
        path = tmp_path / "study" / f"zero-shot-{method}"
        write_records(path, records)
        (path / "budget.json").write_text("{}")
        books[f"{method} right"] = right
    write_records(tmp_path / "study" / "zero-shot-ntk", records[:3])
    return tmp_path / "study", books


def brute_force_p(sums: np.ndarray) -> float:
    totals = np.zeros(1)
    for value in sums:
        totals = np.concatenate([totals + value, totals - value])
    return float((abs(totals) >= abs(sums.sum()) - 1e-9).mean())


def test_differences_of_losses_are_paired_tested_and_adjusted(planted):
    folder, books = planted
    module = load("tables/smollm2_study.py")
    found, unfinished = module.read_trials([folder])
    assert unfinished == ["zero-shot-ntk"]
    (stage,) = module.stages(found)
    beyond = module.measures("zero-shot", 256)[0]
    family = stage.family(beyond)
    assert list(family) == [("pi", "none"), ("yarn", "none"), ("pi", "yarn")]
    raw = []
    for (method, other), difference in family.items():
        by_book = (books[method] - books[other])[:, 255:].mean(1)
        test = ttest_1samp(by_book, 0)
        assert difference.mean.value == pytest.approx(by_book.mean())
        bounds = test.confidence_interval()
        assert difference.mean[1:] == pytest.approx((bounds.low, bounds.high))
        raw.append(brute_force_p(by_book))
    assert raw[0] == 2 / 2**12, "every book differs alike"
    adjusted = [difference.adjusted_p for difference in family.values()]
    assert adjusted == pytest.approx(multipletests(raw, method="holm")[1])
    assert {difference.verdict for difference in family.values()} == {"*"}
    at_home = stage.family(module.measures("zero-shot", 256)[1])
    assert {difference.verdict for difference in at_home.values()} <= {"=", "?"}


def test_differences_of_answers_are_over_texts(planted):
    folder, books = planted
    module = load("tables/smollm2_study.py")
    (stage,) = module.stages(module.read_trials([folder])[0])
    right = module.measures("zero-shot", 256)[2]
    difference = stage.difference("yarn", "none", right)
    hits = books["yarn right"].astype(int) - books["none right"]
    assert difference.mean.value == pytest.approx(100 * hits.mean())
    nonzero = hits[hits != 0].astype(float)
    assert difference.p == pytest.approx(brute_force_p(nonzero))


def test_a_difference_counts_only_with_its_size_and_the_same_sign_for_every_seed():
    module = load("tables/smollm2_study.py")
    interval = module.Interval(0.02, 0.015, 0.025)
    sure = module.Difference(interval, [0.02, 0.02], 0.001, 0.01, adjusted_p=0.01)
    assert sure.verdict == "*"
    assert dataclasses.replace(sure, adjusted_p=0.06).verdict == "?"
    assert dataclasses.replace(sure, by_seed=[0.05, -0.01]).verdict == "?"
    small = dataclasses.replace(sure, mean=module.Interval(0.004, 0.001, 0.007))
    assert small.verdict == "="


def test_the_tables_are_printed_and_name_what_is_missing(planted, capsys):
    folder, _ = planted
    module = load("tables/smollm2_study.py")
    assert module.main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert "zero-shot: loss beyond, nats per token" in text
    assert "12 texts" in text and "24 texts" in text
    assert "not finished, and left out: zero-shot-ntk" in text
    (folder / "zero-shot-none").rename(folder / "other")
    assert module.main([str(folder)]) == 2
    assert "other is not called STAGE-METHOD" in capsys.readouterr().err


# All of it at the smoke scale.

IN_CHECK = ("zero-shot-none", "zero-shot-yarn", "trained-none-0", "trained-long-ce-0", "far-dca")
OTHERS = [name for name in trials(TINY) if name not in IN_CHECK and not name.endswith(("-1", "-2"))]


def small_trials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Experiment]:
    """The trials on the bundled base, in a directory with a stand-in of the texts."""
    for name in ("train", "heldout", "heldout-long"):
        (folder / "runs" / "austen" / name).mkdir(parents=True)
        for i in range(3):
            text = "\n".join(chapters(f"{name} {i}", 1 + (name == "heldout-long")))
            (folder / "runs" / "austen" / name / f"{i}.txt").write_text(text)
    monkeypatch.chdir(folder)
    return trials(TINY)


@pytest.mark.check
def test_trials_at_the_smoke_scale_resume_and_make_the_tables(tmp_path, monkeypatch, capsys):
    small = small_trials(tmp_path, monkeypatch)
    for name in IN_CHECK:
        done = run(small[name], run_dir=tmp_path / "study" / name, track=())
        again = run(small[name], run_dir=tmp_path / "study" / name, track=())
        assert len(again.records) == len(done.records) > 0
    capsys.readouterr()
    assert load("tables/smollm2_study.py").main([str(tmp_path / "study"), "--markdown"]) == 0
    text = capsys.readouterr().out
    for title in ("zero-shot: loss at home", "trained: right at 512", "far: loss beyond"):
        assert f"**{title}" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_trial_at_the_smoke_scale(name, tmp_path, monkeypatch):
    done = run(
        small_trials(tmp_path, monkeypatch)[name], run_dir=tmp_path / "study" / name, track=()
    )
    assert len({record.evaluation for record in done.records}) >= 2
