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
    hashes = {name: f"{name}{i}" for name in ("doc_hash", "prompt_hash", "target_hash")}
    return {"doc_id": i, "filter": "none", "metrics": list(metrics), **hashes, **metrics}


def test_right_and_wrong_answers() -> None:
    rng = np.random.default_rng(0)
    base, model, other = (rng.random(200) < p for p in (0.7, 0.5, 0.68))
    a = {name: [sample(i, acc=x) for i, x in enumerate(base)] for name in ("one", "two")}
    b = {
        "one": [sample(i, acc=float(x)) for i, x in enumerate(model)],
        "two": [sample(i, acc=x) for i, x in enumerate(other)],
    }
    found = differences(b, a)
    expected = []
    for d, right in zip(found, (model, other), strict=True):
        cells = [
            [(base & right).sum(), (base & ~right).sum()],
            [(~base & right).sum(), (~base & ~right).sum()],
        ]
        expected.append(mcnemar(cells, exact=True).pvalue)
        assert (d.only_base, d.only_model, d.unit) == (cells[0][1], cells[1][0], "points")
        assert d.p == pytest.approx(expected[-1])
        assert d.difference.value == pytest.approx(d.model - d.base)
        assert d.model == pytest.approx(100 * right.mean())
        assert d.base == pytest.approx(100 * base.mean())
        error = 100 * np.std(right.astype(float) - base, ddof=1) / math.sqrt(200)
        assert d.difference.high - d.difference.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert [d.adjusted for d in found] == pytest.approx(
        multipletests(expected, method="holm")[1].tolist()
    )
    assert found[0].adjusted < 0.01 < found[1].adjusted
    text = table(found)
    assert f"{found[0].only_base}:{found[0].only_model}" in text
    assert "one acc" in text


def test_equal_answers_are_not_certain() -> None:
    rows = {"t": [sample(i, acc=i % 2) for i in range(20)]}
    (d,) = differences(rows, rows)
    assert (d.p, d.adjusted, d.only_base, d.only_model) == (1.0, 1.0, 0, 0)
    assert d.difference.low == -d.difference.high
    assert 10 < d.difference.high < 20  # 0 of 20 leaves 16 % open


def test_perplexities_and_means() -> None:
    """exp(nats per word) is the harness's word perplexity: documents weighted by their words."""
    rng = np.random.default_rng(1)
    words = rng.integers(5, 50, 30)
    nats = rng.normal(3, 0.2, (2, 30))
    a, b = (
        {
            "t": [
                sample(
                    i, word_perplexity=(-n * w, int(w)), f=(1, 0), f1=float(n), bits=float("nan")
                )
                for i, (n, w) in enumerate(zip(side, words, strict=True))
            ]
        }
        for side in nats
    )
    word, mean = differences(b, a)
    assert word.unit == "nats per word"
    assert mean.metric == "f1"
    assert word.p is None
    assert [word.base, word.model] == pytest.approx(
        [np.average(side, weights=words) for side in nats]
    )
    assert word.difference.low < word.difference.value < word.difference.high
    assert word.difference.value == pytest.approx(word.model - word.base)
    assert mean.difference.value == pytest.approx(nats[1].mean() - nats[0].mean())


def test_other_questions_are_not_pairs() -> None:
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


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "ctxext.harness.model", raising=False)
    monkeypatch.delitem(sys.modules, "ctxext.harness.tasks", raising=False)
    assert main(["harness", "tiny-llama", "--tasks", "arc_easy"]) == 2
    assert "pip install 'ctxext[lm-eval]'" in capsys.readouterr().err
