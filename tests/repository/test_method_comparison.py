"""The comparison of methods on the bundled base: complete, of equal budgets, and its table."""

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ctxext.attention.pieces import Attention
from ctxext.evals import Retrieval
from ctxext.evals.stats import holm, mcnemar
from ctxext.experiment import Experiment, load_experiment, load_sweep
from ctxext.losses import CrossEntropy, all_losses
from ctxext.methods import LeakyRerope, SelfExtend, all_methods, method_name, seam
from ctxext.model.config import LlamaConfig
from ctxext.pipeline import run
from ctxext.report import read_records
from ctxext.report.analysis.results import Results
from ctxext.rope import RopeScaling
from support.planted import passkey_record, write_records

FOLDER = Path(__file__).parents[2] / "experiments"
WINDOW = 256
SEARCHED = "its divisors come from a search, and none is published for a base of this size"
ABSENT = {
    "plain": "no scaling, which is there, over a base that has one",
    "long-rope": SEARCHED,
    "dynamic-long-rope": SEARCHED,
    "custom": SEARCHED,
    "full-attention-only": "the inner method itself on a base without windows",
    "s2-attn-as-released": "it sees later tokens",
}
"""Methods that the comparison leaves out, and why."""


def bundled() -> tuple[LlamaConfig, int]:
    return LlamaConfig(1024, 128, 384, 4, 2, 2, 64, 1e-5, 200.0, WINDOW), WINDOW


def zero_shot() -> Experiment:
    return load_experiment(FOLDER / "tiny_methods.py", bundled)


def trials() -> dict[str, Experiment]:
    return load_sweep(FOLDER / "tiny_trained.py", bundled)


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", FOLDER / "tables" / "tiny_methods.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_is_compared_or_left_out_for_a_reason():
    compared = {method_name(method) for method in zero_shot().zero_shot}
    for trial in trials().values():
        methods = [trial.rope, *trial.baselines, trial.attention, trial.positions, trial.loss]
        compared |= {method_name(method) for method in methods if method is not None}
    known = {*all_methods(), *all_losses()}
    assert known - compared == ABSENT.keys()
    docstring = (FOLDER / "tiny_methods.py").read_text()
    assert all(name in docstring for name in ("LongRoPE", "Custom", "S2-Attn"))


def test_every_method_is_asked_the_same_at_every_factor():
    experiment = zero_shot()
    (lengths,) = {evaluation.seq_lens for evaluation in experiment.evals}
    assert lengths == (256, 512, 1024, 2048)
    assert len(set(experiment.zero_shot)) == len(experiment.zero_shot)
    scalings = [x for x in experiment.zero_shot if isinstance(x, RopeScaling)]
    with_factor = [x for x in scalings if getattr(x, "factor", 1.0) > 1]
    counts = [sum(x.factor == factor for x in with_factor) for factor in (2, 4, 8)]  # pyright: ignore
    assert len(set(counts)) == 1 and sum(counts) == len(with_factor)
    every = {method_name(x) for x in experiment.zero_shot if isinstance(x, Attention)}
    of_seam = {name for name, method in all_methods().items() if seam(method) == "attention"}
    assert of_seam - every == {"causal", "s2-attn", "s2-attn-as-released"}


def test_grouped_distances_stay_within_the_window():
    """The largest rotary distance at two, four and eight windows, for the setting meant for it."""
    for kind in (SelfExtend, LeakyRerope):
        settings = [x for x in zero_shot().zero_shot if isinstance(x, kind)]
        assert len(settings) == 3
        for factor, method in zip((2, 4, 8), settings, strict=True):
            assert isinstance(method, Attention)
            last = np.arange(factor * WINDOW)[-1:]
            far = method.pieces(factor * WINDOW)[-1]
            distance = far.query_positions(last) - far.key_positions(np.zeros_like(last))
            assert WINDOW / 2 < distance < WINDOW, method


def test_every_method_trains_and_is_asked_as_much():
    by_name = trials()
    assert len(by_name) == 3 * 12
    budgets = {
        (x.train.steps, x.train.batch_size * x.train.accumulate * x.train.seq_len)
        for x in by_name.values()
    }
    assert budgets == {(48, 4096)}
    assert len({x.evals for x in by_name.values()}) == 1
    assert len({x.data for x in by_name.values()}) == 1
    for name, trial in by_name.items():
        assert name.endswith(f"-{trial.seed}") and trial.seed in (0, 1, 2)
        assert trial.trained_length == (256 if name.startswith("nope") else 1024)
        assert (trial.loss != CrossEntropy()) == name.startswith(("long-ce-", "long-red-"))


