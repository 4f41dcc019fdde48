"""Recovery by hand: the ratio of means, its gate, and needles that nobody uses."""

import dataclasses

import pytest
from scipy import stats

from ctxext.evals import Expected
from ctxext.evals.record import (
    Cluster,
    EvaluatedModel,
    Measurement,
    Question,
    RecoveryRecord,
    RecoveryScores,
)
from ctxext.evals.stats import fieller_interval
from ctxext.report import summary, tables, verdict
from ctxext.report.analysis.published import _measured
from ctxext.report.analysis.recovery import recovery_differences
from ctxext.report.analysis.results import Results
from ctxext.report.pages.sections import recovery_section
from ctxext.report.pages.styles import method_styles, variant_styles
from ctxext.tracking.means import means

YARN = EvaluatedModel(window=256, rope="yarn(factor=4)")
NONE = EvaluatedModel(window=256)


def answer(model, seq_len, depth, text, *, with_needle, alone=0.2, without=11.0):
    """One question; texts and depths differ a little."""
    item = f"recovery/passkey/aa/{seq_len}/{depth}/{text}"
    spread = 0.3 * ((text * 7 + round(4 * depth)) % 5 - 2)
    return RecoveryRecord(
        model=model,
        evaluation="recovery",
        item=item,
        settings="aa",
        seq_len=seq_len,
        cluster=Cluster(document=text, text=f"recovery/passkey/aa/{seq_len}/{text}"),
        question=Question(
            task="passkey",
            fields={},
            condition="needle",
            needle_item=item,
            tokens=seq_len,
            prompt_sha256="ab",
            gold=(1, 2),
            depth=depth,
            depth_achieved=depth,
        ),
        scores=RecoveryScores(
            nll=max(0.0, with_needle + spread),
            nll_without=without + spread / 2,
            nll_alone=alone,
            count=5,
        ),
    )


def answers(model, by_length, **options):
    return [
        answer(model, seq_len, depth, text, with_needle=with_needle, **options)
        for seq_len, with_needle in by_length.items()
        for text in range(8)
        for depth in (0.0, 1.0)
    ]


RECORDS = answers(YARN, {256: 0.7, 1024: 2.25}) + answers(NONE, {256: 0.7, 1024: 11.0})


def test_a_ratio_of_means_with_its_gate():
    (results,) = Results(RECORDS).recovery
    for result in results:
        scores = [record.scores for record in result.records]
        top = sum(s.nll_without - s.nll for s in scores)
        bottom = sum(s.nll_without - s.nll_alone for s in scores)
        assert result.recovery.value == pytest.approx(top / bottom)
        assert result.recovery == fieller_interval(
            [s.nll_without - s.nll for s in scores],
            [s.nll_without - s.nll_alone for s in scores],
            [record.cluster.document for record in result.records],
        )
        assert result.num_texts == 8
    passes = {(r.variant.model.rope, r.seq_len): r.passes for r in results}
    assert passes == {
        ("yarn(factor=4)", 256): True,
        ("yarn(factor=4)", 1024): False,
        ("none", 256): True,
        ("none", 1024): False,
    }
    # The estimate is above the gate; its lower bound is not.
    borderline = results[1].recovery
    assert borderline.low < 0.8 < borderline.value


def test_the_words():
    yarn, none, against = verdict(RECORDS)[1:]
    assert yarn.startswith(
        "yarn(factor=4): recovery of passkey, in texts of its own (1: a needle in the text is as "
        "good as alone; the 95 % lower bound must be 0.80) passes up to 256 tokens; at 1,024 "
        "tokens: 0.8"
    )
    assert "passes up to 256 tokens; at 1,024 tokens: -0.00 [-0.01" in none
    assert against.startswith("yarn(factor=4): recovery at 1,024 tokens is 0.8")
    all_pass = answers(YARN, {256: 0.3, 1024: 0.4})
    assert "passes at every length asked, at 1,024 tokens: 0.9" in verdict(all_pass)[1]
    none_pass = answers(YARN, {256: 9.0, 1024: 9.0})
    assert "does not pass, even at 256 tokens: 0.1" in verdict(none_pass)[1]
    text = tables(RECORDS)
    assert "recovery, passkey [95 % interval over documents]" in text
    assert "pass: the lower end of the interval is at least 0.80." in " ".join(text.split())
    assert "yarn(factor=4), depth 1.00" in text
    data = summary(RECORDS)
    assert [entry["passes"] for entry in data["recovery"]] == [True, False, True, False]
    assert [entry["depth"] for entry in data["recovery_by_depth"][:2]] == [0.0, 1.0]
    assert all(entry["depth"] is None for entry in data["recovery"])


