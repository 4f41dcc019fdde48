"""The verdict on planted records: numbers by hand and by scipy, nothing without data."""

import math
import re
import shlex

import pytest
from scipy import optimize, stats

from ctxext.cli.main import parsers
from ctxext.evals.record import Cluster
from ctxext.evals.stats import effective_length
from ctxext.evals.suite import check_names
from ctxext.report import summary, tables, verdict
from ctxext.report.analysis.comparisons import paired_points
from ctxext.report.analysis.results import Results
from ctxext.report.pages.growing_window import LAST_WINDOW
from support.planted import DEPTHS, passkey_record, planted_records
from support.records import changed

YARN = "yarn(factor=4)"
NONE = "none"
NTK = "ntk(factor=4)"


def variant(rope, steps, correct, n=4, **options):
    """A variant that answers the first right[length] of n questions at each of five depths."""
    return [
        passkey_record(rope, steps, seq_len, depth, i, i + n * d < k, **options)
        for seq_len, k in correct.items()
        for d, depth in enumerate(DEPTHS)
        for i in range(n)
    ]


RECORDS = [
    *variant(NONE, 0, {256: 20, 512: 0, 1024: 0}),
    *variant(YARN, 0, {256: 18, 512: 15, 1024: 6}),
    *variant(NONE, 60, {256: 20, 512: 10, 1024: 0}),
    *variant(NTK, 60, {256: 20, 512: 20, 1024: 15}),
    *variant(YARN, 60, {256: 20, 512: 20, 1024: 16}),
]


def of(records, rope, steps):
    return [r for r in records if (r.model.rope, r.model.steps) == (rope, steps)]


def detected(n, level):
    """Points that n independent pairs detect with 80 % power, if all differ in one direction."""
    z_a = stats.norm.isf(level / 2)
    z_b = stats.norm.ppf(0.8)
    d = optimize.brentq(lambda d: z_a * d**0.5 + z_b * (d - d * d) ** 0.5 - d * n**0.5, 1e-6, 1)
    return math.ceil(100 * d)


def starting(records, start):
    (match,) = [sentence for sentence in verdict(records) if sentence.startswith(start)]
    return match


def test_effective_context_by_hand():
    # 20/20 at 512, 16/20 at 1024, threshold 0.85 x 20/20: it is crossed after 3/4 of an octave, at
    # 512 x 2^0.75 = 861 tokens, 3.4x.
    yarn = starting(RECORDS, f"{YARN} after 60 steps: effective context")
    assert " effective context 3.4x the window (95 % CI " in yarn
    # 20/20 to 10/20 between 256 and 512: 0.3 of an octave, 315 tokens.
    none = starting(RECORDS, "none after 60 steps: effective context")
    assert " effective context 1.2x the window (95 % CI " in none
    label = f"{YARN}, 60 steps at 1024"
    entry = next(e for e in summary(RECORDS)["effective"] if e["method"] == label)
    assert entry["value"] == pytest.approx(512 * 2**0.75)
    assert entry["censored"] == ""
    below = [*RECORDS, *variant("linear(factor=4)", 60, {256: 3, 512: 3, 1024: 3})]
    assert starting(below, "linear(factor=4) after 60 steps: effective") == (
        "linear(factor=4) after 60 steps: effective context < 1.0x the window "
        "(95 % CI < 1.0 to 1.0)."
    )


def test_zero_shot_variants_are_named_where_none_was_trained():
    start = f"{NTK}, zero-shot: effective context"
    records = [*RECORDS, *variant(NTK, 0, {256: 20, 512: 20, 1024: 18})]
    assert not any(sentence.startswith(start) for sentence in verdict(records))
    zero_shot = [record for record in records if record.model.steps == 0]
    assert starting(zero_shot, start).startswith(f"{start} > 4.0x the window (95 % CI ")


