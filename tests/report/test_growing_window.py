"""Where planted losses of books leave their level at home, in numbers, tables and sentences."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from ctxext.evals.growing_window import by_fine_position
from ctxext.evals.record import Cluster, EvaluatedModel, LossEstimator, LossRecord, LossScores
from ctxext.report import summary, tables, verdict
from ctxext.report.analysis.growing_window import (
    Departure,
    differences_to_base,
    differences_to_first,
)
from ctxext.report.analysis.results import Results
from ctxext.report.pages.sections import growing_window_section
from ctxext.report.pages.styles import method_styles, variant_styles
from ctxext.report.pages.verdict import LAST_WINDOW_NOT_ASKED
from ctxext.tracking.means import eval_logs
from support.planted import passkey_record, planted_records
from support.records import changed

WINDOW = 256
LENGTH = 2048
GOOD = EvaluatedModel(window=WINDOW, rope="yarn(factor=8)")
BAD = EvaluatedModel(window=WINDOW)


def book(model, document, leaves_at, *, noise=0.05, length=LENGTH):
    """A book whose loss is 2 nats and its own difficulty, and one nat more after `leaves_at`."""
    rng = np.random.default_rng(document)
    nll = 2 + 0.4 * rng.standard_normal() + noise * rng.standard_normal(length - 1)
    nll += 1.0 * (np.arange(1, length) >= leaves_at)
    item = f"growing-window/aa/{length}/{document}"
    return LossRecord(
        model=model,
        evaluation="growing-window",
        item=item,
        settings="aa",
        seq_len=length,
        cluster=Cluster(document=document, text=item),
        estimator=LossEstimator("growing-window"),
        scores=LossScores(
            nll=float(nll.sum()),
            count=length - 1,
            num_bytes=3 * length,
            by_position=by_fine_position(nll, WINDOW),
        ),
    )


def books(model, leaves_at, count=4, **options):
    return [book(model, document, leaves_at, **options) for document in range(count)]


def test_the_planted_departure_is_found():
    records = books(GOOD, 10**9) + books(BAD, 640)
    ((good, bad),) = Results(records).books
    assert (good.home, good.beyond[0], good.edges[-1]) == ((128, 256), (256, 320), LENGTH)
    assert good.departure == Departure(None, LENGTH, None)
    assert bad.departure == Departure(640, 640, 768)
    assert bad.rise(1024, LENGTH).value == pytest.approx(1, abs=0.02)
    # Books differ by 0.4 nats, which is not in the rise within a book.
    rise = bad.rise(1024, LENGTH)
    assert rise.high - rise.low < 0.1 < bad.level.high - bad.level.low
    assert verdict(records)[1:-1] == [
        "yarn(factor=8), read through 4 books: the loss stays within 10 % of the perplexity at "
        "home (the second half of the window) up to all 2,048 tokens (95 % CI [> 2,048, > 2,048]).",
        "Control: none, read through 4 books: the loss leaves its level at home (the second half "
        "of the window), by 10 % of perplexity, after 640 tokens (95 % CI [640, 768]).",
        "yarn(factor=8), read through the same 4 books: beyond the window the loss is 0.79 nats "
        "per token lower than without scaling (95 % CI of the difference -0.79 to -0.79).",
    ]
    assert verdict(records)[-1] == LAST_WINDOW_NOT_ASKED
    of_perplexity = [record for record in planted_records(2) if record.kind == "losses"]
    assert LAST_WINDOW_NOT_ASKED not in verdict([*records, *of_perplexity])


def test_the_source_of_the_books_is_said_where_it_is_known():
    unknown = books(GOOD, 10**9)
    assert "books: documents" not in tables(unknown)
    of_code = [changed(r, protocol={"source": "Stdlib(split=heldout)"}) for r in unknown]
    note = "books: files of Python's standard library (Stdlib(split=heldout))."
    assert note in tables(of_code)
    both = of_code + [changed(r, protocol=of_code[0].protocol) for r in books(BAD, 640)]
    said = "\n".join(verdict(both))
    for of_one in ("read through", "read through the same"):
        assert f"{of_one} 4 files of Python's standard library: " in said
    assert "book" not in said
    own = [changed(r, protocol={"source": "Files(path=mine)"}) for r in unknown]
    assert "books: documents of Files(path=mine)." in tables(own)
    assert "read through 4 books: " in "\n".join(verdict(own))


def test_where_retrieval_answers_nothing_the_books_do():
    asked = [
        passkey_record(rope, 0, seq_len, 0.5, i, i < right)
        for rope in ("none", "yarn(factor=4)")
        for seq_len, right in ((256, 1), (1024, 0))
        for i in range(8)
    ]
    records = books(GOOD, 10**9) + books(BAD, 640)
    against, unknown = verdict([*asked, *records])[:2]
    # Alone, before the sentence on what the loss leaves open.
    assert against == verdict(records)[-2]
    assert against.startswith("yarn(factor=8), read through the same 4 books: beyond the window")
    assert unknown.startswith(
        "Effective context unknown: at its window of 256 tokens, the base as it is has 1 right"
    )
    # With an answer of retrieval, that comes first.
    known = [changed(r, correct=True) if r.seq_len == 256 else r for r in asked]
    assert "read through" not in verdict([*known, *records])[0]


def test_a_departure_that_chance_may_explain_is_not_claimed():
    """Of four books, one is left: the mean is above 10 %, and its band is not."""
    records = [*books(GOOD, 10**9, count=3), book(GOOD, 3, 640)]
    ((entry,),) = Results(records).books
    assert entry.departure.value == 640
    assert entry.departure.high is None
    (line,) = [text for text in verdict(records) if "read through" in text]
    assert line.endswith(
        "it is not shown that the loss leaves its level at home (the second half of the window) by "
        "10 % of perplexity up to all 2,048 tokens; 4 books do not exclude it from "
        f"{entry.departure.low:,} tokens on."
    )
    cell = f"not shown [{entry.departure.low:,}, > 2,048]"
    assert any(row.endswith(cell) for row in tables(records).splitlines())


def test_the_loss_beyond_the_window_is_compared_with_the_base_by_book():
    """Books differ by 0.4 nats, which is in neither the difference nor its interval."""
    records = books(BAD, 640) + [book(GOOD, d, 10**9, noise=0.05 * d) for d in range(4)]
    ((bad, good),) = Results(records).books
    (found,) = differences_to_base([good, bad])
    assert (found.a, found.b, found.num_books) == (bad, good, 4)
    by_book = good.means(WINDOW, LENGTH) - bad.means(WINDOW, LENGTH)
    expected = scipy.stats.ttest_1samp(by_book, 0).confidence_interval()
    assert found.beyond == pytest.approx((by_book.mean(), expected.low, expected.high))
    assert by_book.mean() == pytest.approx(-1408 / 1792, abs=0.01)
    (line,) = [text for text in verdict(records) if "the same 4 books" in text]
    assert f"CI of the difference {expected.low:+.2f} to {expected.high:+.2f})" in line
    assert summary(records)["growing_window_differences"][0]["all_beyond"]["high"] == (
        pytest.approx(expected.high)
    )
    # Nothing is claimed of two that are alike, and none of other weights or another training.
    alike = [book(GOOD, d, 640, noise=0.06) for d in range(4)]
    text = "\n".join(verdict(books(BAD, 640) + alike))
    assert "beyond the window the loss does not differ significantly from that without" in text
    for other in ({"weights": "ab"}, {"steps": 60}, {"checkpoint": "another"}):
        model = dataclasses.replace(BAD, **other)
        assert "the same 4 books" not in "\n".join(verdict(books(model, 640) + alike))


def test_a_base_beside_methods_is_called_a_control():
    note = "none: the base as it is; what it does beyond its window is a control."
    assert note in tables(books(BAD, 640) + books(GOOD, 10**9))
    alone = books(BAD, 640)
    assert note not in tables(alone)
    assert verdict(alone)[1].startswith("none, read through 4 books")


def test_a_rise_counts_where_books_agree_on_it():
    chapter = []
    for record in books(GOOD, 10**9):
        bins = record.scores.by_position
        nll = list(bins.nll)
        nll[bins.edges.index(512)] += 0.15 * bins.count[bins.edges.index(512)]
        scores = dataclasses.replace(
            record.scores, by_position=dataclasses.replace(bins, nll=tuple(nll))
        )
        chapter.append(dataclasses.replace(record, scores=scores))
    ((entry,),) = Results(chapter).books
    # The band is narrow enough to show that this chapter is harder in every book.
    assert entry.departure == Departure(512, 512, 640)
    noisy = [book(GOOD, d, 10**9, noise=0.6) for d in range(4)]
    ((entry,),) = Results(noisy).books
    assert entry.departure.value is None
    assert entry.departure.high is None


@pytest.mark.check
def test_the_band_holds_for_all_positions_together():
    rng = np.random.default_rng(5)
    outside = []
    for _ in range(120):
        records = []
        for document in range(8):
            record = book(GOOD, document, 10**9)
            bins = record.scores.by_position
            # Chapters differ in difficulty.
            nll = np.array(bins.nll) + np.array(bins.count) * 0.1 * rng.standard_normal(
                len(bins.count)
            )
            bins = dataclasses.replace(bins, nll=tuple(nll.tolist()))
            scores = dataclasses.replace(record.scores, by_position=bins)
            records.append(dataclasses.replace(record, scores=scores))
        ((entry,),) = Results(records).books
        outside.append(any(not rise.low <= 0 <= rise.high for rise in entry.rises))
    assert np.mean(outside) <= 0.12


def test_arms_are_paired_by_book_and_position():
    records = books(BAD, 640) + books(GOOD, 640, noise=0.0)
    ((bad, good),) = Results(records).books
    (difference,) = differences_to_first([bad, good])
    assert difference.spans == [bad.home, *bad.beyond]
    for span, interval in zip(difference.spans, difference.differences, strict=True):
        expected = (good.means(*span) - bad.means(*span)).mean()
        assert interval.value == pytest.approx(expected)
        assert interval.high - interval.low < 0.1
    # A book that only one of them has read is left out, and another window is not compared.
    assert differences_to_first([bad, Results(books(GOOD, 640, count=3)).books[0][0]])
    other = [dataclasses.replace(r, model=EvaluatedModel(window=512)) for r in books(BAD, 640)]
    assert differences_to_first([bad, Results(other).books[0][0]]) == []


def test_several_seeds_of_a_book_are_one_book():
    twice = []
    for seed in (0, 1):
        for record in books(GOOD, 640):
            twice.append(dataclasses.replace(record, item=f"{record.item} [seed {seed}]"))
    ((once,),), ((entry,),) = Results(books(GOOD, 640)).books, Results(twice).books
    assert entry.num_books == once.num_books == 4
    assert entry.rises == once.rises


def test_a_single_book_and_no_text_beyond_the_window():
    ((entry,),) = Results(books(BAD, 640, count=1)).books
    assert entry.departure == Departure(640, None, None)
    assert "after 640 tokens (no interval: a single book)." in verdict(entry.records)[1]
    short = books(GOOD, 10**9, length=WINDOW)
    assert "nothing was read beyond the window" in verdict(short)[1]
    assert "not read beyond the window" in tables(short)
    control = "Not in this table: the base with only the last window"
    assert control in " ".join(tables(books(BAD, 640)).split())
    assert control not in " ".join(tables(short).split())


def test_tables_the_page_and_trackers_have_it():
    records = books(BAD, 640) + books(GOOD, 10**9)
    text = tables(records)
    (line,) = [x for x in text.splitlines() if x.startswith("none ") and "640 [640, 768]" in x]
    assert "above it, 1,024-2,047" in text
    assert "+1.00 [+1.00, +1.01]" in line
    data = summary(records)
    first, second = data["growing_window"]
    assert (first["departure"]["value"], second["departure"]["value"]) == (640, None)
    assert first["home"]["value"] == pytest.approx(
        np.mean(Results(records).books[0][0].means(128, 256))
    )
    assert len(data["growing_window_differences"]) == 1
    results = Results(records)
    styles = variant_styles(results.variants, method_styles([v.name for v in results.variants]))
    section = growing_window_section(results, styles)
    assert "window" in section.charts[0].svg
    logs = [
        log
        for log in eval_logs(records)
        if "eval/growing-window by position/none/nats_per_token" in log
    ]
    assert [log["eval/seq_len"] for log in logs] == [e - 1 for e in results.books[0][0].edges[1:]]
    sums = results.books[0][0]
    at_end = logs[-1]["eval/growing-window by position/none/nats_per_token"]
    assert at_end == pytest.approx(sums.means(*sums.beyond[-1]).mean())
    assert math.isfinite(at_end)
