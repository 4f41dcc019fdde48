"""What tables say beside right and wrong: every number against scipy, a count by hand, or the planted value."""

import json

import numpy as np
import pytest
import scipy.stats

from ctxext.evals.stats import effective_length
from ctxext.report import summary, tables, write_report
from ctxext.report.analysis import effective_context
from ctxext.report.analysis.mistakes import KINDS
from ctxext.report.analysis.records import questions, variants
from ctxext.report.analysis.study import Study
from ctxext.tasks.building.scores import failure
from support.flat_rows import passkey_row, planted_run
from support.html_page import parse, table

DEPTHS = (0.0, 0.5, 1.0)
RNG = np.random.default_rng(0)


def asked(seq_len, n=20, *, rope="none", steps=0, condition="needle", change=lambda i: {}):
    """n questions at each of three depths; document i % 10."""
    rows = []
    for depth in DEPTHS:
        for i in range(n):
            row = passkey_row(rope, steps, seq_len, depth, i, True, condition=condition)
            row["haystack"] = [] if condition == "needle-only" else [[i % 10, 0, seq_len]]
            rows.append({**row, **change(i)})
    return rows


def part(text, start):
    (found,) = [x for x in text.split("\n\n") if x.startswith(start)]
    return found


def numbers(text, start, variant="none, zero-shot"):
    line = next(x for x in part(text, start).splitlines() if x.startswith(variant))
    return line[len(variant) :].strip()


def test_mean_scores_where_answers_can_be_partly_right():
    scores = RNG.integers(0, 5, size=20) / 4
    rows = asked(
        256,
        change=lambda i: {
            "metric": "all",
            "score": scores[i],
            "correct": scores[i] == 1,
            "failure": None if scores[i] == 1 else "part",
        },
    )
    by_document = np.array([[scores[[d, d + 10]].sum() * 3, 6] for d in range(10)])
    expected = scipy.stats.bootstrap(
        (by_document[:, 0], by_document[:, 1]),
        lambda a, b: a.sum() / b.sum(),
        paired=True,
        vectorized=False,
        method="percentile",
        rng=0,
    )
    (cell,) = summary(rows)["retrieval"]
    assert cell["score"]["value"] == pytest.approx(100 * scores.mean())
    low, high = expected.confidence_interval
    assert (cell["score"]["low"], cell["score"]["high"]) == pytest.approx(
        (100 * low, 100 * high), abs=1.5
    )
    said = cell["score"]
    assert numbers(tables(rows), "passkey: mean score, %") == (
        f"{said['value']:.0f} [{said['low']:.0f}, {said['high']:.0f}]"
    )
    whole = asked(256, change=lambda i: {"metric": "f1", "score": 1.0})
    wilson = scipy.stats.binomtest(60, 60).proportion_ci(method="wilson").low
    assert summary(whole)["retrieval"][0]["score"] == {
        "value": 100,
        "low": pytest.approx(100 * wilson),
        "high": 100,
    }
    assert "mean score" not in tables(asked(256))  # an exact answer has no parts


def test_choices_with_their_level_of_chance():
    rows = asked(256, change=lambda i: {"choices": 5, "chosen": i < 9})
    low, high = scipy.stats.binomtest(27, 60).proportion_ci(method="wilson")
    (cell,) = summary(rows)["retrieval"]
    assert cell["chance"] == pytest.approx(20)
    assert cell["choice"] == pytest.approx({"value": 45, "low": 100 * low, "high": 100 * high})
    assert numbers(tables(rows), "passkey: right answer chosen, %, chance 20 [95 %") == (
        f"45 [{100 * low:.0f}, {100 * high:.0f}]"
    )
    assert "chosen" not in tables(asked(256, change=lambda i: {"choices": 1}))