def test_a_method_without_training_is_compared_with_the_base_as_it_is():
    """At 1024, the base has 0 of 20 right and YaRN the first 6: six pairs differ, all one way."""
    zero_shot = [record for record in RECORDS if record.model.steps == 0]
    p = stats.binomtest(0, 6).pvalue
    assert p == 2 * 0.5**6
    against = starting(
        zero_shot, f"{YARN}, zero-shot: 6/20 correct against 0/20 for the base as it is, +30 points"
    )
    assert against.endswith(f"exact p = {p:.2g}.")
    # Of four texts the test cannot give less, whatever the answers are.
    numbers = [r.cluster.document % 4 for r in zero_shot]
    texts = [Cluster(number, str(number)) for number in numbers]
    few = [changed(r, cluster=text) for r, text in zip(zero_shot, texts, strict=True)]
    least = " (the test cannot give less than 0.12 with 4 texts)."
    assert starting(few, f"{YARN}, zero-shot: 6/20").endswith(least)
    (sure,) = [s for s in verdict(few) if "pairs are about" in s]
    assert sure.endswith("one text go together: they count as 4 to 20 independent ones.")
    yarn, base = ([r for r in of(RECORDS, rope, 0) if r.seq_len == 1024] for rope in (YARN, NONE))
    interval = paired_points(list(zip(base, yarn, strict=True)))
    assert f"95 % CI {interval.low:+.0f} to {interval.high:+.0f}, exact" in against
    # Two methods are two comparisons, and what they do not show is said with what they could.
    unclear = variant(NTK, 0, {256: 20, 512: 20, 1024: 2})
    both = verdict([*zero_shot, *unclear])
    assert sum(s.endswith("over 2 comparisons.") for s in both) == 2
    detectable = f"minimum detectable difference {detected(20, 0.05)} points"
    unscaled = [r for r in zero_shot if r.model.rope == NONE]
    assert f"of the base as it is ({detectable})." in verdict([*unscaled, *unclear])[0]
    assert any(s.endswith("differences are at 1,024 tokens.") for s in both)
    # Without a base at that length, there is nothing to compare with.
    at_window = [r for r in zero_shot if r.model.rope == YARN or r.seq_len == 256]
    assert not any("against" in sentence for sentence in verdict(at_window))
    # Another checkpoint's base is not the base.
    other = [changed(r, checkpoint="b") if r.model.rope == YARN else r for r in zero_shot]
    assert not any("against" in sentence for sentence in verdict(other))


def test_the_interval_is_the_bootstrap_of_whole_documents():
    yarn = of(RECORDS, YARN, 60)
    baseline = [record for record in of(RECORDS, NONE, 0) if record.seq_len == 256]
    _, low, high, _ = effective_length(
        [r.seq_len for r in yarn],
        [r.scores.correct for r in yarn],
        [r.cluster.document for r in yarn],
        [r.scores.correct for r in baseline],
        [r.cluster.document for r in baseline],
    )
    sentence = starting(RECORDS, f"{YARN} after 60 steps: effective")
    assert f"(95 % CI {low / 256:.1f} to {high / 256:.1f})." in sentence


def test_comparisons():
    # Pairs at 1024: none 0, yarn 16, ntk 15, yarn zero-shot 6 of 20, always the first questions.
    discordant = {"yarn": 16, "ntk": 15, "zero-shot": 10, "best": 1}
    p = {name: stats.binomtest(0, n).pvalue for name, n in discordant.items()}
    # None against itself zero-shot: no pair disagrees.
    p["none"] = 1.0
    order = sorted(p.values())
    holm = {
        name: max(min(1, (5 - i) * q) for i, q in enumerate(order) if q <= value)
        for name, value in p.items()
    }
    detectable = f"(minimum detectable difference {detected(20, 0.05 / 5)} points)"

    unscaled = starting(
        RECORDS,
        f"{YARN} after 60 steps: 16/20 correct against 0/20 for the same training without scaling",
    )
    assert "+80 points, 95 % CI +" in unscaled
    assert "over 5 comparisons." in unscaled
    assert f"exact {'p < 0.0001' if p['yarn'] < 1e-4 else p['yarn']}" in unscaled
    assert f"Holm-adjusted p = {holm['yarn']:.2g} " in unscaled

    best = starting(
        RECORDS,
        "Not significantly different from the best, yarn(factor=4) after 60 steps: ntk(factor=4)",
    )
    assert "-5 points" in best
    assert "Holm-adjusted p = 1; " in best
    assert "none" not in best
    assert f"; {detectable[1:-1]})." in best

    zero_shot = starting(
        RECORDS, f"{YARN} after 60 steps: 16/20 correct against 6/20 for the same method zero-shot"
    )
    assert "+50 points" in zero_shot
    assert f"Holm-adjusted p = {holm['zero-shot']:.2g}: training helps." in zero_shot

    none = starting(
        RECORDS, "none after 60 steps: 0/20 correct against 0/20 for the same method zero-shot"
    )
    assert none.endswith(
        "+0 points, 95 % CI -16 to +16, Holm-adjusted p = 1: training makes no significant "
        f"difference {detectable}."
    )


