"""Tables are recomputed from rows: every number here is checked against hand-made rows."""

import json
import math

import numpy as np
import pytest

from ctxext import tasks
from ctxext.evals import EvaluatedModel, Perplexity, Retrieval
from ctxext.evals.oracle import (
    AnswerKey,
    ContextCurve,
    EchoPrompt,
    OracleConfig,
    PerfectReader,
    WindowReader,
)
from ctxext.evals.stats import wilson
from ctxext.evals.suite import SuiteConfig, evaluations
from ctxext.evaluate import evaluate
from ctxext.report import latest, summary, tables
from support.toy_tokenizer import toy_source, toy_tokenizer


def retrieval(method, seq_len, i, correct, *, depth=0.0, checkpoint="base", document=0):
    return {
        "checkpoint": checkpoint,
        "method": method,
        "window": 128,
        "eval": "retrieval",
        "task": {"name": "passkey"},
        "item": f"passkey/aa/{seq_len}/{depth}/{i}",
        "seq_len": seq_len,
        "depth": depth,
        "correct": correct,
        "prompt_sha256": f"{seq_len}/{i}",
        "answer_probability": 0.5,
        "answer_nll": 0.2,
        "haystack": [[document, 0, 9]],
    }


def ppl(method, seq_len, document, nll, count, size):
    return {
        "checkpoint": "base",
        "method": method,
        "window": 128,
        "eval": "ppl",
        "item": f"ppl/bb/{seq_len}/{document}/0",
        "seq_len": seq_len,
        "document": document,
        "nll": nll,
        "count": count,
        "bytes": size,
        "by_position": {"edges": [1, 2, 4], "nll": [nll / 4, nll * 3 / 4], "count": [1, 2]},
    }


def test_retrieval_counts_and_intervals():
    rows = [retrieval("none", 128, i, i < 18, document=i) for i in range(20)]
    rows += [retrieval("none", 256, i, False) for i in range(20)]
    cells = summary(rows)["retrieval"]
    assert [(c["seq_len"], c["correct"], c["n"], c["beyond_window"]) for c in cells] == [
        (128, 18, 20, False),
        (256, 0, 20, True),
    ]
    assert (cells[0]["rate"], cells[0]["low"], cells[0]["high"]) == tuple(wilson(18, 20))
    text = tables(rows)
    assert "18/20 90 [70, 97] p 0.50" in text and "0/20 0 [0, 16] p 0.50" in text
    assert (
        " 256*" in text
        and " 128*" not in text
        and "longer than the window of pre-training (128 tokens)" in text
    )
    json.dumps(summary(rows), allow_nan=False)


def test_paired_differences_use_the_items_that_both_have():
    rows = [retrieval("none", 128, i, i % 2 == 0, document=i) for i in range(20)]
    rows += [retrieval("yarn", 128, i, True, document=i) for i in range(10)]
    text = tables(rows)
    line = next(x for x in text.split("\n\n")[1].splitlines() if x.startswith("yarn"))
    assert line.split()[1] == "+50"  # of the ten common items the base has five
    assert "difference to none" in text
    alien = [{**row, "prompt_sha256": "other"} if row["method"] == "yarn" else row for row in rows]
    assert "difference" not in tables(alien)


def test_pairs_that_all_agree_are_not_certain():
    rows = [
        retrieval(method, 128, i, False, document=i)
        for method in ("none", "yarn")
        for i in range(20)
    ]
    line = next(x for x in tables(rows).split("\n\n")[1].splitlines() if x.startswith("yarn"))
    assert line.split(maxsplit=1)[1].strip() == "+0 [-16, +16]"  # 0 of 20 may be 16 %


def test_pairs_that_all_differ_are_not_certain():
    rows = [
        retrieval(method, 128, i, method == "yarn", document=i)
        for method in ("none", "yarn")
        for i in range(20)
    ]
    line = next(x for x in tables(rows).split("\n\n")[1].splitlines() if x.startswith("yarn"))
    assert line.split(maxsplit=1)[1].strip() == "+100 [+84, +100]"  # 20 of 20 may be 84 %


def test_perplexity_is_of_sums_over_documents():
    rows = [ppl("none", 128, 0, 10.0, 10, 40), ppl("none", 128, 1, 90.0, 30, 80)]
    (cell,) = summary(rows)["perplexity"]
    assert cell["perplexity"] == pytest.approx(math.exp(100 / 40))
    assert cell["bits_per_byte"] == pytest.approx(100 / math.log(2) / 120)
    assert (
        math.exp(1) - 1e-9 <= cell["low"] < cell["perplexity"] < cell["high"] <= math.exp(3) + 1e-9
    )
    (position,) = summary(rows)["by_position"]
    assert position["nll"] == [12.5, 18.75] and position["count"] == [2, 4]
    assert summary(rows[:1])["perplexity"][0]["low"] is None
    assert "12.18 [" in tables(rows) and "2-3" in tables(rows)


