"""Result tables: every number against scipy, a count by hand, or a planted value."""

import json
import re

import numpy as np
import pytest
import scipy.stats

from ctxext.evals.stats import effective_length
from ctxext.report import summary, tables, write_report
from ctxext.report.analysis.effective_context import THRESHOLDS, nolima_length
from ctxext.report.analysis.mistakes import KINDS
from ctxext.report.analysis.results import Results
from ctxext.report.pages.page import CHART_STYLE
from ctxext.tasks.building.scores import failure
from support.html_page import parse, table
from support.planted import passkey_record, planted_run
from support.records import changed

DEPTHS = (0.0, 0.5, 1.0)
RNG = np.random.default_rng(0)


def questions(seq_len, n=20, *, rope="none", steps=0, condition="needle", change=lambda i: {}):
    """n questions at each of three depths, question i about document i % 10."""
    records = []
    for depth in DEPTHS:
        for i in range(n):
            record = passkey_record(rope, steps, seq_len, depth, i, True, condition=condition)
            if condition != "needle-only":
                record = changed(record, document=i % 10)
            records.append(changed(record, **change(i)))
    return records


def part(text, start):
    """The table of `text` that begins with `start`."""
    (block,) = [block for block in text.split("\n\n") if block.startswith(start)]
    return block


def numbers(text, start, variant="none, zero-shot"):
    """The cells of a variant's line in the table that begins with `start`."""
    line = next(x for x in part(text, start).splitlines() if x.startswith(variant))
    return line[len(variant) :].strip()


def test_mean_scores_where_answers_can_be_partly_right():
    scores = RNG.integers(0, 5, size=20) / 4
    records = questions(
        256,
        change=lambda i: {
            "metric": "all",
            "score": float(scores[i]),
            "correct": bool(scores[i] == 1),
            "failure": None if scores[i] == 1 else "part",
        },
    )
    by_document = [scores[[d, d + 10]].mean() for d in range(10)]
    expected = scipy.stats.ttest_1samp(by_document, 0).confidence_interval()
    (cell,) = summary(records)["retrieval"]
    score = cell["score"]
    assert score["value"] == pytest.approx(100 * scores.mean())
    limits = (100 * expected.low, 100 * expected.high)
    assert (score["low"], score["high"]) == pytest.approx(limits)
    assert numbers(tables(records), "passkey: mean score, %") == (
        f"{score['value']:.0f} [{score['low']:.0f}, {score['high']:.0f}]"
    )
    all_right = questions(256, change=lambda i: {"metric": "f1", "score": 1.0})
    wilson = scipy.stats.binomtest(60, 60).proportion_ci(method="wilson").low
    assert summary(all_right)["retrieval"][0]["score"] == {
        "value": 100,
        "low": pytest.approx(100 * wilson),
        "high": 100,
    }
    # An exact answer has no parts.
    assert "mean score" not in tables(questions(256))


def test_choices_with_their_level_of_chance():
    records = questions(256, change=lambda i: {"choices": 5, "chosen": i < 9})
    low, high = scipy.stats.binomtest(27, 60).proportion_ci(method="wilson")
    (cell,) = summary(records)["retrieval"]
    assert cell["chance"] == pytest.approx(20)
    assert cell["choice"] == pytest.approx({"value": 45, "low": 100 * low, "high": 100 * high})
    assert numbers(tables(records), "passkey: right answer chosen, %, chance 20 [95 %") == (
        f"27/60 45 [{100 * low:.0f}, {100 * high:.0f}]"
    )
    assert "chosen" not in tables(questions(256, change=lambda i: {"choices": 1}))


def test_context_gain_is_of_the_same_question_and_its_interval_of_documents():
    """Planted gains of 1.5 nats at 256 tokens and 0.2 at 512; documents differ most."""
    level = RNG.normal(2, 1, size=20)
    luck = RNG.normal(0, 0.3, size=(2, 10))
    luck -= luck.mean(1, keepdims=True)
    records = []
    for k, (seq_len, gain) in enumerate(((256, 1.5), (512, 0.2))):
        records += questions(seq_len, change=lambda i: {"answer_nll": level[i]})
        records += questions(
            seq_len,
            condition="no-needle",
            change=lambda i, k=k, gain=gain: {"answer_nll": level[i] + gain + luck[k][i % 10]},
        )
    cells = summary(records)["gain"]
    assert [(c["seq_len"], c["n"]) for c in cells] == [(256, 60), (512, 60)]
    for k, (cell, gain) in enumerate(zip(cells, (1.5, 0.2), strict=True)):
        values = gain + luck[k]
        assert cell["value"] == pytest.approx(gain)
        expected = scipy.stats.ttest_1samp(values, 0).confidence_interval()
        assert (cell["low"], cell["high"]) == pytest.approx((expected.low, expected.high))
        assert cell["low"] < gain < cell["high"]
    text = f"{cells[0]['value']:.2f} [{cells[0]['low']:.2f}, {cells[0]['high']:.2f}] of 60"
    assert text in part(tables(records), "passkey: context gain, nats per token")
    with_needle = [record for record in records if record.question.condition == "needle"]
    without_control = [changed(record, rope="other") for record in with_needle]
    # Of one text alone there is no interval, and the cell says why.
    one = [changed(record, document=0) for record in records if record.seq_len == 256]
    assert f"{cells[0]['value']:.2f} (one text)" in part(tables(one), "passkey: context gain")
    assert "\nother, zero-shot: not asked without the needle" in tables(
        [*records, *without_control]
    )


