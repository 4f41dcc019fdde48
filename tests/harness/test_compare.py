"""Differences between two models from logged samples, against statsmodels and by hand."""

import math
import sys
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from ctxext.cli.main import main
from ctxext.files import write_json
from ctxext.harness.compare import differences, plain
from ctxext.harness.tables import scores, table


def sample(i: int, **metrics: Any) -> dict[str, Any]:
    """A logged sample of the harness, of document i."""
    hashes = {name: f"{name}{i}" for name in ("doc_hash", "prompt_hash", "target_hash")}
    return {"doc_id": i, "filter": "none", "metrics": list(metrics), **hashes, **metrics}


def test_right_and_wrong_answers() -> None:
    rng = np.random.default_rng(0)
    base, worse, similar = (rng.random(200) < p for p in (0.7, 0.5, 0.68))
    base_samples = {
        task: [sample(i, acc=right) for i, right in enumerate(base)] for task in ("one", "two")
    }
    model_samples = {
        "one": [sample(i, acc=float(right)) for i, right in enumerate(worse)],
        "two": [sample(i, acc=right) for i, right in enumerate(similar)],
    }
    results = differences(model_samples, base_samples)
    p_values = []
    for result, model in zip(results, (worse, similar), strict=True):
        both = (base & model).sum()
        only_base = (base & ~model).sum()
        only_model = (~base & model).sum()
        neither = (~base & ~model).sum()
        p = mcnemar([[both, only_base], [only_model, neither]], exact=True).pvalue
        p_values.append(p)
        assert result.only_base == only_base
        assert result.only_model == only_model
        assert result.unit == "points"
        assert result.p == pytest.approx(p)
        assert result.difference.value == pytest.approx(result.model - result.base)
        assert result.model == pytest.approx(100 * model.mean())
        assert result.base == pytest.approx(100 * base.mean())
        error = 100 * np.std(model.astype(float) - base, ddof=1) / math.sqrt(200)
        width = result.difference.high - result.difference.low
        assert width == pytest.approx(2 * 1.96 * error, rel=0.1)
    adjusted = multipletests(p_values, method="holm")[1].tolist()
    assert [result.adjusted for result in results] == pytest.approx(adjusted)
    assert results[0].adjusted < 0.01 < results[1].adjusted
    text = table(results)
    assert f"{results[0].only_base}:{results[0].only_model}" in text
    assert "one acc" in text


def test_equal_answers_are_not_certain() -> None:
    samples = {"t": [sample(i, acc=i % 2) for i in range(20)]}
    (result,) = differences(samples, samples)
    assert result.p == 1.0
    assert result.adjusted == 1.0
    assert result.only_base == 0
    assert result.only_model == 0
    # 0 of 20 is compatible with a share of up to 16 %.
    assert result.difference.low == pytest.approx(-result.difference.high)
    assert 10 < result.difference.high < 20


def test_perplexities_and_means() -> None:
    """exp(nats per word) is the harness's word perplexity: documents weighted by their words."""
    rng = np.random.default_rng(1)
    words = rng.integers(5, 50, 30)
    base_nll, model_nll = rng.normal(3, 0.2, (2, 30))

    def samples(nll_per_word: np.ndarray) -> dict[str, list]:
        """Besides the perplexity and f1, two metrics that cannot be compared."""
        return {
            "t": [
                sample(
                    i, word_perplexity=(-nll * n, int(n)), f=(1, 0), f1=float(nll), bits=math.nan
                )
                for i, (nll, n) in enumerate(zip(nll_per_word, words, strict=True))
            ]
        }

    word, mean = differences(samples(model_nll), samples(base_nll))
    assert word.unit == "nats per word"
    assert word.p is None
    assert word.base == pytest.approx(np.average(base_nll, weights=words))
    assert word.model == pytest.approx(np.average(model_nll, weights=words))
    assert word.difference.low < word.difference.value < word.difference.high
    assert word.difference.value == pytest.approx(word.model - word.base)
    assert mean.metric == "f1"
    assert mean.difference.value == pytest.approx(model_nll.mean() - base_nll.mean())


def test_different_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not asked the same questions"):
        differences({"t": [sample(0, acc=1)]}, {"t": [sample(1, acc=1)]})


def test_results_become_strict_json(tmp_path) -> None:
    value = plain(
        {
            "a": np.float32(0.5),
            1: (np.int64(2), np.bool_(True)),
            "n": [math.nan, math.inf, None],
            "f": len,
        }
    )
    write_json(tmp_path / "x.json", value)
    assert value == {"a": 0.5, "1": [2, True], "n": [None, None, None], "f": str(len)}


def test_a_table_of_results() -> None:
    results = {
        "results": {
            "t": {"alias": "t", "acc,none": 0.25, "acc_stderr,none": 0.125, "sample_len": 4}
        },
        "groups": {"g": {"acc,none": 0.5, "acc_stderr,none": "N/A"}},
        "n-shot": {"t": 2},
        "higher_is_better": {"t": {"acc": True}},
    }
    lines = [line.split() for line in scores(results, "model").splitlines()]
    assert lines[2:] == [
        ["t", "none", "2", "acc", "up", "0.2500", "0.1250"],
        ["g", "none", "acc", "0.5000"],
    ]


def test_without_the_extra_one_line_names_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "ctxext.harness.model", raising=False)
    monkeypatch.delitem(sys.modules, "ctxext.harness.tasks", raising=False)
    assert main(["harness", "tiny-llama", "--tasks", "arc_easy"]) == 2
    assert "pip install 'ctxext[lm-eval]'" in capsys.readouterr().err
