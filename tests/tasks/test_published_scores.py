"""Scores of published benchmarks against the authors' own scorers on random strings."""

import json
from pathlib import Path

import pytest

from ctxext.tasks.building.published_scores import PUBLISHED_SCORES
from ctxext.tasks.building.scores import METRICS, score

CASES = json.loads((Path(__file__).parents[1] / "golden" / "published_scores.json").read_text())


@pytest.mark.parametrize("metric", CASES)
def test_every_score_is_the_authors(metric):
    cases = CASES[metric]
    different = [
        (text, references, labels, right)
        for text, references, labels, right in cases
        if score(metric, text, references, labels=labels) != pytest.approx(right)
    ]
    assert not different
    assert len(cases) >= 40
    assert 0 < sum(right for *_, right in cases) < len(cases)


def test_no_published_score_is_untested():
    assert set(PUBLISHED_SCORES) <= set(CASES) <= set(METRICS)