def test_controls_of_other_questions_have_no_gain():
    controls = [
        changed(record, needle_item=record.question.needle_item.replace("/aa/", "/zz/"))
        for record in questions(256, condition="no-needle")
    ]
    assert summary([*questions(256), *controls])["gain"] == []
    assert part(tables(questions(256)), "passkey: context gain").endswith(
        "not asked: it takes the same questions with the needle and without"
    )


def test_controls_of_questions_that_were_not_asked_are_reported():
    controls = questions(256, condition="no-needle")
    (cell,) = summary(controls)["controls"]
    assert (cell["condition"], cell["n"]) == ("no-needle", 60)
    assert "60/60 100 [94, 100] prob. 0.70" in part(tables(controls), "controls of questions that")


def test_likelihood_of_the_answer():
    nats = RNG.gamma(2, size=20)
    records = questions(256, change=lambda i: {"answer_nll": nats[i]})
    assert numbers(tables(records), "passkey: nats per token of the right answer").startswith(
        f"{nats.mean():.2f} ["
    )


def test_controls_that_were_not_asked_are_named():
    records = (
        questions(256, 10)
        + questions(512, 10)
        + questions(256, 10, rope="yarn(factor=4)", steps=60)
    )
    records += questions(
        512,
        2,
        condition="no-needle",
        change=lambda i: {"correct": False, "failure": "nothing", "answer_probability": 0.5},
    )
    text = part(tables(records), "passkey: controls")
    assert [" ".join(line.split()) for line in text.splitlines()[2:]] == [
        "no needle (floor), none, zero-shot not asked 0/6 0 [0, 39] prob. 0.50",
        "no needle (floor), yarn(factor=4), 60 steps at 1024 not asked not asked",
        "needle without text, every variant not asked not asked",
        "in-window baseline, none, zero-shot 30/30 100 [89, 100] prob. 0.70 -",
    ]
    low, high = scipy.stats.binomtest(0, 6).proportion_ci(method="wilson")
    assert (low, round(100 * high)) == (0, 39)
    no_base = questions(256, 10, rope="yarn(factor=4)", steps=60)
    last = part(tables(no_base), "passkey: controls").splitlines()[-1]
    assert last.split() == ["in-window", "baseline", "not", "asked"]


def test_kinds_of_mistakes_add_up():
    kinds = ["distractor"] * 4 + ["made up"] * 2 + ["nothing"] * 1 + [None] * 13
    records = questions(256, change=lambda i: {"failure": kinds[i], "correct": kinds[i] is None})
    (cell,) = summary(records)["mistakes"]
    counts = {kind: cell[kind] for kind in ("right", *KINDS)}
    assert counts == {
        "right": 39,
        "part": 0,
        "distractor": 12,
        "copied": 0,
        "no number": 0,
        "made up": 6,
        "nothing": 3,
        "next number": 0,
        "truncated": 0,
        "first digits": 0,
        "right beginning": 0,
    }
    text = part(tables(records), "passkey: right answers and kinds of mistakes, % of the questions")
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["variant", "tokens", "right", "distractor", "made", "up", "nothing"],
        ["none,", "zero-shot", "256", "65", "20", "10", "5"],
    ]


def test_every_kind_of_mistake_is_known():
    kinds = {
        failure(text, ("4711", "42"), distractors=("99",), prompt="the prompt: 12 apples")
        for text in ("", "99", "42!", "47", "4788", "none", "12 apples", "7", "43")
    }
    kinds.add(failure("amber fox", ("amber-falcon",), prompt=""))
    assert kinds == set(KINDS)
    with pytest.raises(ValueError, match="unknown kinds of mistakes: odd"):
        tables(questions(256, change=lambda i: {"correct": False, "failure": "odd"}))


