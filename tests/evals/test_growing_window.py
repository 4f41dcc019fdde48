"""The loss by position in whole books: against transformers, and planted curves."""

import dataclasses

import numpy as np
import pytest

from ctxext.evals import GrowingWindow, evaluated_model
from ctxext.evals.growing_window import by_fine_position
from ctxext.evals.oracle import ContextCurve, OracleConfig
from ctxext.evals.work import calls_of, readings
from support.toy_tokenizer import toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
BOOKS = GrowingWindow((256,), num_documents=2, source=toy_source())


def test_losses_by_position_are_those_of_transformers(two_llamas):
    import torch

    torch_model, lm = two_llamas
    books = toy_source().open(lm.tokenizer).documents()
    for record in BOOKS(lm):
        ids = [lm.tokenizer.bos_id, *books[record.cluster.document][:255].tolist()]
        with torch.no_grad():
            logits = torch_model(torch.tensor([ids])).logits[0]
        nll = torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(ids[1:]), reduction="none"
        ).numpy()
        bins = record.scores.by_position
        assert bins is not None
        assert (bins.edges[0], bins.edges[-1]) == (1, 256)
        # Entry t of `nll` is the loss after t + 1 tokens.
        by_bin = [nll[a - 1 : b - 1] for a, b in zip(bins.edges, bins.edges[1:], strict=False)]
        assert bins.count == tuple(map(len, by_bin))
        np.testing.assert_allclose(bins.nll, [part.sum() for part in by_bin], rtol=2e-5)
        assert record.scores.nll == pytest.approx(nll.sum(), rel=2e-5)
        assert record.scores.count == 255


def test_bins_meet_at_the_window_and_lose_nothing():
    for length, window in ((255, 64), (255, 100), (254, 4096), (3, 2), (1000, 999)):
        nll = np.random.default_rng(length).random(length)
        bins = by_fine_position(nll, window)
        assert sum(bins.nll) == pytest.approx(nll.sum())
        assert sum(bins.count) == length
        assert np.diff(bins.edges).tolist() == list(bins.count)
        assert (window in bins.edges) == (window <= length)
    assert {64, 80, 96, 112, 128} <= set(by_fine_position(np.ones(255), 64).edges)


def test_a_book_is_read_once_and_more_books_keep_the_old_records():
    model = ContextCurve(TOKENIZER, lambda seen: 2 + 0 * seen, OracleConfig(64))
    calls = calls_of(BOOKS, model, BOOKS.items(), evaluated_model(model))
    assert dict(readings(calls)) == {255: 2}
    old = {record.item: record for record in BOOKS(model)}
    more = dataclasses.replace(BOOKS, num_documents=3)
    assert {r.item: r for r in more(model) if r.item in old} == old
    with pytest.raises(ValueError, match="at a single length of at least 3 tokens"):
        GrowingWindow((256, 512))
    # Of the three books that there are, all are read; one alone would have no interval.
    assert dataclasses.replace(BOOKS, num_documents=9).fitted(TOKENIZER) == more
    too_long = dataclasses.replace(BOOKS, seq_lens=(10**6,))
    assert too_long.fitted(TOKENIZER) == too_long
    with pytest.raises(ValueError, match=r"growing-window needs 2 documents .*--books"):
        too_long.check(TOKENIZER)