def test_headline():
    def headline(*records):
        return verdict([*variant(NONE, 0, {256: 20, 512: 0, 1024: 0}), *records])[0]

    none = variant(NONE, 60, {256: 20, 512: 10, 1024: 0})
    yarn = variant(YARN, 60, {256: 20, 512: 20, 1024: 16})
    yes = "Yes: yarn(factor=4) after 60 steps reads beyond the window. "
    assert headline(*none, *yarn) == (
        f"{yes}At 1,024 tokens, it is more accurate than the same training without scaling."
    )
    twin = variant(NONE, 60, {256: 20, 512: 20, 1024: 16})
    assert headline(*twin, *variant(YARN, 60, {256: 20, 512: 20, 1024: 17})) == (
        f"{yes}At 1,024 tokens, its accuracy does not differ significantly from that of the same "
        "training without scaling (minimum detectable difference "
        f"{detected(20, 0.05 / 2)} points)."
    )
    assert headline(*none, *variant(YARN, 60, {256: 4, 512: 4, 1024: 1})).startswith(
        "Not shown: it is not certain that yarn(factor=4) after 60 steps reads beyond the window. "
        "At 1,024 tokens, its accuracy does not differ"
    )
    better = variant(NONE, 60, {256: 20, 512: 20, 1024: 20})
    assert headline(*better, *variant(YARN, 60, {256: 20, 512: 20, 1024: 8})) == (
        f"{yes}At 1,024 tokens, it is less accurate than the same training without scaling."
    )
    assert headline(*yarn) == (
        f"{yes}The same training without scaling is not available for comparison."
    )


def test_questions_and_threshold():
    sentences = verdict(RECORDS)
    assert (
        "Every variant was asked 20 questions (passkey, 5 depths) at each of 256, 512 and 1,024 "
        "tokens; differences are at 1,024 tokens."
    ) in sentences
    threshold = (
        "The threshold is 0.85 of the in-window baseline, 20/20 at the window of 256 tokens."
    )
    assert threshold in sentences


def test_what_a_method_costs_inside_its_window_is_said():
    """Of 20 questions at 256, the window: 20 right without a method, and 8 or 19 with it."""
    base = variant(NONE, 0, {256: 20, 512: 3, 1024: 0})
    start = f"{YARN}, zero-shot inside its window, against the base as it is: "
    worse = [*base, *variant(YARN, 0, {256: 8, 512: 12, 1024: 12})]
    assert starting(worse, start) == (
        f"{start}-60 at 256 tokens, in percentage points; the 95 % interval excludes 0 at 256."
    )
    alike = [*base, *variant(YARN, 0, {256: 19, 512: 12, 1024: 12})]
    assert starting(alike, start) == (
        f"{start}-5 at 256 tokens, in percentage points; no 95 % interval excludes 0."
    )
    trained = starting(RECORDS, f"{NTK} after 60 steps inside its window, against the same tr")
    assert "without scaling: " in trained
    beyond = [record for record in worse if record.seq_len > 256]
    assert not any("inside its window" in sentence for sentence in verdict(beyond))