def test_a_newer_row_replaces_an_older_one_and_nothing_else_is_merged():
    rows = [retrieval("none", 128, 0, False), retrieval("none", 128, 0, True)]
    assert [row["correct"] for row in latest(rows)] == [True]
    other = {**retrieval("none", 128, 0, False), "item": "passkey/zz/128/0.0/0"}
    assert [(c["correct"], c["n"]) for c in summary([*rows, other])["retrieval"]] == [
        (1, 1),
        (0, 1),
    ]
    trained = retrieval("none", 128, 0, False, checkpoint="run step 5")
    assert "none (run step 5)" in tables([*rows, trained])
    assert tables([]) == "no rows"


def test_oracles_from_model_to_table(tmp_path):
    tokenizer, source = toy_tokenizer(), toy_source()
    config = OracleConfig(64)
    grid = Retrieval(seq_lens=(64, 256), depths=(0.0, 0.5, 1.0), n=4, source=source)
    pairs = Retrieval(
        seq_lens=(256,), depths=(0.5,), n=4, source=source, task=tasks.KeyValue(num_pairs=3)
    )
    curve = Perplexity(seq_lens=(64, 256), num_documents=3, target_tokens=16, source=source)
    rows = []
    models = {
        "perfect": PerfectReader(tokenizer, config),
        "last-64": WindowReader(tokenizer, 64, config),
        "echo": EchoPrompt(tokenizer, config),
    }
    for name, model in models.items():
        rows += evaluate(model, (grid, pairs), model=EvaluatedModel(64, rope=name), progress=False)
    flat = ContextCurve(tokenizer, lambda seen: np.where(seen < 64, 1.0, 2.0), config)
    rows += evaluate(flat, (curve,), progress=False)
    found = {(c["method"], c["task"], c["seq_len"]): c["rate"] for c in summary(rows)["retrieval"]}
    assert found == {
        ("perfect", "passkey", 64): 1,
        ("perfect", "passkey", 256): 1,
        ("perfect", "kv", 256): 1,
        ("last-64", "passkey", 64): 1,
        ("last-64", "passkey", 256): 1 / 3,
        ("last-64", "kv", 256): 0,
        ("echo", "passkey", 64): 0,
        ("echo", "passkey", 256): 0,
        ("echo", "kv", 256): 0,
    }
    text = tables(rows, by_depth=True)
    grid_text = next(part for part in text.split("\n\n") if part.startswith("passkey, last-64"))
    assert [line.split() for line in grid_text.splitlines()[2:]] == [
        ["0", "4/4", "0/4"],
        ["0.5", "4/4", "0/4"],
        ["1", "4/4", "4/4"],
    ]
    values = {c["seq_len"]: c["perplexity"] for c in summary(rows)["perplexity"]}
    assert values == {64: pytest.approx(math.e), 256: pytest.approx(math.e**2)}


def test_the_overview_puts_all_tasks_of_an_arm_together():
    tokenizer, source = toy_tokenizer(), toy_source()
    asked = evaluations(("passkey", "kv", "fwe"), SuiteConfig((300, 512), source=source))
    rows = []
    for evaluation in asked:
        for name, reader in (
            ("none", AnswerKey.of(evaluation, tokenizer, window=400, config=OracleConfig(300))),
            ("blind", EchoPrompt(tokenizer, OracleConfig(300))),
        ):
            rows += evaluate(
                reader, [evaluation], model=EvaluatedModel(300, rope=name), progress=False
            )
    text = tables(rows)
    table = next(part for part in text.split("\n\n") if part.startswith("none: % right"))
    lines = {line.split()[0]: line for line in table.splitlines()[2:]}
    right = [
        row
        for row in rows
        if row.model.label == "none" and row.question.task == "passkey" and row.scores.correct
    ]
    share = 100 * sum(row.seq_len == 512 for row in right) / 60
    assert f"100 [94, 100]  {share:.0f} [" in lines["passkey"] and "512*" in table
    assert list(lines) == ["passkey", "kv", "fwe"]
    assert "0 [0, 6]" in next(
        part for part in text.split("\n\n") if part.startswith("blind: % right")
    )