def test_the_lowest_depth_is_said_beside_the_mean_over_depths():
    low = [
        dataclasses.replace(r, scores=dataclasses.replace(r.scores, nll=10.0))
        if r.question.depth == 0.0
        else r
        for r in answers(YARN, {1024: 0.3})
    ]
    at_start = [r.scores for r in low if r.question.depth == 0.0]
    value = sum(s.nll_without - s.nll for s in at_start) / sum(
        s.nll_without - s.nll_alone for s in at_start
    )
    lowest = f", over 2 depths; lowest at depth 0.00 (0: start of the text), {value:.2f} ["
    assert lowest in verdict(low)[1]
    one_depth = [r for r in low if r.question.depth == 0.0]
    assert "depths; lowest" not in verdict(one_depth)[1]


def test_recovery_is_compared_with_the_base_in_the_same_texts():
    """Where the needle alone gives as much everywhere, it is a paired t test over documents."""

    def flat(records):
        return [
            dataclasses.replace(
                r, scores=dataclasses.replace(r.scores, nll_without=11.0, nll_alone=1.0)
            )
            for r in records
        ]

    yarn, none = flat(answers(YARN, {256: 1.7, 1024: 3.0})), flat(answers(NONE, {1024: 9.0}))
    yarn = [
        dataclasses.replace(
            r, scores=dataclasses.replace(r.scores, nll=r.scores.nll + 0.2 * r.cluster.document)
        )
        for r in yarn
    ]
    (entries,) = Results([*none, *yarn]).recovery
    (found,) = recovery_differences(entries)
    assert (found.b.seq_len, found.num_documents) == (1024, 8)
    nats = {r.item: r.scores.nll for r in none}
    by_text = [[] for _ in range(8)]
    for r in yarn:
        if r.seq_len == 1024:
            by_text[r.cluster.document].append((nats[r.item] - r.scores.nll) / 10)
    expected = stats.ttest_1samp([sum(x) / len(x) for x in by_text], 0).confidence_interval()
    assert found.difference[1:] == pytest.approx((expected.low, expected.high))
    value = sum(map(sum, by_text)) / 16
    assert verdict([*none, *yarn])[-1] == (
        f"yarn(factor=4): recovery at 1,024 tokens is {value:.2f} higher than without scaling in "
        f"the same texts (95 % CI of the difference {expected.low:+.2f} to {expected.high:+.2f}, "
        "over 8 documents)."
    )
    alike = [dataclasses.replace(r, model=YARN) for r in none]
    equal = [
        dataclasses.replace(
            r, scores=dataclasses.replace(r.scores, nll=9.0 + 0.1 * (-1) ** r.cluster.document)
        )
        for r in alike
    ]
    assert (
        "does not differ significantly from that without scaling in the same texts: "
        in (verdict([*none, *equal])[-1])
    )
    # Nothing is said of other prompts, or of other weights.
    other = [
        dataclasses.replace(r, question=dataclasses.replace(r.question, prompt_sha256="cd"))
        for r in yarn
    ]
    weights = [dataclasses.replace(r, model=dataclasses.replace(YARN, weights="b")) for r in yarn]
    for records in (other, weights):
        assert not any("in the same texts" in x for x in verdict([*none, *records]))


def test_a_needle_that_is_not_even_used_alone_gives_no_number():
    unused = [
        dataclasses.replace(
            record,
            scores=dataclasses.replace(
                record.scores,
                nll=11.0,
                nll_without=11.0,
                # As often a little better as a little worse.
                nll_alone=11.0 + 0.3 * (-1) ** record.cluster.document,
            ),
        )
        for record in answers(NONE, {256: 0.0})
    ]
    (((result,),)) = Results(unused).recovery
    assert result.recovery is None
    assert not result.passes
    assert verdict(unused)[1] == (
        "none does not use the needle even alone, so that there is nothing to recover and no "
        "number."
    )
    assert "not used alone" in tables(unused)
    (entry,) = summary(unused)["recovery"]
    assert (entry["recovery"], entry["low"], entry["passes"]) == (None, None, False)
    ((_, values),) = means(unused).items()
    assert "recovery" not in values


def test_the_page_trackers_and_published_numbers_have_it():
    results = Results(RECORDS)
    styles = variant_styles(results.variants, method_styles([v.name for v in results.variants]))
    section = recovery_section(results, styles)
    assert "gate" in section.charts[0].svg
    assert len(section.tables) == 2
    (at_256,) = [r for r in results.recovery[0] if r.variant.model == YARN and r.seq_len == 256]
    logged = means(RECORDS)[256, "recovery/yarn(factor=4)"]
    assert logged["recovery"] == pytest.approx(at_256.recovery.value)
    expected = Expected("recovery", 256, 0.95, 0.05, "a model", "a paper", metric="recovery")
    assert expected.measurement == Measurement("recovery", 256, "recovery")
    assert _measured(expected, at_256.records) == at_256.recovery