def test_right_answers_are_told_apart_by_where_their_needle_is():
    """At 1024, depths 0 to 0.5 are farther from the end than a window of 256; 0.75 is 258 away."""
    zero_shot = [record for record in RECORDS if record.model.steps == 0]
    near = [r for r in of(RECORDS, YARN, 0) if r.seq_len == 1024 and r.question.depth == 1.0]
    far_right = [r for r in zero_shot if r not in near]
    records = [*far_right, *(changed(record, correct=True) for record in near)]
    start = f"{YARN}, zero-shot at 1,024 tokens, right answers: "
    assert starting(records, start) == (
        f"{start}4 of 4 with the needle within one window (256 tokens) of the question, "
        "6 of 16 with the needle farther away."
    )
    # Of five values in each text, a guess takes the right one in a fifth of the questions.
    of_five = [changed(record, distances=tuple(range(5))) for record in records]
    assert starting(of_five, start) == (
        f"{start}4 of 4 with the needle within one window (256 tokens) of the question (a guess "
        "among the text's values: 0.8), 6 of 16 with the needle farther away (a guess among the "
        "text's values: 3.2)."
    )
    all_near = [changed(record, distance=8) for record in records]
    assert starting(all_near, start).endswith("of the question, no needle was farther away.")
    # Nothing is said where it is not known, or where no text is longer than the window.
    for silent in (
        [changed(record, distance=None) for record in records],
        [record for record in records if record.seq_len == 256],
    ):
        assert not any(", right answers: " in sentence for sentence in verdict(silent))
    trained = starting(RECORDS, f"{NTK} after 60 steps at 1,024 tokens, right answers: ")
    assert "0 of 4 with the needle within one window" in trained


def test_what_holds_for_the_weights_and_the_beginning_of_texts_is_said():
    known = {"bos": False, "checkpoint": "m.gguf"}
    plain = of(RECORDS, NONE, 0)
    assert not any("BOS" in sentence or "quantized" in sentence for sentence in verdict(plain))
    no_bos = [changed(record, **known) for record in plain]
    assert starting(no_bos, "Without BOS").endswith(
        "as the tokenizer adds none, or --no-bos was given."
    )
    told = [
        changed(record, **known, quantized="Q4_1", without_bos="the tokenizer has none")
        for record in plain
    ]
    assert starting(told, "Without BOS").endswith("as the tokenizer has none.")
    assert "m.gguf was read from a quantized file (Q4_1)" in " ".join(verdict(told))
    assert no_bos[0].model == told[0].model, "what is known of a model does not make it another"


def test_every_command_that_a_verdict_advises_is_accepted():
    """Parsed by the command line itself; options alone are those of `ctxext eval`."""
    _, by_command = parsers()
    wrong = {"correct": False, "failure": "made up"}
    weak = [changed(r, **wrong, checkpoint="a model") for r in RECORDS if not r.model.steps]
    unnamed = [changed(record, **wrong) for record in RECORDS]
    no_base = [record for record in RECORDS if record not in of(RECORDS, NONE, 0)]
    no_window = [r for r in of(RECORDS, NONE, 0) if r.seq_len != 256]
    advised = [
        re.findall("`(.*?)`", " ".join([*verdict(records), tables(records)]))
        for records in (weak, unnamed, no_base, no_window)
    ]
    assert advised == [
        ["ctxext eval 'a model' --evals niah lines"],
        ["--evals niah lines"],
        ["--seq-len 256"],
        ["--seq-len 256"],
    ]
    for command in [*(command for (command,) in advised), *re.findall("`(.*?)`", LAST_WINDOW)]:
        words = shlex.split(command)
        if words[0] != "ctxext":
            words = ["ctxext", "eval", "m", *words]
        parser = by_command[words[1]]
        known, rest = parser.split(words[2:])
        args = parser.read(known, rest)
        assert (args.source, rest) == ("a model" if "a model" in words else "m", [])
        check_names(args.evals or ())


