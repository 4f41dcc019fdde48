"""The verdict says what planted rows hold: numbers by hand and by scipy, and nothing where data are missing."""

import math

import pytest
from scipy import optimize, stats

from ctxext.evals.stats import effective_length
from ctxext.report import summary, verdict
from ctxext.report.analysis.records import questions
from ctxext.report.analysis.study import Study
from support.flat_rows import passkey_row, planted_rows
from support.planted import DEPTHS

YARN, NONE, NTK = "yarn(factor=4)", "none", "ntk(factor=4)"


def variant(rope, steps, right, n=4, **more):
    """An variant that answers the first right[length] of n questions at each of five depths."""
    return [
        passkey_row(rope, steps, seq_len, depth, i, i + n * d < k, **more)
        for seq_len, k in right.items()
        for d, depth in enumerate(DEPTHS)
        for i in range(n)
    ]


ROWS = [
    *variant(NONE, 0, {256: 20, 512: 0, 1024: 0}),
    *variant(YARN, 0, {256: 18, 512: 15, 1024: 6}),
    *variant(NONE, 60, {256: 20, 512: 10, 1024: 0}),
    *variant(NTK, 60, {256: 20, 512: 20, 1024: 15}),
    *variant(YARN, 60, {256: 20, 512: 20, 1024: 16}),
]


def detected(n, level):
    """Points that n independent pairs show with 80 % power if all that differ do so in one direction."""
    z_a, z_b = stats.norm.isf(level / 2), stats.norm.ppf(0.8)
    d = optimize.brentq(lambda d: z_a * d**0.5 + z_b * (d - d * d) ** 0.5 - d * n**0.5, 1e-6, 1)
    return math.ceil(100 * d)


def starting(rows, start):
    (found,) = [text for text in verdict(rows) if text.startswith(start)]
    return found


def test_how_far_by_hand():
    # 20/20 at 512, 16/20 at 1024, bar 0.85 x 20/20: crosses after 3/4 of an octave, 512 x 2^0.75 = 861 tokens, 3.4x.
    assert " reads to 3.4x the window [" in starting(ROWS, f"{YARN} after 60 steps reads")
    # 20/20 to 10/20 between 256 and 512: 0.3 of an octave, 315 tokens.
    assert " reads to 1.2x the window [" in starting(ROWS, "none after 60 steps reads")
    entry = next(
        e for e in summary(ROWS)["effective"] if e["method"] == f"{YARN}, 60 steps at 1024"
    )
    assert entry["value"] == pytest.approx(512 * 2**0.75) and entry["censored"] == ""
    far = [*ROWS, *variant(NTK, 0, {256: 20, 512: 20, 1024: 18})]
    assert not any(
        text.startswith(f"{NTK}, zero-shot") for text in verdict(far)
    )  # trained variants alone are named
    beyond = [row for row in far if row["steps"] == 0]
    assert starting(beyond, f"{NTK}, zero-shot").startswith(
        f"{NTK}, zero-shot reads to > 4.0x the window ["
    )
    below = [*ROWS, *variant("linear(factor=4)", 60, {256: 3, 512: 3, 1024: 3})]
    text = starting(below, "linear(factor=4) after 60 steps reads")
    assert text == "linear(factor=4) after 60 steps reads to < 1.0x the window [< 1.0, 1.0]."


def test_the_interval_is_the_bootstrap_of_whole_documents():
    mine = [row for row in ROWS if row["method"] == f"{YARN}, 60 steps at 1024"]
    home = [row for row in ROWS if row["method"] == "none, zero-shot" and row["seq_len"] == 256]
    low, high = effective_length(
        [r["seq_len"] for r in mine],
        [r["correct"] for r in mine],
        [r["haystack"][0][0] for r in mine],
        [r["correct"] for r in home],
        [r["haystack"][0][0] for r in home],
    )[1:3]
    assert f"[{low / 256:.1f}, {high / 256:.1f}]." in starting(ROWS, f"{YARN} after 60 steps reads")


def test_compared_with_what():
    # Pairs at 1024: none 0, yarn 16, ntk 15, yarn zero-shot 6 of 20, always the first questions.
    p = {
        name: stats.binomtest(0, n).pvalue
        for name, n in (("yarn", 16), ("ntk", 15), ("zero", 10), ("best", 1))
    }
    p["none"] = 1.0  # none against itself zero-shot: no pair disagrees
    order = sorted(p.values())
    holm = {
        name: max(min(1, (5 - i) * q) for i, q in enumerate(order) if q <= value)
        for name, value in p.items()
    }
    text = starting(
        ROWS, f"{YARN} after 60 steps: 16/20 against 0/20 of the same training without scaling"
    )
    assert "+80 points [+" in text and "over 5 comparisons." in text
    assert f"exact {'p < 0.0001' if p['yarn'] < 1e-4 else p['yarn']}" in text
    assert f"Holm-adjusted p = {holm['yarn']:.2g} " in text
    text = starting(
        ROWS, "Not distinguishable from the best here, yarn(factor=4) after 60 steps: ntk(factor=4)"
    )
    assert "-5 points" in text and "Holm-adjusted p = 1; " in text and "none" not in text
    assert f"; {detected(20, 0.05 / 5)} points would have been)" in text
    text = starting(ROWS, f"{YARN} after 60 steps: 16/20 against 6/20 of the same method zero-shot")
    assert (
        "+50 points" in text and f"Holm-adjusted p = {holm['zero']:.2g}: training helped." in text
    )
    text = starting(ROWS, "none after 60 steps: 0/20 against 0/20 of the same method zero-shot")
    assert text.endswith(
        "+0 points [-16, +16], Holm-adjusted p = 1: no effect of training is shown "
        f"({detected(20, 0.05 / 5)} points would have been)."
    )


