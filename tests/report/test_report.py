"""Tables are recomputed from records: every number here is checked against records made by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

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
from ctxext.evals.record import Cluster, LossEstimator, LossRecord, LossScores, PositionLosses
from ctxext.evals.ruler import ruler_exact
from ctxext.evals.stats import wilson
from ctxext.evals.suite import SuiteConfig, evaluations
from ctxext.evaluate import evaluate
from ctxext.report import latest, summary, tables, verdict
from ctxext.report.analysis.results import Results
from ctxext.report.drawing.axes import length_axis, percent_axis
from ctxext.report.drawing.charts import Line, Point, line_chart
from ctxext.report.drawing.svg import LEFT, RIGHT, TOP, WIDTH, ReferenceLine, Style
from ctxext.report.pages.heatmaps import by_depth
from ctxext.report.pages.styles import identities, method_styles, variant_styles
from ctxext.report.pages.tables import all_tables
from ctxext.tracking.means import means
from support.planted import passkey_record
from support.records import changed
from support.toy_tokenizer import toy_source, toy_tokenizer


def model(method, checkpoint="base"):
    return EvaluatedModel(window=128, rope=method, checkpoint=checkpoint)


def retrieval(method, seq_len, i, correct, *, depth=0.0, checkpoint="base", document=0):
    record = passkey_record("", 0, seq_len, depth, i, correct)
    return changed(
        record,
        model=model(method, checkpoint),
        document=document,
        answer_probability=0.5,
        answer_nll=0.2,
    )


def ppl(method, seq_len, document, nll, count, num_bytes):
    item = f"ppl/bb/{seq_len}/{document}/0"
    return LossRecord(
        model=model(method),
        evaluation="ppl",
        item=item,
        settings="bb",
        seq_len=seq_len,
        cluster=Cluster(document, item),
        estimator=LossEstimator("same-target"),
        scores=LossScores(
            nll,
            count,
            num_bytes,
            by_position=PositionLosses((1, 2, 4), (nll / 4, nll * 3 / 4), (1, 2)),
        ),
    )


def paired_differences(text):
    """The cells of yarn in the table of differences."""
    part = next(x for x in text.split("\n\n") if x.startswith("passkey: difference to none"))
    line = next(x for x in part.splitlines() if x.startswith("yarn"))
    return line.split(maxsplit=1)[1].strip()


def test_retrieval_counts_and_intervals():
    records = [retrieval("none", 128, i, i < 18, document=i) for i in range(20)]
    records += [retrieval("none", 256, i, False) for i in range(20)]
    cells = summary(records)["retrieval"]
    columns = ("seq_len", "correct", "n", "beyond_window")
    rows = [tuple(cell[column] for column in columns) for cell in cells]
    assert rows == [(128, 18, 20, False), (256, 0, 20, True)]
    assert (cells[0]["rate"], cells[0]["low"], cells[0]["high"]) == tuple(wilson(18, 20))
    text = tables(records)
    assert "18/20 90 [70, 97] prob. 0.50" in text
    assert "0/20 0 [0, 16] prob. 0.50" in text
    assert " 256*" in text
    assert " 128*" not in text
    assert "longer than the pre-training window (128 tokens)" in text
    json.dumps(summary(records), allow_nan=False)


def test_paired_differences_use_the_items_that_both_have():
    records = [retrieval("none", 128, i, i % 2 == 0, document=i) for i in range(20)]
    records += [retrieval("yarn", 128, i, True, document=i) for i in range(10)]
    # Of the ten common items, the base has five.
    assert paired_differences(tables(records)).startswith("+50 [")
    other_prompts = [
        changed(r, prompt_sha256="other") if r.model.rope == "yarn" else r for r in records
    ]
    assert "difference" not in tables(other_prompts)


def test_pairs_that_all_agree_are_not_certain():
    records = [
        retrieval(method, 128, i, False, document=i)
        for method in ("none", "yarn")
        for i in range(20)
    ]
    # 0 of 20 may be 16 %.
    assert paired_differences(tables(records)) == "+0 [-16, +16]"


def test_pairs_that_all_differ_are_not_certain():
    records = [
        retrieval(method, 128, i, method == "yarn", document=i)
        for method in ("none", "yarn")
        for i in range(20)
    ]
    # 20 of 20 may be 84 %, and the other 16 % the other way round.
    assert paired_differences(tables(records)) == "+100 [+68, +100]"


def test_perplexity_is_of_sums_over_documents():
    records = [ppl("none", 128, 0, 10.0, 10, 40), ppl("none", 128, 1, 90.0, 30, 80)]
    (cell,) = summary(records)["perplexity"]
    assert cell["perplexity"] == pytest.approx(math.exp(100 / 40))
    assert cell["bits_per_byte"] == pytest.approx(100 / math.log(2) / 120)
    # Two documents with 1 and 3 nats per token, and one and three quarters of the tokens.
    error = (3 - 1) * math.hypot(0.25, 0.75) / 2**0.5
    assert cell["high"] == pytest.approx(math.exp(2.5 + stats.t.isf(0.025, 1) * error))
    assert cell["low"] == 1
    (position,) = summary(records)["by_position"]
    assert position["nll"] == [12.5, 18.75]
    assert position["count"] == [2, 4]
    assert summary(records[:1])["perplexity"][0]["low"] is None
    assert "12.18 [" in tables(records)
    assert "2-3" in tables(records)


def test_a_newer_record_replaces_an_older_one_and_nothing_else_is_merged():
    records = [retrieval("none", 128, 0, False), retrieval("none", 128, 0, True)]
    assert [record.scores.correct for record in latest(records)] == [True]
    other_settings = changed(
        retrieval("none", 128, 0, False), settings="zz", item="passkey/zz/128/0.0/0"
    )
    cells = summary([*records, other_settings])["retrieval"]
    assert [(cell["correct"], cell["n"]) for cell in cells] == [(1, 1), (0, 1)]
    trained = retrieval("none", 128, 0, False, checkpoint="run step 5")
    assert "none (run step 5)" in tables([*records, trained])
    assert tables([]) == "no records"


def test_oracles_from_model_to_table(tmp_path):
    tokenizer = toy_tokenizer()
    source = toy_source()
    config = OracleConfig(64)
    code = tasks.Passkey(wording="code")
    grid = Retrieval((64, 256), depths=(0.0, 0.5, 1.0), n=4, task=code, source=source)
    pairs = Retrieval(
        seq_lens=(256,),
        depths=(0.5,),
        n=4,
        source=source,
        task=tasks.KeyValue(num_pairs=3, wording="code"),
    )
    curve = Perplexity(seq_lens=(64, 256), num_documents=3, target_tokens=16, source=source)
    records = []
    models = {
        "perfect": PerfectReader(tokenizer, config),
        "last-64": WindowReader(tokenizer, 64, config),
        "echo": EchoPrompt(tokenizer, config),
    }
    for name, oracle in models.items():
        records += evaluate(oracle, (grid, pairs), model=model(name), progress=False)
    flat = ContextCurve(tokenizer, lambda seen: np.where(seen < 64, 1.0, 2.0), config)
    records += evaluate(flat, (curve,), model=model("curve"), progress=False)
    data = summary(records)
    rates = {(c["method"], c["task"], c["seq_len"]): c["rate"] for c in data["retrieval"]}
    assert rates == {
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
    last_64 = next(v for v in Results(records).variants if v.model.rope == "last-64")
    heatmap = by_depth(Results(records).studies[0], last_64)
    assert [(depth, [cell and cell.text for cell in cells]) for depth, cells in heatmap.rows] == [
        ("0", ["4/4", "0/4"]),
        ("0.5", ["4/4", "0/4"]),
        ("1", ["4/4", "4/4"]),
    ]
    values = {c["seq_len"]: c["perplexity"] for c in data["perplexity"]}
    assert values == {64: pytest.approx(math.e), 256: pytest.approx(math.e**2)}


def test_many_depths_share_rows():
    """Of sixteen depths with four questions each, four make a row; right ones add up."""
    depths = [i / 15 for i in range(16)]
    records = [
        retrieval("yarn", 512, i, correct=depth > 0.7, depth=depth, document=i)
        for depth in depths
        for i in range(4)
    ]
    results = Results(records)
    heatmap = by_depth(results.studies[0], results.variants[0])
    assert [(name, cells[0].text) for name, cells in heatmap.rows] == [
        ("0\u20130.2", "0/16"),
        ("0.267\u20130.467", "0/16"),
        ("0.533\u20130.733", "4/16"),
        ("0.8\u20131", "16/16"),
    ]


def test_the_overview_puts_all_tasks_of_a_variant_together():
    tokenizer = toy_tokenizer()
    source = toy_source()
    config = OracleConfig(300)
    records = []
    for evaluation in evaluations(("passkey", "kv", "fwe"), SuiteConfig((300, 512), source=source)):
        readers = {
            "none": AnswerKey.of(evaluation, tokenizer, window=400, config=config),
            "blind": EchoPrompt(tokenizer, config),
        }
        for name, reader in readers.items():
            records += evaluate(reader, [evaluation], model=model(name), progress=False)
    text = tables(records)
    table = next(part for part in text.split("\n\n") if part.startswith("none: % right"))
    lines = {line.split()[0]: line for line in table.splitlines()[2:]}
    correct_at = [
        record.seq_len
        for record in records
        if record.model.rope == "none"
        and record.question.task == "passkey"
        and record.scores.correct
    ]
    share = 100 * correct_at.count(512) / 60
    assert f"100 [94, 100]  {share:.0f} [" in lines["passkey"]
    assert "512*" in table
    assert list(lines) == ["passkey", "kv", "fwe"]
    blind = next(part for part in text.split("\n\n") if part.startswith("blind: % right"))
    assert "0 [0, 6]" in blind


WINDOW_LENS = (256, 1024)


def asked(rope, steps, right, lengths=WINDOW_LENS):
    """Two questions at each of two depths and at each length."""
    return [
        passkey_record(rope, steps, seq_len, depth, i, right)
        for seq_len in lengths
        for depth in (0.0, 1.0)
        for i in range(2)
    ]


def test_the_window_is_drawn_where_it_is():
    """On its place of a logarithmic axis; beyond the end of the axis, an arrow points to it."""

    def drawing(window):
        return line_chart(
            "title",
            "description",
            [Line("yarn", "yarn", Style(1), [Point(1024, 10), Point(4096, 20)])],
            length_axis([1024, 4096]),
            percent_axis("right, %"),
            key="chart",
            references=[ReferenceLine(window, "window")],
        )

    inside = drawing(2048)
    at = (LEFT + WIDTH - RIGHT) / 2
    assert f'd="M{at:g} {TOP}V' in inside
    assert ">window<" in inside
    for window, text in ((8192, "window: 8,192 \u2192"), (256, "\u2190 window: 256")):
        outside = drawing(window)
        assert f">{text}<" in outside
        assert f"{TOP}V" not in outside


def below_of(heatmap):
    return {name: [cell and cell.text for cell in cells] for name, cells in heatmap.below}


def test_a_base_without_right_answers_was_asked():
    records = [*asked("none", 0, False), *asked("yarn", 60, True)]
    (study,) = Results(records).studies
    yarn = study.task.variants[1]
    assert below_of(by_depth(study, yarn))["in-window baseline"] == ["0/4", None]
    assert study.effective_context(yarn, 0.85) is None
    text = " ".join(verdict(records))
    assert "at its window of 256 tokens, the base as it is has no right answers; see" in text
    assert "The in-window baseline is 0/4 at the window of 256 tokens" in text
    assert "in-window baseline not asked" not in tables(records)


def test_a_base_with_few_right_answers_is_no_measure_of_how_far_another_reads():
    """A fifth of the answers is easily kept at any length, by what is found near the end."""
    one_of_four = asked("none", 0, False)
    one_of_four[0] = changed(one_of_four[0], correct=True)
    records = [*one_of_four, *asked("yarn", 60, True)]
    (study,) = Results(records).studies
    yarn = study.task.variants[1]
    assert study.baselines[0].correct == 1
    assert study.effective_context(yarn, 0.85) is None
    text = " ".join(verdict(records))
    assert "has 1 right answer of 4, too few to measure how far yarn after 60 steps reads" in text
    assert "is 1/4 at the window of 256 tokens, fewer than half: there is no threshold" in text
    one_of_four[1] = changed(one_of_four[1], correct=True)
    (study,) = Results([*one_of_four, *asked("yarn", 60, True)]).studies
    assert study.effective_context(yarn, 0.85) is not None


def test_the_share_that_a_guess_among_the_values_in_a_text_gets_right():
    one = asked("none", 0, True)
    assert "a guess among them" not in tables(one)
    of_sixteen = [changed(record, distances=tuple(range(16))) for record in one]
    note = "Every text holds 16 values: a guess among them is right in 6 % of the questions."
    assert note in tables(of_sixteen)


def test_what_was_asked_at_other_lengths_is_said():
    records = [*asked("none", 0, True, (256,)), *asked("yarn", 60, True, (256, 512))]
    text = " ".join(verdict(records))
    assert "Variants were asked 4 questions" in text
    assert "at each of 256 and 512 tokens, none, zero-shot at 256 only" in text


def test_a_base_that_was_asked_at_a_length_of_its_own_was_asked():
    records = [*asked("none", 0, True, (256,)), *asked("yarn", 60, True, (512, 1024))]
    (study,) = Results(records).studies
    heatmap = by_depth(study, study.task.variants[1])
    assert "in-window baseline" not in below_of(heatmap)
    assert heatmap.note == "In-window baseline: 4/4 at the window of 256 tokens."


def test_a_checkpoint_is_compared_with_its_own_base_before_another():
    """Also where its own base has no right answers, and another one has."""
    records = [
        changed(record, checkpoint=checkpoint)
        for checkpoint, right in (("a", False), ("b", True))
        for record in [*asked("none", 0, right), *asked("yarn", 0, True)]
    ]
    (study,) = Results(records).studies
    baselines = {v.model.checkpoint: study.baseline(v) for v in study.task.variants}
    assert {name: b.variant.model.checkpoint for name, b in baselines.items()} == {
        "a": "a",
        "b": "b",
    }
    assert {v.model.checkpoint for v in study.effective} == {"b"}


def test_checkpoints_of_one_run_have_rows_phrases_and_colours_of_their_own():
    records = [*asked("none", 0, True), *asked("yarn", 18, False), *asked("yarn", 100, True)]
    results = Results(records)
    (study,) = results.studies
    names = [variant.name for variant in study.task.variants]
    assert names == ["none, zero-shot", "yarn, 18 steps at 1024", "yarn, 100 steps at 1024"]
    assert study.best == study.task.variants[2]
    by_name = identities(study.task.variants)
    styles = variant_styles(study.task.variants, method_styles(by_name.values()))
    drawn = [(style.index, style.dashed) for _, style in styles.values()]
    assert len(set(drawn)) == 3
    assert by_name[study.best] == "yarn", "the curve of its training has the same colour"


def test_other_weights_are_not_the_same_training_without_scaling():
    """Plain RoPE on weights that were trained under YaRN is no control of YaRN."""
    records = [*asked("yarn", 60, True)]
    records += [changed(record, trained_with="yarn") for record in asked("none", 60, False)]
    (study,) = Results(records).studies
    yarn, without = study.task.variants
    assert without.name == "none, 60 steps at 1024 under yarn"
    assert study.unscaled(yarn) is None
    records += asked("none", 60, False)
    (study,) = Results(records).studies
    assert study.unscaled(yarn).name == "none, 60 steps at 1024"


def test_tables_of_the_same_evaluation_with_other_settings_say_what_differs():
    tokenizer = toy_tokenizer()
    source = toy_source()
    config = OracleConfig(128)
    questions = Retrieval((128,), (0.0, 1.0), 2, source=source)
    losses = Perplexity((64, 128), num_documents=2, target_tokens=16, source=source)
    evals = (
        questions,
        dataclasses.replace(questions, task=tasks.Passkey(wording="code")),
        losses,
        dataclasses.replace(losses, target_tokens=32),
    )
    records = evaluate(PerfectReader(tokenizer, config), evals, progress=False)
    titles = [table.title for table in all_tables(Results(records))]
    assert len(set(titles)) == len(titles)
    accuracies = [
        title for title in titles if ": right / asked" in title and "controls" not in title
    ]
    assert [title.partition(": right")[0] for title in accuracies] == [
        "passkey [task=Passkey]",
        "passkey [task=Passkey(wording=code)]",
    ]
    perplexities = [title for title in titles if title.startswith("perplexity")]
    assert [title.partition(" context ")[2].partition("]")[0] for title in perplexities] == [
        "[target_tokens=16",
        "[target_tokens=32",
    ]
    logged = {name for _, name in means(records)}
    assert "passkey [task=Passkey]/none" in logged
    assert "ppl [target_tokens=32]/none" in logged
    # Alone, an evaluation keeps its plain name.
    alone = [table.title for table in all_tables(Results(records[:4]))]
    assert not any("[task" in title for title in alone)


def test_a_suite_over_other_texts_is_another_mean():
    tokenizer = toy_tokenizer()
    suites = [ruler_exact((900,), 5, source=toy_source(), seed=seed)[:2] for seed in (0, 1)]
    reader = PerfectReader(tokenizer, OracleConfig(900))
    records = evaluate(reader, [e for suite in suites for e in suite], progress=False)
    assert [name.partition("seed=")[2] for name in Results(records).suites] == ["0]", "1]"]
    alone = [record for record in records if record.protocol["seed"] == 0]
    assert list(Results(alone).suites) == ["ruler-exact"]


def test_answers_come_before_controls_and_details():
    tokenizer = toy_tokenizer()
    config = OracleConfig(128)
    kinds = ("needle", "no-needle")
    asked = Retrieval((128, 256), (0.0, 1.0), 2, source=toy_source())
    evals = [dataclasses.replace(asked, condition=kind) for kind in kinds]
    evals.append(Perplexity((128,), num_documents=2, target_tokens=16, source=toy_source()))
    records = evaluate(PerfectReader(tokenizer, config), evals, progress=False)
    keys = [table.key for table in all_tables(Results(records))]
    first = [key in ("retrieval", "effective", "perplexity") for key in keys]
    assert first == sorted(first, reverse=True)
    assert keys.index("perplexity") < keys.index("controls")