def test_context_gain_is_of_the_same_question_and_its_interval_of_documents():
    """A planted gain of 1.5 nats at 256 tokens and 0.2 at 512; documents differ by more than questions."""
    level = RNG.normal(2, 1, size=20)
    luck = RNG.normal(0, 0.3, size=(2, 10))
    luck -= luck.mean(1, keepdims=True)
    rows = []
    for k, (seq_len, gain) in enumerate(((256, 1.5), (512, 0.2))):
        rows += asked(seq_len, change=lambda i: {"answer_nll": level[i]})
        rows += asked(
            seq_len,
            condition="no-needle",
            change=lambda i, k=k, gain=gain: {"answer_nll": level[i] + gain + luck[k][i % 10]},
        )
    cells = summary(rows)["gain"]
    assert [(c["seq_len"], c["n"]) for c in cells] == [(256, 60), (512, 60)]
    for k, (cell, gain) in enumerate(zip(cells, (1.5, 0.2), strict=True)):
        values = gain + luck[k]
        assert cell["value"] == pytest.approx(gain)
        expected = scipy.stats.bootstrap(
            (values,), np.mean, method="percentile", rng=0
        ).confidence_interval
        assert (cell["low"], cell["high"]) == pytest.approx(tuple(expected), abs=0.03)
        assert cell["low"] < gain < cell["high"]
    said = f"{cells[0]['value']:.2f} [{cells[0]['low']:.2f}, {cells[0]['high']:.2f}] of 60"
    assert said in part(tables(rows), "passkey: context gain, nats per token")
    other = [{**row, "method": "other"} for row in rows if row["condition"] == "needle"]
    assert "; 1 other variant not asked without the needle" in tables([*rows, *other])
    alien = [{**row, "item": row["item"].replace("/aa-", "/zz-")} for row in rows]
    assert summary(alien)["gain"] == []  # controls on other questions have no pair
    assert part(tables(asked(256)), "passkey: context gain").endswith(
        "not asked (it takes the same questions with the needle and without)"
    )


def test_likelihood_of_the_answer():
    nats = RNG.gamma(2, size=20)
    rows = asked(256, change=lambda i: {"answer_nll": nats[i]})
    assert numbers(tables(rows), "passkey: nats per token of the right answer").startswith(
        f"{nats.mean():.2f} ["
    )


def test_controls_that_were_not_asked_are_named():
    rows = asked(256, 10) + asked(512, 10) + asked(256, 10, rope="yarn(factor=4)", steps=60)
    rows += asked(
        512,
        2,
        condition="no-needle",
        change=lambda i: {"correct": False, "answer_probability": 0.5},
    )
    text = part(tables(rows), "passkey: controls")
    lines = [" ".join(line.split()) for line in text.splitlines()[2:]]
    assert lines == [
        "no needle (floor), none, zero-shot not asked 0/6 0 [0, 39] p 0.50",
        "no needle (floor), 1 other variant not asked not asked",
        "needle only (ceiling), every variant not asked not asked",
        "the base at home, none, zero-shot 30/30 100 [89, 100] p 0.70",
    ]
    low, high = scipy.stats.binomtest(0, 6).proportion_ci(method="wilson")
    assert (low, round(100 * high)) == (0, 39)
    alone = asked(256, 10, rope="yarn(factor=4)", steps=60)
    text = part(tables(alone), "passkey: controls")
    assert "the base at home not asked" in " ".join(text.split())


def test_kinds_of_mistakes_add_up():
    kinds = ["distractor"] * 4 + ["made up"] * 2 + ["nothing"] * 1 + [None] * 13
    rows = asked(256, change=lambda i: {"failure": kinds[i], "correct": kinds[i] is None})
    (cell,) = summary(rows)["mistakes"]
    assert {
        k: cell[k]
        for k in ("right", "part", "distractor", "copied", "no number", "made up", "nothing")
    } == {
        "right": 39,
        "part": 0,
        "distractor": 12,
        "copied": 0,
        "no number": 0,
        "made up": 6,
        "nothing": 3,
    }
    text = part(
        tables(rows),
        "passkey: right and kinds of mistakes, % of the questions asked, where any was wrong",
    )
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["right", "distractor", "made", "up", "nothing"],
        ["none,", "zero-shot", "256", "65", "20", "10", "5"],
    ]
    assert "mistakes, % of the questions asked: none was wrong" in tables(asked(256))
    old = [{k: v for k, v in row.items() if k != "failure"} for row in rows]
    assert "mistakes" not in tables(old) and summary(old)["mistakes"] == []