def test_does_it_work():
    def first(*more):
        return verdict([*variant(NONE, 0, {256: 20, 512: 0, 1024: 0}), *more])[0]

    none = variant(NONE, 60, {256: 20, 512: 10, 1024: 0})
    assert first(*none, *variant(YARN, 60, {256: 20, 512: 20, 1024: 16})) == (
        "Yes: yarn(factor=4) after 60 steps reads beyond the window, and answers more at 1,024 tokens than the same "
        "training without scaling."
    )
    twin = variant(NONE, 60, {256: 20, 512: 20, 1024: 16})
    assert first(*twin, *variant(YARN, 60, {256: 20, 512: 20, 1024: 17})) == (
        "Yes: yarn(factor=4) after 60 steps reads beyond the window, but no difference to the same training without "
        f"scaling is shown at 1,024 tokens ({detected(20, 0.05 / 2)} points would have been)."
    )
    assert first(*none, *variant(YARN, 60, {256: 4, 512: 4, 1024: 1})).startswith(
        "Not shown: yarn(factor=4) after 60 steps may read no further than the window; no difference"
    )
    better = variant(NONE, 60, {256: 20, 512: 20, 1024: 20})
    assert first(*better, *variant(YARN, 60, {256: 20, 512: 20, 1024: 8})).endswith(
        "the window, but answers less at 1,024 tokens than the same training without scaling."
    )
    assert first(*variant(YARN, 60, {256: 20, 512: 20, 1024: 16})).endswith(
        "the window; the same training without scaling is not here to compare with."
    )


def test_what_was_asked_and_the_bar():
    said = verdict(ROWS)
    asked = "Asked: 20 questions (passkey, 5 depths) of every variant at each of 256, 512 and 1,024 tokens"
    assert f"{asked}; differences are at 1,024 tokens." in said
    assert (
        "The bar is 0.85 of what the base answers at home, 20/20 at its window of 256 tokens."
        in said
    )


def test_nothing_is_invented():
    assert verdict([]) == ["There are no rows: nothing was evaluated."]
    ppl = [row for row in planted_rows(2) if row["eval"] == "ppl"]
    assert verdict(ppl) == [
        "No retrieval was asked; perplexity alone does not say how far a model reads."
    ]
    homeless = [row for row in ROWS if row["method"] != "none, zero-shot"]
    said = " ".join(verdict(homeless))
    assert (
        "reads to" not in said
        and "no bar, and no effective context" in said
        and "No bar for yarn" in said
    )
    dumb = [
        {**row, "correct": False} if row["method"] == "none, zero-shot" else row for row in ROWS
    ]
    assert "The base answers 0/20 at its window of 256 tokens: there is no bar" in " ".join(
        verdict(dumb)
    )
    old = [{k: v for k, v in row.items() if k not in ("rope", "steps")} for row in ROWS]
    said = verdict(old)
    assert (
        said[0].startswith("These rows do not say which variants were trained") and len(said) == 3
    )
    assert not any("reads to" in text or "against" in text for text in said)
    zero = verdict([row for row in ROWS if row["steps"] == 0])
    assert zero[0] == "No variant here was trained: these are zero-shot measurements."
    assert not any("against" in text for text in zero) and any("reads to" in text for text in zero)


def test_controls_are_no_questions():
    controls = variant(YARN, 60, {256: 0, 1024: 0}, condition="no-needle")
    assert verdict([*ROWS, *controls]) == verdict(ROWS)
    data = summary([*ROWS, *controls])
    assert data["retrieval"] == summary(ROWS)["retrieval"]
    assert [(c["condition"], c["seq_len"], c["correct"], c["n"]) for c in data["controls"]] == [
        ("no-needle", 256, 0, 20),
        ("no-needle", 1024, 0, 20),
    ]


def test_two_tasks_are_one_family_and_are_named():
    other = [
        {**row, "item": row["item"].replace("passkey/aa", "kv/bb"), "task": {"name": "kv"}}
        for row in ROWS
    ]
    said = verdict([*ROWS, *other])
    assert all(text.startswith(("passkey: ", "kv: ")) for text in said)
    assert any("over 10 comparisons" in text for text in said)


def test_the_same_task_asked_in_two_ways_is_two_questions():
    other = [{**row, "item": row["item"].replace("/aa/", "/bb/"), "correct": False} for row in ROWS]
    said = verdict([*ROWS, *other])
    assert said[0].startswith("passkey [aa]: Yes: ") and all(
        text.startswith("passkey [") for text in said
    )
    assert "passkey [bb]: The base answers 0/20 at its window of 256 tokens" in " ".join(said)


def test_attention_methods_are_not_the_base():
    extend = [
        {**row, "method": "self-extend(group_size=4), zero-shot"}
        for row in variant(NONE, 0, {256: 20, 1024: 18})
    ]
    (question,) = questions([*ROWS, *extend])
    assert [home.variant.series[1] for home in Study(question).homes] == ["none, zero-shot"]