def smoke(experiment: Experiment, *, lengths: tuple[int, ...] = (2 * WINDOW,)) -> Experiment:
    """The same methods with one question per length, after two steps of as few rows as can be."""
    train = dataclasses.replace(
        experiment.train,
        steps=min(2, experiment.train.steps),
        batch_size=1,
        checkpoint_every=2,
        monitor_every=0,
    )
    asked = experiment.evals[0]
    assert isinstance(asked, Retrieval)
    evals = (dataclasses.replace(asked, seq_lens=lengths, depths=(0.5,), n=1),)
    return dataclasses.replace(experiment, train=train, evals=evals)


@pytest.mark.slow
def test_the_smoke_size_of_every_method_without_training(tmp_path, capsys):
    experiment = zero_shot()
    settings = {method_name(x): x for x in experiment.zero_shot}  # the one for 8x of each
    without_training = dataclasses.replace(experiment.train, steps=0)
    small = smoke(
        dataclasses.replace(
            experiment, zero_shot=tuple(settings.values()), train=without_training, baselines=()
        )
    )
    done = run(small, run_dir=tmp_path / "run", track=())
    # The result, YaRN at 4x, comes in addition to YaRN at 8x.
    assert len(done.records) == len(settings) + 1
    again = run(small, run_dir=tmp_path / "run", track=())
    assert len(again.records) == len(done.records), "a run that is done asks nothing again"
    capsys.readouterr()
    argv = [str(tmp_path / "run"), "--reference", "yarn(factor=4, beta_fast=8)", "--markdown"]
    assert script().main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(settings) + 1


IN_CHECK = ("frequencies-0", "long-red-0", "long-rope2-0", "s2-attn-0")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.check if name in IN_CHECK else pytest.mark.slow)
        for name in sorted({name for name in trials() if name.endswith("-0")})
    ],
)
def test_the_smoke_size_of_every_training(name: str, tmp_path):
    small = dataclasses.replace(smoke(trials()[name]), zero_shot=(), baselines=())
    (record,) = run(small, run_dir=tmp_path / "run", track=()).records
    assert record.model.steps == 2


RIGHT = {
    "yarn(factor=4, beta_fast=8)": {256: 20, 512: 18, 1024: 15},
    "linear(factor=4)": {256: 20, 512: 9, 1024: 2},
    "cope(inner=yarn(factor=4, beta_fast=8))": {256: 20, 512: 18, 1024: 16},
}


def planted_run(path: Path) -> Path:
    """Twenty questions per length; the first so many are right."""
    write_records(
        path,
        [
            passkey_record(rope, 0, seq_len, 0.5, i, i < count)
            for rope, counts in RIGHT.items()
            for seq_len, count in counts.items()
            for i in range(20)
        ],
    )
    return path


def test_table_of_planted_answers(tmp_path):
    results = Results(read_records([planted_run(tmp_path / "run")]))
    module = script()
    task = results.studies[0].task
    family = module.differences(task, "yarn(factor=4, beta_fast=8)", [512, 1024])
    by_name = {(variant.model.rope, n): x for (variant, n), x in family.items()}
    keys = [(rope, n) for n in (512, 1024) for rope in list(RIGHT)[1:]]
    assert list(by_name) == keys
    expected = []
    for rope, n in keys:
        gained = RIGHT[rope][n] - RIGHT["yarn(factor=4, beta_fast=8)"][n]
        assert by_name[rope, n].points.value == pytest.approx(100 * gained / 20)
        expected.append(mcnemar(max(gained, 0), max(-gained, 0)))
    adjusted = [by_name[key].adjusted_p for key in keys]
    assert adjusted == pytest.approx(holm(expected))
    made = module.table(results, "yarn(factor=4, beta_fast=8)")
    first = made.cells[0]
    assert first[0].startswith("cope") and first[1:4] == ["20", "18", "16"]
    assert [line[0].partition("(")[0] for line in made.cells] == ["cope", "yarn", "linear"]
    assert made.header[-2:] == ["points at 512", "points at 1,024"]
    assert made.cells[2][-1].endswith("*") and not first[-1].endswith("*")


def test_a_reference_that_is_not_there_is_named_with_those_that_are(tmp_path, capsys):
    folder = str(planted_run(tmp_path / "run"))
    assert script().main([folder, "--reference", "ntk"]) == 2
    assert "no variant begins with 'ntk' at 512 tokens; choose one of: yarn" in (
        capsys.readouterr().err
    )
    assert script().main([folder]) == 2, "there is no YaRN for two windows"
    assert "'yarn(factor=2, beta_fast=8)' at 512" in capsys.readouterr().err