def test_every_kind_of_mistake_has_its_place():
    said = {
        failure(text, ("4711", "42"), distractors=("99",), prompt="the prompt: 12 apples")
        for text in ("", "99", "47", "none", "12 apples", "7")
    }
    assert said == set(KINDS)
    with pytest.raises(ValueError, match="not known here: odd"):
        tables(asked(256, change=lambda i: {"correct": False, "failure": "odd"}))


def test_achieved_lengths():
    exact = asked(256) + asked(512) + asked(512, rope="yarn(factor=4)", steps=60)
    assert (
        "passkey: texts of 256, 512 tokens, all exactly; depths within 0.000 of those asked"
        in tables(exact)
    )
    rows = [{**row, "tokens": row["seq_len"] - int(row["item"][-1])} for row in exact]
    text = part(tables(rows), "passkey: achieved tokens and depths")
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["256", "60", "247", "/", "252", "/", "256", "0.00", "/", "0.50", "/", "1.00"],
        ["512", "60", "503", "/", "508", "/", "512", "0.00", "/", "0.50", "/", "1.00"],
    ]
    assert summary(rows)["sizes"][0]["tokens"] == [247, 251.5, 256]


def suite(name, right, seq_len=256, method="none, zero-shot"):
    rows = asked(seq_len, 20, change=lambda i: {"correct": i < right, "score": float(i < right)})
    return [
        {
            **row,
            "task": {"name": name},
            "suite": "ruler-exact",
            "method": method,
            "item": row["item"].replace("passkey/aa", f"{name}/{name}"),
            "eval": "ruler",
        }
        for row in rows
    ]


def test_a_suite_is_the_mean_over_tasks_and_says_what_it_lacks():
    rows = suite("vt", 20) + suite("cwe", 10) + suite("qa_1", 12) + suite("vt", 8, 512)
    first, second = summary(rows)["suites"]
    assert (
        first["percent"]["value"] == pytest.approx((100 + 50 + 60) / 3)
        and second["percent"]["value"] == 40
    )
    assert len(first["missing"]) == 10 and set(second["missing"]) - set(first["missing"]) == {
        "cwe",
        "qa_1",
    }
    # Documents 0..9 hold questions d and d + 10: 100 % of vt, 1 in 2 of cwe, and both of qa_1 if d < 2.
    per_document = np.array([(1 + 0.5 + (1.0 if d < 2 else 0.5)) / 3 for d in range(10)])
    assert first["error"] == pytest.approx(100 * scipy.stats.sem(per_document), rel=0.05)
    text = part(tables(rows), "ruler-exact: mean score over tasks")
    assert (
        f"70.0 [{first['percent']['low']:.1f}, {first['percent']['high']:.1f}] SE {first['error']:.1f}, 3/13"
        in text
    )
    assert (
        "fwe, qa_2: every variant at 256\n" in text and "qa_1, qa_2: every variant at 512" in text
    )
    own = [{**row, "suite": "mine"} for row in rows]
    assert [m["missing"] for m in summary(own)["suites"]] == [(), ("cwe", "qa_1")]
    json.dumps(summary(rows), allow_nan=False)


ROWS = [
    *[{**row, "correct": i % 20 < 19} for i, row in enumerate(asked(256))],
    *[
        {**row, "correct": i % 20 < k, "seq_len": n}
        for n, k in ((256, 20), (512, 18), (1024, 14))
        for i, row in enumerate(asked(n, rope="yarn(factor=4)", steps=60))
    ],
]


