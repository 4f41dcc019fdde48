"""Each document of a batch has the frequencies of its own length, in one program."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Causal
from ctxext.attention.documents import document_lengths, rotary_tables
from ctxext.data import Batch
from ctxext.losses import BATCH
from ctxext.methods import DynamicNTK, Linear, LongRope
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.requirements import check_context
from ctxext.rope import Rope, RopeBase, RopeScaling
from ctxext.rope_by_length import RotationByLength, rotation_by_length
from ctxext.training.batches import Batches
from support import tiny
from support.tiny_train import tiny_base, tiny_experiment

FILE = Path(__file__).parent / "golden" / "longrope2_rows.json"
PUBLISHED, *GOLDEN = json.loads(FILE.read_text())["cases"]
LLAMA3 = RopeBase(head_dim=128, theta=5e5, original_max_position_embeddings=8192)
LONGROPE2 = LongRope(16.0, (1.0,) * 64, tuple(PUBLISHED["factors"]))

BASE = tiny.CONFIG.rope_base()
TWO_LISTS = LongRope(4.0, tuple(np.linspace(1, 1.5, 8)), tuple(np.geomspace(1.2, 6, 8)))
WINDOW = BASE.original_max_position_embeddings
LENGTHS = [[2 * WINDOW], [WINDOW, WINDOW], [WINDOW + 1, WINDOW - 1], [5, 40, 19]]
"""Tokens of the documents of four rows."""


def tables(rotation, positions, segment_ids=None):
    """cos and sin of the queries of plain attention."""
    (queries,), _ = rotary_tables(Causal().pieces(64), rotation, positions, segment_ids)
    return queries.cos, queries.sin


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_a_row_has_the_list_of_its_largest_position_as_the_authors_code(case: dict):
    last = case["params"]["max_position_in_row"]
    rope = LONGROPE2.rope(LLAMA3, last + 1)
    np.testing.assert_allclose(rope.inv_freq, case["inv_freq"], rtol=2e-6)
    positions = jnp.asarray([[0, 5, last - 1, last], [0, 1, 2, 3]], jnp.int32)
    exact = rope.rotation().tables(positions[:1])
    # The other row of the batch is short, whatever this one is.
    short = LONGROPE2.rope(LLAMA3, 4).rotation().tables(positions[1:])
    both = tables(rotation_by_length(LONGROPE2, LLAMA3), positions)
    for actual, of_row, of_short in zip(both, exact, short, strict=True):
        np.testing.assert_array_equal(actual, np.concatenate([of_row, of_short]))


def packed_batch() -> dict[str, jax.Array]:
    batch = tiny.next_token_batch(tiny.tokens(4, 2 * WINDOW))
    ids = np.stack([np.repeat(range(1, len(row) + 1), row) for row in LENGTHS])
    ends_document = np.diff(ids, axis=1, append=0) != 0
    return {
        **batch,
        "segment_ids": jnp.asarray(ids, jnp.int32),
        "weights": batch["weights"] * ~ends_document,
    }


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(ONE_DEVICE, id="one-device"),
        # A ring, whose tokens come in another order.
        pytest.param(Mesh(data=2, seq=2), id="data-seq", marks=pytest.mark.check),
    ],
)
def test_a_step_of_mixed_rows_has_the_gradient_of_the_sum_of_each_document_with_its_list(mesh):
    batch = packed_batch()
    params = tiny.params()
    of_batch = jax.jit(
        jax.value_and_grad(lambda p, b, r: tiny.loss(p, b, r, mesh=mesh, kernel="auto"))
    )
    mixed = of_batch(params, batch, rotation_by_length(TWO_LISTS, BASE))

    def of_one_list(params, batch, length):
        """By the same program, so that only one is compiled: both ranges have the same list."""
        rotation = TWO_LISTS.rope(BASE, length).rotation()
        same = RotationByLength(jnp.asarray([WINDOW], jnp.int32), (rotation, rotation))
        return of_batch(params, batch, same)

    lengths = document_lengths(batch["positions"], batch["segment_ids"])
    total = jax.tree.map(jnp.zeros_like, mixed)
    for is_long in (False, True):
        weights = batch["weights"] * ((lengths > WINDOW) == is_long)
        assert weights.sum() > 0
        length = 2 * WINDOW if is_long else WINDOW
        one = of_one_list(params, {**batch, "weights": weights}, length)
        total = jax.tree.map(jnp.add, total, one)
    for actual, expected in zip(*map(jax.tree.leaves, (mixed, total)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-5 * max(1, abs(expected).max()))
    # And not that of the list of the longest row for all.
    long_only = of_one_list(params, batch, 2 * WINDOW)
    assert abs(long_only[0] - mixed[0]) > 1e-2


def test_the_length_of_a_document_is_as_far_as_its_positions_reach():
    """Skipped positions count, and neither the order of tokens nor the place in the row does."""
    positions = np.array([[0, 1, 50, 51, 52, 60]], np.int32)
    ids = np.array([[1, 1, 1, 2, 2, 2]], np.int32)
    expected = np.array([[51, 51, 51, 10, 10, 10]])
    for order in (np.arange(6), np.random.default_rng(0).permutation(6)):
        found = document_lengths(jnp.asarray(positions[:, order]), jnp.asarray(ids[:, order]))
        np.testing.assert_array_equal(found, expected[:, order])
    np.testing.assert_array_equal(document_lengths(jnp.asarray(positions), None), [[61] * 6])


@pytest.mark.parametrize("by_length", [False, True], ids=["batch", "document"])
def test_leading_positions_are_those_of_each_document_of_a_packed_row(by_length: bool):
    scaling = dataclasses.replace(TWO_LISTS, leading_positions=4)
    length = WINDOW + 8
    rope = scaling.rope(BASE, length)
    rotation = rotation_by_length(scaling, BASE) if by_length else rope.rotation()
    positions = jnp.arange(2 * length, dtype=jnp.int32)[None]
    ids = jnp.asarray(np.repeat([[1, 2]], length, 1))
    packed = tables(rotation, positions, ids)
    for actual, alone in zip(packed, rope.rotation().tables(positions[:, :length]), strict=True):
        np.testing.assert_array_equal(actual[:, :length], alone)
        np.testing.assert_array_equal(actual[:, length:], alone)


def test_the_batches_of_a_run_bring_the_rotation_that_it_asks_for(tmp_path):
    def rotation(scaling: RopeScaling):
        experiment = tiny_experiment(tmp_path, rope_length="document")
        experiment = dataclasses.replace(experiment, rope=scaling)
        rows = Batches(experiment, tiny_base(), rows=None)  # pyright: ignore[reportArgumentType]
        positions = np.arange(64, dtype=np.int32)[None]
        return rows.rotations(Batch(*[positions] * 5))[BATCH]

    by_length = rotation(TWO_LISTS)
    assert isinstance(by_length, RotationByLength)
    np.testing.assert_array_equal(by_length.limits, [WINDOW])
    # A scaling that is the same at every length has one rotation, as without the choice.
    assert not isinstance(rotation(Linear(2.0)), RotationByLength)


@dataclasses.dataclass(frozen=True)
class Forgetful(RopeScaling):
    """It changes its frequencies beyond 100 tokens, but names another length."""

    depends_on_length: ClassVar[bool] = True

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(base.inv_freq / (2 if seq_len > 100 else 1))

    def switch_lengths(self, base: RopeBase) -> tuple[int, ...]:
        return (200,)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (DynamicNTK(2.0), 'DynamicNTK has other frequencies at every length, .* set it to "batch"'),
        (Forgetful(), "Forgetful gives other frequencies at 200 tokens than at 1, but its switch"),
    ],
)
def test_what_cannot_follow_each_document_is_refused_before_anything_starts(scaling, message):
    experiment = tiny_experiment(Path("texts"), rope_length="document")
    with pytest.raises(ValueError, match=message):
        check_context(dataclasses.replace(experiment, rope=scaling))