def test_every_kind_of_mistake_has_a_colour_of_its_own():
    colours = dict(re.findall(r"\.(k\d+) \{ color: (#\w{6}); \}", CHART_STYLE.read_text()))
    assert set(colours) == {f"k{i}" for i in range(1 + len(KINDS))}
    assert len(set(colours.values())) == len(colours)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" 30831", "next number"),
        ("30831\n# key I=", "next number"),
        ("17", "next number"),  # after another record's value
        ("30829", "first digits"),
        ("30830 and 30831", "part"),
        ("16", "distractor"),
        ("K=30831", "next number"),
    ],
)
def test_counting_on_is_a_mistake_of_its_own(text, kind):
    """A real model of language answers `# key H=` with 30831 where the text has `# key H=30830`."""
    assert failure(text, ("30830",), distractors=("16",), prompt="# key H=30830") == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("3083", "truncated"),
        ("308.", "truncated"),
        ("30831", "next number"),
        ("30899", "first digits"),
        ("308300", "part"),
        ("30", "truncated"),
        ("3", "made up"),
        ("39830", "made up"),
        ("key 30899", "first digits"),
    ],
)
def test_a_number_may_begin_right(text, kind):
    assert failure(text, ("30830",), prompt="") == kind


@pytest.mark.parametrize(
    ("text", "reference", "kind"),
    [
        (" Amber-fox", "amber-falcon", "right beginning"),
        ('"amber fox"', "amber-falcon", "right beginning"),
        ("amber-fal", "amber-falcon", "part"),
        ("amb", "amber-falcon", "part"),
        ("ambient falcon", "amber-falcon", "made up"),
        ("orchid", "orchard", "right beginning"),
        ("organ", "orchard", "made up"),
        ("orchards", "orchard", "part"),
        ("fox", "fog", "made up"),
        ("5f1c7b2a-11", "5f1c7b2a-90d1-4c55", "right beginning"),
        ("a fine day", "a bad day", "made up"),
        ("", "orchard", "nothing"),
        ("30899", "30830", "first digits"),
    ],
)
def test_words_may_begin_right(text, reference, kind):
    """By luck, one key in ninety-six has the same first word."""
    assert failure(text, (reference,), prompt="") == kind


def test_values_that_are_not_whole_numbers_have_no_next_one():
    assert failure("lion 2", ("lion", "4.5"), prompt="") == "part"
    assert failure("5", ("lion", "4.5"), prompt="") == "made up"


def test_achieved_lengths():
    exact = questions(256) + questions(512) + questions(512, rope="yarn(factor=4)", steps=60)
    depths = ["0.00", "/", "0.50", "/", "1.00", "0.000"]
    text = part(tables(exact), "Achieved lengths, all exact, and depths")
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["passkey", "256", "60", "256", *depths],
        ["passkey", "512", "60", "512", *depths],
    ]
    records = [changed(r, tokens=r.seq_len - int(r.item[-1])) for r in exact]
    text = part(tables(records), "Achieved lengths, and depths")
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["passkey", "256", "60", "247", "/", "252", "/", "256", *depths],
        ["passkey", "512", "60", "503", "/", "508", "/", "512", *depths],
    ]
    assert summary(records)["lengths"][0]["tokens"] == [247, 251.5, 256]


def suite(name, num_correct, seq_len=256, suite="ruler-exact"):
    """Questions of a suite's task, of which the first `right` of 20 at each depth are right."""

    def change(i):
        correct = i < num_correct
        failure = None if correct else "made up"
        return {"correct": correct, "score": float(correct), "failure": failure}

    return [
        changed(
            record,
            task=name,
            suite=suite,
            label=name,
            settings=name,
            item=record.item.replace("passkey/aa", f"{name}/{name}"),
        )
        for record in questions(seq_len, 20, change=change)
    ]


def test_a_suite_is_the_mean_over_tasks_and_names_those_that_are_missing():
    records = suite("vt", 20) + suite("cwe", 10) + suite("qa_1", 12) + suite("vt", 8, 512)
    first, second = summary(records)["suites"]
    assert first["percent"]["value"] == pytest.approx((100 + 50 + 60) / 3)
    assert second["percent"]["value"] == 40
    assert len(first["missing"]) == 10
    assert set(second["missing"]) - set(first["missing"]) == {"cwe", "qa_1"}
    # Documents 0..9 have questions d and d + 10: 100 % of vt, 1 in 2 of cwe, both of qa_1 if d < 2.
    per_document = np.array([(1 + 0.5 + (1.0 if d < 2 else 0.5)) / 3 for d in range(10)])
    assert first["error"] == pytest.approx(100 * scipy.stats.sem(per_document), rel=0.05)
    text = part(tables(records), "ruler-exact: mean score over tasks")
    bounds = f"[{first['percent']['low']:.1f}, {first['percent']['high']:.1f}]"
    assert f"70.0 {bounds} SE {first['error']:.1f}, 3/13" in text
    notes = " ".join(text.splitlines())
    assert "fwe, qa_2: every variant at 256" in notes
    assert "qa_1, qa_2: every variant at 512" in notes
    own_suite = [changed(record, suite="mine") for record in records]
    assert [m["missing"] for m in summary(own_suite)["suites"]] == [[], ["cwe", "qa_1"]]
    json.dumps(summary(records), allow_nan=False)