def test_other_bars():
    (question,) = questions(ROWS)
    study, yarn = Study(question), variants(ROWS)[1]
    mine, home = question.of(yarn), question.of(variants(ROWS)[0])
    for tau in effective_context.TAUS:
        expected = effective_length(
            [r["seq_len"] for r in mine],
            [r["correct"] for r in mine],
            [r["haystack"][0][0] for r in mine],
            [r["correct"] for r in home],
            [r["haystack"][0][0] for r in home],
            tau=tau,
        )
        assert study.effective(yarn, tau) == expected
    # Own score in the window 1, then 0.9 and 0.7: 0.85 of its own is kept up to 512, 0.7 up to the last.
    assert (
        effective_context.nolima(study, yarn),
        effective_context.nolima(study, yarn, tau=0.7),
    ) == (512, 1024)
    assert (
        effective_context.nolima(study, yarn, short=512, tau=0.85) == 512
    )  # the base score is 0.95
    assert effective_context.nolima(study, yarn, short=100) is None
    bars = summary(ROWS)["other_bars"]
    assert {b["value"] for b in bars if b.get("rule") == "nolima"} == {512}
    assert [b["tau"] for b in bars if "tau" in b] == list(effective_context.TAUS)


def test_the_page_of_several_tasks(tmp_path):
    other = [
        {
            **row,
            "task": {"name": "kv"},
            "suite": "mine",
            "item": row["item"].replace("passkey/aa", "kv/bb"),
            "tokens": row["seq_len"] - 3,
            "correct": row["correct"] and row["depth"] > 0,
            "failure": "distractor",
        }
        for row in ROWS
    ]
    rows = [{**row, "failure": None if row["correct"] else "copied"} for row in ROWS] + other
    page = parse(write_report([planted_run(tmp_path / "run", rows)]).read_text())
    far = [
        tr
        for t in page.all("table")
        if t.one("caption").text == "Effective context by variant and task"
        for tr in t.all("tr")[1:]
    ]
    entries = {e["task"]: e for e in summary(rows)["effective"] if e["method"].startswith("yarn")}
    assert {tr.all("td")[0].text: tr.all("td")[1].text for tr in far} == {
        task: f"{e['censored']} {e['value'] / 256:.2f}".strip() for task, e in entries.items()
    }
    titles = [chart.one("title").text for chart in page.all("svg", "chart")]
    assert "kv: achieved lengths" in titles and "passkey: achieved lengths" not in titles
    bars = table(page, "kv: what answers are, by length")
    assert (
        bars["yarn(factor=4), 60 steps at 1024", "right, %"].text == "47"
    )  # 14 of 20 at two of three depths
    (chart,) = [
        c
        for c in page.all("svg", "chart")
        if c.one("title").text == "kv: what answers are, by length"
    ]
    assert [g.one("text", "share").text for g in chart.all("g", "k0")] == ["67", "60", "47"]
    assert [g.one("text", "share").text for g in chart.all("g", "k2")] == ["33", "40", "53"]
    assert any(
        t.one("caption").text.startswith("mine: mean score over tasks") for t in page.all("table")
    )


def test_the_band_of_a_planted_difference(tmp_path):
    plain = [
        {**row, "correct": i % 20 < k, "seq_len": n}
        for n, k in ((256, 20), (512, 18), (1024, 4))
        for i, row in enumerate(asked(n, steps=60))
    ]
    page = parse(write_report([planted_run(tmp_path / "run", ROWS + plain)]).read_text())
    cells = table(page, "passkey: yarn(factor=4) after 60 steps minus none after 60 steps")
    assert [cells[n, "points"].text for n in ("256", "512", "1,024")] == ["+0", "+0", "+50"]
    low, high = map(
        int, cells["1,024", "95 % band, all lengths together"].text.strip("[]").split(", ")
    )
    assert 0 < low < 50 < high