def test_nothing_is_invented():
    assert verdict([]) == ["There are no records: nothing was evaluated."]
    ppl = [record for record in planted_records(2) if record.kind == "losses"]
    assert verdict(ppl) == [
        "No retrieval task was asked; perplexity alone does not show how much context a model uses."
    ]
    base = of(RECORDS, NONE, 0)
    without_base = [record for record in RECORDS if record not in base]
    text = " ".join(verdict(without_base))
    assert "effective context 3" not in text
    assert "x the window" not in text
    assert "there is no threshold and no effective context" in text
    assert (
        "Effective context unknown: yarn(factor=4) after 60 steps has no in-window baseline" in text
    )
    never_right = [
        changed(record, correct=False) if record in base else record for record in RECORDS
    ]
    no_threshold = (
        "The in-window baseline is 0/20 at the window of 256 tokens: there is no threshold"
    )
    assert no_threshold in " ".join(verdict(never_right))
    zero_shot = verdict([record for record in RECORDS if record.model.steps == 0])
    assert zero_shot[0] == (
        "Not shown: it is not certain that yarn(factor=4), zero-shot reads beyond the window. "
        "At 1,024 tokens, it is more accurate than the base as it is. "
        "Nothing was trained here: these are zero-shot results."
    )
    contexts = [sentence for sentence in zero_shot if "effective context" in sentence]
    assert [sentence.partition(":")[0] for sentence in contexts] == [
        "yarn(factor=4), zero-shot",
        "Control",
    ]
    assert contexts[1].startswith("Control: none, zero-shot: effective context 1.1x the window")
    alone = verdict(of(RECORDS, NONE, 0))
    assert not any("Control" in sentence for sentence in alone)


def test_controls_are_shown_of_a_method_rather_than_of_the_base():
    base = [*of(RECORDS, NONE, 0), *variant(NONE, 0, {256: 0}, condition="no-needle")]
    yarn = [*of(RECORDS, YARN, 0), *variant(YARN, 0, {256: 0}, condition="no-needle")]
    for records, rope in (([*base, *yarn], YARN), (base, NONE)):
        (study,) = Results(records).studies
        assert study.control_variant is not None
        assert study.control_variant.model.rope == rope


def test_controls_do_not_count_as_questions():
    controls = variant(YARN, 60, {256: 0, 1024: 0}, condition="no-needle")
    assert verdict([*RECORDS, *controls]) == verdict(RECORDS)
    data = summary([*RECORDS, *controls])
    assert data["retrieval"] == summary(RECORDS)["retrieval"]
    assert [(c["condition"], c["seq_len"], c["correct"], c["n"]) for c in data["controls"]] == [
        ("no-needle", 256, 0, 20),
        ("no-needle", 1024, 0, 20),
    ]


def as_task(records, settings, task="passkey", **values):
    return [
        changed(
            record,
            item=record.item.replace("passkey/aa", f"{task}/{settings}"),
            settings=settings,
            task=task,
            **values,
        )
        for record in records
    ]


def test_two_tasks_are_one_family_and_are_named():
    sentences = verdict([*RECORDS, *as_task(RECORDS, "bb", "kv")])
    assert sentences[0].startswith("passkey and kv: Yes: "), "what holds for both is said once"
    assert all(sentence.startswith(("passkey: ", "kv: ")) for sentence in sentences[1:])
    assert any("over 10 comparisons" in sentence for sentence in sentences)


def test_one_task_with_two_settings_is_two_tasks():
    sentences = verdict([*RECORDS, *as_task(RECORDS, "bb", correct=False)])
    assert sentences[0].startswith("passkey [aa]: Yes: ")
    assert all(sentence.startswith("passkey [") for sentence in sentences)
    baseline = "passkey [bb]: The in-window baseline is 0/20 at the window of 256 tokens"
    assert any(sentence.startswith(baseline) for sentence in sentences)


def test_an_attention_method_is_not_the_base():
    extended = [
        changed(record, attention="self-extend(group_size=4)")
        for record in variant(NONE, 0, {256: 20, 1024: 18})
    ]
    (study,) = Results([*RECORDS, *extended]).studies
    assert [b.variant.name for b in study.baselines] == ["none, zero-shot"]
