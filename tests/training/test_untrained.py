"""What is said of contexts that a training does not reach, against rows counted by hand."""

import dataclasses

import numpy as np
import pytest

from ctxext.data import Files
from ctxext.data.corpus import Corpus, Rows
from ctxext.data.sources.mix import MixedRows
from ctxext.data.sources.short import PackedRows
from ctxext.methods import Linear, PoSE
from ctxext.model.context import DeclaredContext
from ctxext.rope import Unscaled
from ctxext.training.untrained import beyond_rows, beyond_texts
from support.tiny_train import tiny_experiment

EXPERIMENT = tiny_experiment(Files("unread"), seq_len=64)
CONTEXT = DeclaredContext.of(32, Unscaled())


def corpus(*lengths: int) -> Corpus:
    offsets = np.cumsum([0, *lengths])
    return Corpus(np.zeros(offsets[-1], np.uint16), offsets, bos_id=None, eos_id=None, facts={})


@pytest.mark.parametrize(
    ("rows", "longest"),
    [
        (corpus(10, 65, 3), 64),
        (corpus(10, 64, 3), 63),  # the last token is predicted only
        (MixedRows([(1.0, corpus(30)), (1.0, corpus(20))]), 29),
        (PackedRows(corpus(65), 16), 16),
        (MixedRows([(1.0, PackedRows(corpus(65), 16)), (1.0, corpus(65))]), 64),
    ],
)
def test_the_longest_text_of_a_row_is_named_where_it_fills_none(rows: Rows, longest: int):
    assert rows.longest_text(64) == longest
    if isinstance(rows, Corpus):  # the most targets in a line, in many rows
        rng = np.random.default_rng(0)
        pauses = [[-1, *np.flatnonzero(rows.row(rng, 64).weights == 0), 64] for _ in range(500)]
        assert max(np.diff(places).max() - 1 for places in pauses) == longest
    said = beyond_texts(EXPERIMENT, CONTEXT, rows)
    assert bool(said) == (longest < 64)
    if said:
        assert f"fills a row of 64 tokens, the longest has {longest}, and" in said
        assert ("not even those of 32 of pre-training" in said) == (longest < 32)


def test_a_context_that_is_declared_and_not_trained_is_named():
    assert beyond_rows(EXPERIMENT, CONTEXT, Linear(2.0)) == ""  # 2 x 32
    assert beyond_rows(EXPERIMENT, CONTEXT, Unscaled()) == ""
    said = beyond_rows(EXPERIMENT, CONTEXT, Linear(4.0))
    assert said.startswith(
        "contexts of up to 64 tokens are trained, and the model will declare 128"
    )
    reaching = dataclasses.replace(EXPERIMENT, positions=PoSE(128, 2))
    assert beyond_rows(reaching, CONTEXT, Linear(4.0)) == ""
    extended = DeclaredContext.of(32, Linear(8.0))
    assert "will declare 256" in beyond_rows(EXPERIMENT, extended, Linear(8.0))
