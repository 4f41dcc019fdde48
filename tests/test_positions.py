"""Training positions: bounds, distribution, and that the model sees what they say."""

import jax
import numpy as np
import pytest
import tiny

from ctxext.attention import Causal
from ctxext.loss import batch_loss
from ctxext.methods.linear import Linear
from ctxext.methods.pose import PoSE
from ctxext.positions import Contiguous


def sample(positions, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return positions.sample(np.random.default_rng(seed), shape)


def test_contiguous_positions_are_indices():
    out = sample(Contiguous(), (3, 5))
    assert out.dtype == np.int32 and out.tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize(("length", "reach"), [(1, 1), (1, 9), (2, 2), (2, 50), (3, 4), (64, 64), (64, 65), (64, 4096)])
def test_pose_is_two_runs_inside_the_window(length: int, reach: int):
    out = sample(PoSE(reach), (200, length))
    steps = np.diff(out, axis=1)
    assert out.shape == (200, length) and out.dtype == np.int32
    assert (out[:, 0] == 0).all() and out.max() < reach
    assert (steps >= 1).all() and ((steps > 1).sum(1) <= 1).all(), "increasing, with at most one jump"
    jumps = np.argmax(steps > 1, axis=1)[(steps > 1).any(1)] if length > 1 else np.array([], int)
    assert (jumps + 1 <= max(1, length // 2)).all(), "the first chunk has at most half of the row"


def test_pose_draws_both_numbers_uniformly():
    """r ~ U{1 .. T/2} and u ~ U{0 .. L' - T}, independent: every value within 5 sigma of its expected count."""
    length, reach, n = 8, 16, 20000
    out = sample(PoSE(reach), (n, length))
    skip = out[:, -1] - (length - 1)
    first = np.where(skip > 0, np.argmax(np.diff(out, axis=1) > 1, axis=1) + 1, 0)
    counts = np.bincount(skip, minlength=reach - length + 1)
    assert len(counts) == 9 and (abs(counts - n / 9) < 5 * (n / 9) ** 0.5).all()
    table = np.histogram2d(first[skip > 0], skip[skip > 0], bins=[np.arange(1, 6), np.arange(1, 10)])[0]
    assert table.shape == (4, 8) and (abs(table - n / 36) < 5 * (n / 36) ** 0.5).all()


def test_pose_is_a_function_of_the_generator():
    pose = PoSE(512)
    assert (sample(pose, (4, 32), 3) == sample(pose, (4, 32), 3)).all()
    assert (sample(pose, (4, 32), 3) != sample(pose, (4, 32), 4)).any()
    assert len({tuple(row) for row in sample(pose, (4, 32), 3)}) == 4, "rows differ"


def test_pose_refuses_rows_longer_than_its_window():
    with pytest.raises(ValueError, match="raise positions.max_position_embeddings"):
        sample(PoSE(63), (1, 64))
    with pytest.raises(ValueError, match="must be"):
        PoSE(0)


POSITIONS = np.r_[0:10, 100:114][None].astype(np.int32)  # chunk 1: tokens 0..9; chunk 2: tokens 10..23


@pytest.mark.parametrize("kernel", ["dense", "blocked"])
def test_the_second_chunk_sees_the_first_and_nobody_the_future(kernel: str):
    """A jump in positions is no document boundary: chunk 2 attends to chunk 1, at the distance of the positions."""
    lm = tiny.lm(kernel=kernel, scaling=Linear(4.0))
    tokens = tiny.tokens(1, 24)
    before = np.asarray(lm.logits(tokens, positions=POSITIONS))
    for place in (0, 5, 9, 10, 20):
        changed = tokens.copy()
        changed[0, place] = (changed[0, place] + 1) % tiny.VOCAB
        difference = abs(np.asarray(lm.logits(changed, positions=POSITIONS)) - before).max(-1)[0]
        assert (difference[:place] == 0).all() and (difference[place:] > 1e-4).all()
    contiguous = np.asarray(lm.logits(tokens))
    np.testing.assert_allclose(before[:, :10], contiguous[:, :10], atol=2e-5)
    assert abs(before[:, 10:] - contiguous[:, 10:]).max() > 1e-2


def test_the_training_loss_reaches_across_the_jump():
    """d loss(chunk 2) / d embedding of a token that only chunk 1 holds is not zero."""
    tokens = tiny.tokens(1, 24) % 90 + 7
    tokens[0, 3] = 1
    arrays = {"tokens": tokens, "targets": np.roll(tokens, -1, 1), "positions": POSITIONS,
              "segment_ids": np.ones((1, 24), np.int32), "weights": (POSITIONS >= 100).astype(np.float32)}  # fmt: skip
    arrays = jax.tree.map(jax.numpy.asarray, arrays)
    rotation = Linear(4.0).rope(tiny.CONFIG.rope_base(), 128).rotation()

    def loss(params):
        return batch_loss(params, arrays, rotation, config=tiny.CONFIG, attention=Causal(), kernel="blocked",
                          dtype="float32", remat="none")[0]  # fmt: skip

    gradient = jax.jit(jax.grad(loss))(tiny.params())["embed_tokens"]["embedding"]
    assert abs(gradient[1]).max() > 1e-3
    assert abs(gradient[0]).max() == 0, "a token that does not occur"
