"""The bundled base works within its window and fails beyond it, as the README says."""

import dataclasses

import numpy as np
import pytest

import ctxext
from ctxext import tasks
from ctxext.assets import TINY_LLAMA
from ctxext.evals import Perplexity, Retrieval
from ctxext.evals.stats import wilson
from ctxext.evaluate import evaluate
from ctxext.methods import LMInfinite, Yarn
from ctxext.report import summary

# Questions from a seed that training did not use.
PASSKEY = tasks.Passkey(wording="code")
WITHIN = Retrieval(task=PASSKEY, seq_lens=(256,), depths=(0, 0.25, 0.5, 0.75, 1), n=20, seed=1)


@pytest.fixture(scope="module")
def lm() -> ctxext.LM:
    return ctxext.load("tiny-llama")


def correct_answers(lm: ctxext.LM, evaluation: Retrieval) -> list[bool]:
    return [record.scores.correct for record in evaluation(lm)]


def upper_bound(answers: list[bool]) -> float:
    """The upper end of the confidence interval of the accuracy."""
    high = wilson(sum(answers), len(answers)).high
    assert high is not None
    return high


def test_it_is_small_and_plain():
    assert sum(path.stat().st_size for path in TINY_LLAMA.glob("*.safetensors")) <= 8e6


@pytest.mark.parametrize(
    ("task", "least"),
    [
        (PASSKEY, 0.95),
        pytest.param(tasks.KeyValue(num_pairs=4, wording="code"), 0.85, marks=pytest.mark.slow),
    ],
)
def test_it_answers_within_its_window(lm, task, least):
    answers = correct_answers(lm, dataclasses.replace(WITHIN, task=task))
    assert upper_bound(answers) >= least, f"{sum(answers)} of {len(answers)}"
    assert np.mean(answers) >= least - 0.05


def test_it_fails_beyond_its_window_unless_extended(lm):
    beyond = dataclasses.replace(WITHIN, seq_lens=(512,), n=8)
    answers = correct_answers(lm, beyond)
    assert len(answers) == 40
    assert upper_bound(answers) <= 0.15
    extended = lm.with_method(Yarn(factor=2.0, beta_fast=8.0))
    assert np.mean(correct_answers(extended, beyond)) >= 0.5


@pytest.mark.check
def test_a_mask_of_its_window_keeps_near_needles_and_loses_far_ones(lm):
    beyond = dataclasses.replace(WITHIN, seq_lens=(512,), n=16)
    records = list(beyond(lm.with_method(LMInfinite(window=256))))
    near = [record.scores.correct for record in records if record.question.distance < 250]
    far = [record.scores.correct for record in records if record.question.distance > 260]
    assert len(near) >= 25
    assert len(far) >= 40
    assert np.mean(near) >= 0.8
    assert upper_bound(far) <= 0.15


def test_it_models_files_that_it_never_saw(lm):
    evaluation = Perplexity(seq_lens=(256,), target_tokens=64, num_windows=4)
    (cell,) = summary(evaluate(lm, [evaluation], progress=False))["perplexity"]
    assert cell["bits_per_byte"] <= 1.4