def marked(correct):
    return {"correct": correct, "failure": None if correct else "copied"}


RECORDS = [
    *questions(256, change=lambda i: marked(i % 20 < 19)),
    *questions(256, rope="yarn(factor=4)", steps=60, change=lambda i: marked(True)),
    *questions(512, rope="yarn(factor=4)", steps=60, change=lambda i: marked(i % 20 < 18)),
    *questions(1024, rope="yarn(factor=4)", steps=60, change=lambda i: marked(i % 20 < 14)),
]


def test_other_thresholds():
    (study,) = Results(RECORDS).studies
    base, yarn = study.task.variants
    answers = study.task.select(yarn)
    baseline = study.task.select(base)
    for threshold in THRESHOLDS:
        expected = effective_length(
            [r.seq_len for r in answers],
            [r.scores.correct for r in answers],
            [r.cluster.document for r in answers],
            [r.scores.correct for r in baseline],
            [r.cluster.document for r in baseline],
            tau=threshold,
        )
        assert study.effective_context(yarn, threshold) == expected
    # Its score is 1 in the window, then 0.9 and 0.7: it keeps 0.85 up to 512, 0.7 up to 1024.
    assert nolima_length(study, yarn) == 512
    assert nolima_length(study, yarn, threshold=0.7) == 1024
    # The base score is 0.95.
    assert nolima_length(study, yarn, short=512, threshold=0.85) == 512
    assert nolima_length(study, yarn, short=100) is None
    (entry,) = summary(RECORDS)["effective"]
    assert entry["nolima"] == 512
    assert list(entry["by_threshold"]) == [f"{t:g}" for t in THRESHOLDS]


def test_the_page_of_several_tasks(tmp_path):
    kv = [
        changed(
            record,
            task="kv",
            suite="mine",
            label="kv",
            settings="bb",
            item=record.item.replace("passkey/aa", "kv/bb"),
            tokens=record.seq_len - 3,
            correct=record.scores.correct and record.question.depth > 0,
            failure="distractor",
        )
        for record in RECORDS
    ]
    records = RECORDS + kv
    page = parse(write_report([planted_run(tmp_path / "run", records)]).read_text())
    by_caption = {t.one("caption").text: t for t in page.all("table")}
    (over_tasks,) = [
        t for caption, t in by_caption.items() if caption.startswith("Effective context by")
    ]
    rows = [[td.text for td in tr.all("td")] for tr in over_tasks.all("tr")[1:]]
    entries = summary(records)["effective"]
    windows_shown = {
        task.rpartition("/")[2]: windows.split(" [")[0] for task, _, windows, *_ in rows
    }
    assert windows_shown == {
        entry["task"]: f"{entry['censored']} {entry['value'] / 256:.2f}".strip()
        for entry in entries
        if entry["method"].startswith("yarn")
    }
    charts = {chart.one("title").text: chart for chart in page.all("svg", "chart")}
    assert "mine/kv: achieved lengths" in charts
    assert "passkey: achieved lengths" not in charts
    title = "mine/kv: right and wrong answers by length"
    numbers = by_caption[title]
    yarn = [tr for tr in numbers.all("tr")[1:] if tr.one("th").text.startswith("yarn")]
    percents = [tr.all("td")[1].text for tr in yarn]
    # 20, 18 and 14 of 20 at two of three depths.
    assert percents == ["67", "60", "47"]
    bars = charts[title]
    assert [g.one("text", "share").text for g in bars.all("g", "k0")] == ["67", "60", "47"]
    assert [g.one("text", "share").text for g in bars.all("g", "k2")] == ["33", "40", "53"]
    assert any(caption.startswith("mine: mean score over tasks") for caption in by_caption)


def test_the_band_of_a_planted_difference(tmp_path):
    unscaled = [
        *questions(256, steps=60),
        *questions(512, steps=60, change=lambda i: marked(i % 20 < 18)),
        *questions(1024, steps=60, change=lambda i: marked(i % 20 < 4)),
    ]
    page = parse(write_report([planted_run(tmp_path / "run", RECORDS + unscaled)]).read_text())
    cells = table(page, "passkey: yarn(factor=4) after 60 steps minus none after 60 steps")
    assert [cells[n, "points"].text for n in ("256", "512", "1,024")] == ["+0", "+0", "+50"]
    bounds = cells["1,024", "95 % band, all lengths together"].text
    low, high = map(int, bounds.strip("[]").split(", "))
    assert 0 < low < 50 < high
