"""Training positions: their bounds and distribution, and how the model uses them."""

import dataclasses
import functools
import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ctxext.data import Rows, make_batch
from ctxext.data.corpus import Row
from ctxext.methods.cream import CREAM
from ctxext.methods.linear import Linear
from ctxext.methods.long_recipe import LongRecipe, place_sentences
from ctxext.methods.pose import PoSE
from ctxext.methods.rand_pos import RandPos
from ctxext.methods.random_gaps import RandomGaps
from ctxext.positions import Contiguous, Placement, Positions
from ctxext.serialization import from_json, to_json
from support import tiny


def sample(positions, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return positions.sample(np.random.default_rng(seed), shape)


def test_contiguous_positions_are_indices():
    out = sample(Contiguous(), (3, 5))
    assert out.dtype == np.int32
    assert out.tolist() == [[0, 1, 2, 3, 4]] * 3


METHODS = [
    PoSE(96),
    PoSE(96, 3),
    PoSE(96, 24),
    RandPos(96),
    RandomGaps(96),
    CREAM(96),
    CREAM(96, "uniform"),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("length", [24, 25, 95, 96])
def test_rows_increase_strictly_inside_the_target(method, length: int):
    out = sample(method, (200, length))
    assert out.shape == (200, length)
    assert out.dtype == np.int32
    assert out.min() >= 0
    assert out.max() < 96
    assert (np.diff(out, axis=1) >= 1).all()
    if length == 96:
        assert (out == np.arange(96)).all(), "only one row fits"
    if length <= 25:
        assert len(np.unique(out, axis=0)) > 20
    assert (out == sample(method, (200, length))).all(), "the same seed gives the same rows"


@pytest.mark.parametrize(
    ("length", "reach"), [(2, 2), (2, 50), (3, 4), (64, 64), (64, 65), (64, 4096)]
)
def test_pose_is_two_runs_inside_the_window(length: int, reach: int):
    out = sample(PoSE(reach), (200, length))
    steps = np.diff(out, axis=1)
    assert (out[:, 0] == 0).all()
    assert out.max() < reach
    assert (steps >= 1).all()
    assert ((steps > 1).sum(1) <= 1).all(), "at most one jump"
    jumps = np.argmax(steps > 1, axis=1)[(steps > 1).any(1)]
    assert (jumps + 1 <= (length + 1) // 2).all(), "the first chunk has at most half of the row"


def test_two_chunks_are_sampled_as_in_earlier_versions():
    assert sample(PoSE(64), (3, 8), 7).tolist() == [
        [0, 1, 2, 3, 55, 56, 57, 58],
        [0, 1, 2, 35, 36, 37, 38, 39],
        [0, 1, 2, 47, 48, 49, 50, 51],
    ]
    for pose in (PoSE(64), PoSE(64, 5)):
        assert from_json(to_json(pose)) == pose


def assert_follows(rows: np.ndarray, law: dict[tuple[int, ...], float]) -> None:
    """Pearson's statistic of rows against their probabilities is within 5 sigma of its mean.

    `law` gives the probability of each possible row.
    """
    assert abs(sum(law.values()) - 1) < 1e-12
    counts = Counter(map(tuple, rows.tolist()))
    assert set(counts) <= set(law)
    assert min(law.values()) * len(rows) > 5
    expected = {row: p * len(rows) for row, p in law.items()}
    statistic = sum((counts[row] - count) ** 2 / count for row, count in expected.items())
    assert abs(statistic - (len(law) - 1)) < 5 * (2 * (len(law) - 1)) ** 0.5


@pytest.mark.parametrize(
    ("length", "reach", "chunks"), [(8, 16, 2), (7, 11, 2), (8, 13, 3), (5, 9, 3), (9, 12, 4)]
)
def test_pose_follows_its_law(length: int, reach: int, chunks: int):
    """Lengths are uniform and independent, and u_i ~ U{u_{i-1} .. L' - T} with u_0 = 0."""
    longest = (length + 1) // chunks
    slack = reach - length
    law: dict[tuple[int, ...], float] = {}
    for lengths in itertools.product(range(1, longest + 1), repeat=chunks - 1):
        last = length - sum(lengths)
        chunk_of_token = np.repeat(np.arange(chunks), (*lengths, last))
        p_lengths = longest ** -(chunks - 1)
        for skips in itertools.combinations_with_replacement(range(slack + 1), chunks - 1):
            skip_of_chunk = np.array((0, *skips))
            p_skips = math.prod(1 / (slack + 1 - u) for u in (0, *skips[:-1]))
            row = tuple((np.arange(length) + skip_of_chunk[chunk_of_token]).tolist())
            law[row] = law.get(row, 0) + p_lengths * p_skips
    assert_follows(sample(PoSE(reach, chunks), (40000, length)), law)


def test_randpos_samples_every_set_equally_often():
    law = {row: 1 / math.comb(8, 3) for row in itertools.combinations(range(8), 3)}
    assert_follows(sample(RandPos(8), (20000, 3)), law)
    # The smallest of 20 numbers out of 40.
    first = {(k,): math.comb(39 - k, 19) / math.comb(40, 20) for k in range(6)}
    out = sample(RandPos(40), (20000, 20))[:, :1]
    assert_follows(out[out < 6][:, None], {k: p / sum(first.values()) for k, p in first.items()})


def test_random_gaps_follow_their_law():
    """Worked out by hand from s_j / max(s_T, T): U or 1, for two tokens U1 / max(1, U1 + U2)."""
    assert_follows(
        sample(RandomGaps(5), (20000, 1)),
        {(0,): 1 / 8, (1,): 1 / 8, (2,): 1 / 8, (3,): 1 / 8, (4,): 1 / 2},
    )
    rows = sample(RandomGaps(6), (40000, 2))
    assert_follows(rows[:, :1], {(k,): n / 96 for k, n in enumerate((25, 35, 29, 7))})
    assert_follows(rows[:, 1:], {(k + 1,): n / 32 for k, n in enumerate((1, 3, 5, 7, 16))})


def test_random_gaps_are_up_to_two_tokens_and_one_on_average():
    factor = 8
    length = 256
    rows = sample(RandomGaps(factor * length), (4000, length))
    gaps = np.diff(rows, axis=1) / factor  # in tokens, after Linear(factor)
    assert gaps.min() == 1 / factor
    assert gaps.max() <= 2
    # Half of the rows are longer than the target and are shrunk to fit.
    full = rows[:, -1] == factor * length - 1
    assert abs(full.mean() - 0.5) < 5 * 0.5 / 4000**0.5
    # s_T is about normal with variance T / 3, and E min(s_T, T) = T - sqrt(T / 3 / 2 pi).
    variance = length / 3
    mean = length - (variance / (2 * np.pi)) ** 0.5
    expected = (factor - 1) * mean + length - 1 - 0.5 / 2
    tolerance = 5 * (factor - 1) * variance**0.5 / 4000**0.5
    assert abs(rows[:, -1].mean() - expected) < tolerance


CASES = json.loads((Path(__file__).parent / "golden" / "positions.json").read_text())["cases"]
GOLDEN = {case["id"]: case for case in CASES}


def blocks(row: np.ndarray) -> list[list[int]]:
    """Runs of neighbouring positions, [first, last]."""
    starts = np.flatnonzero(np.diff(row, prepend=row[0] - 2) != 1)
    ends = [*starts[1:], len(row)]
    return [[int(row[a]), int(row[b - 1])] for a, b in zip(starts, ends, strict=True)]


def cream_of(params: dict, method: str) -> CREAM:
    middle = "uniform" if "uniform" in method else "normal"
    return CREAM(params["target"], middle, params.get("mu", 9), params.get("sigma", 3))


def drawn_by_python(seed: int, rows: int, cream: CREAM, window: int) -> list[list[list[int]]]:
    """Blocks of the rows of one call of the authors, who draw with Python's and numpy's seeds."""
    numbers = random.Random(seed)
    uniforms = np.random.RandomState(seed).rand(rows)
    in_thirds = numbers.randint(0, 1) == 0
    return [
        blocks(cream.row(window, in_thirds=in_thirds, uniform=float(u), integer=numbers.randint))
        for u in uniforms
    ]


@pytest.mark.parametrize(
    "name", [name for name in GOLDEN if name.startswith(("cream-", "longred_"))]
)
def test_blocks_of_cream_are_the_authors(name: str):
    """The coin, the inverse of the clamped normal distribution and the place of the middle."""
    case = GOLDEN[name]
    cream = cream_of(case["params"], case["method"])
    for draw in case["draws"]:
        expected = draw["position_blocks"]
        rows = expected if name == "cream-batch" else [expected]
        actual = drawn_by_python(draw["seed"], len(rows), cream, case["params"]["window"])
        assert actual == rows
    if name == "cream-64-512":
        assert {draw["token_blocks"] for draw in case["draws"]} == {"same"}
        assert cream.text_tokens(64) == case["params"]["text_tokens"]


@pytest.mark.parametrize("f", [2, 4, 8])
def test_cream_draws_the_place_of_the_middle_as_the_authors(f: int):
    """k of 200,000 equidistant numbers there; here those that give the middle its bounds."""
    case = GOLDEN[f"cream_factor-{f}"]
    cream = CREAM(30 * f)
    counts = Counter()
    for uniform in (np.arange(4000) + 0.5) / 4000:
        row = cream.row(30, in_thirds=True, uniform=float(uniform), integer=lambda _, high: high)
        counts[(row[19] + 11) // 15] += 1  # the middle ends before 30 k / 2 - 10
    shares = [counts[k] / 4000 for k in case["values"]]
    np.testing.assert_allclose(shares, case["probability"], atol=5e-4)


def test_cream_follows_its_law():
    """Rows of 6 of 18 positions: three thirds, or head and tail, as 4 f exceeds half of a row."""
    chances = dict(zip((2, 3, 4, 5, 6), (0.5, 0, 0, 0, 0), strict=True))
    cumulative = [0.5 * (1 + math.erf((k - 2) / (3 * 2**0.5))) for k in (2, 3, 4, 5, 6)]
    edges = [0.0, *cumulative[1:-1], cumulative[-1]]
    for k, (low, high) in zip((2, 3, 4, 5), itertools.pairwise(edges), strict=True):
        chances[k] = high - low
    chances[6] = 1 - edges[-1]
    law: dict[tuple[int, ...], float] = {}
    no_middle = {(0, 1, 2, 15, 16, 17): 0.5}
    for k, chance in chances.items():
        ends = range(2 + k // 2, 3 * k - 2)
        for end in ends:
            row = (0, 1, end - 1, end, 16, 17)
            law[row] = law.get(row, 0) + chance / len(ends) / 2
    assert_follows(sample(CREAM(18, mean=2, deviation=3), (10000, 6)), law | no_middle)
    uniform = {(0, 1, end - 1, end, 16, 17): 1 / 24 for end in range(4, 16)}
    assert_follows(sample(CREAM(18, "uniform"), (10000, 6)), uniform | no_middle)


@pytest.mark.parametrize("length", range(1, 40))
def test_cream_has_rows_of_any_length(length: int):
    """Also of lengths that L' is no multiple of, and that are shorter than two heads of 4 f."""
    for middle in ("normal", "uniform"):
        out = sample(CREAM(100, middle), (20, length))
        assert out.shape == (20, length)
        assert out.min() >= 0
        assert out.max() < 100
        assert (np.diff(out, axis=1) >= 1).all()


@pytest.mark.parametrize("seed", range(4))
def test_sentences_of_long_recipe_are_at_the_authors_places(seed: int):
    case = GOLDEN[f"longrecipe-{seed}"]
    lengths = np.array(case["sentence_lengths"])
    free = case["params"]["extend_length"] - case["params"]["base_length"]
    numbers = random.Random(seed)
    for _ in lengths:
        numbers.randint(1, 1)  # sentences per group, from min_num to max_num
    places = numbers.sample(range(free + len(lengths)), len(lengths))
    row = place_sentences(lengths, np.sort(places))
    assert blocks(row) == case["position_blocks"]
    assert len(row) == case["count"]


def test_long_recipe_follows_its_law():
    """Three sentences of 2, 1 and 1 tokens in 7 positions, and the beginning moved back."""
    text = np.array([5, 9, 9, 5])
    law: dict[tuple[int, ...], float] = {}
    for places in itertools.combinations(range(6), 3):
        second, third = places[1] + 1, places[2] + 1
        law[0, 1, second, third] = law.get((0, 1, second, third), 0) + 1 / 20
    rng = np.random.default_rng(0)
    for contiguous in False, True:
        method = LongRecipe(7, (9, 4), contiguous_beginning=contiguous)
        rows = np.array([method.place(rng, 4, lambda: text).positions for _ in range(4000)])
        assert rows.dtype == np.int32
        assert_follows(rows, law)  # the beginning of up to two tokens is contiguous anyway
    # Every token is a sentence; the first r of them get 0 .. r - 1.
    method = LongRecipe(9, (5,))
    rows = np.array([method.place(rng, 4, lambda: np.full(4, 5)).positions for _ in range(4000)])
    assert (np.diff(rows) >= 1).all()
    assert rows.max() == 8
    second_is_one = (rows[:, 1] == 1).mean()
    # r is 2 in half of the rows; else the first two of 4 of 9 places are 0 and 1 in 21 of 126.
    assert abs(second_is_one - (1 / 2 + 1 / 2 * 21 / 126)) < 0.04
    whole = LongRecipe(9, (7,)).place(rng, 4, lambda: text).positions
    assert whole.tolist() == [0, 1, 2, 3], "a text without separators is one sentence"
    with pytest.raises(ValueError, match="needs the tokens of a row"):
        sample(method, (1, 4))
    with pytest.raises(ValueError, match=r"separators is empty.* end a sentence"):
        LongRecipe(9, ())
    with pytest.raises(ValueError, match=r"3 positions.* 4 tokens"):
        LongRecipe(3, (5,)).place(rng, 4, lambda: text)


class Counting(Rows):
    """Rows of the numbers from 0 on; counts how many are read."""

    def __init__(self) -> None:
        self.read = 0

    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        self.read += 1
        tokens = np.arange(seq_len, dtype=np.int32)
        segments = 1 + (tokens >= seq_len // 2).astype(np.int32)
        return Row(tokens, tokens + 1, (segments == 1).astype(np.float32), segments)

    def provenance(self) -> dict:
        return {}


def test_a_row_of_cream_has_the_tokens_at_its_positions():
    """Each with its next token in the text for a target, and with its weight and document."""
    options: dict[str, Any] = {"seed": 0, "step": 0, "batch_size": 6, "seq_len": 30}
    batch = make_batch(Counting(), CREAM(120), **options)
    assert (batch.tokens == batch.positions).all()
    assert (batch.targets == batch.positions + 1).all()
    assert (batch.segment_ids == 1 + (batch.positions >= 60)).all()
    assert (batch.weights == (batch.positions < 60)).all()
    contiguous = make_batch(Counting(), CREAM(120, text="row"), **options)
    assert (contiguous.tokens == np.arange(30)).all()
    assert (contiguous.positions == batch.positions).all(), "the text does not change positions"


def test_only_the_rows_that_are_needed_are_read():
    options: dict[str, Any] = {"seed": 0, "step": 0, "batch_size": 6, "seq_len": 30, "own": {1, 4}}
    for method, read in ((PoSE(120), 2), (CREAM(120), 2), (LongRecipe(120, (3, 17)), 6)):
        rows = Counting()
        batch = make_batch(rows, method, **options)
        assert rows.read == read
        assert (batch.positions.max(1) >= 30).any()
        assert (np.diff(batch.positions) >= 1).all(), "of the rows of other processes too"
        assert (batch.tokens.any(1) == [False, True, False, False, True, False]).all()


@dataclasses.dataclass(frozen=True)
class Given(Positions):
    """These positions, whatever is asked for."""

    row: tuple[float, ...]
    indices: tuple[int, ...] | None = None

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return np.array([self.row])

    def place(self, rng, seq_len, text) -> Placement:
        indices = None if self.indices is None else np.array(self.indices)
        return Placement(self.sample(rng, (1, seq_len))[0], indices)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (Given((0, 1)), r"Given gives positions of shape \(2,\) .* for a row of 3 tokens"),
        (Given((0, 0.5, 1)), "positions of shape .* float64 .*; return one integer for each"),
        (Given((0, 2, 2)), r"positions that do not increase .* within 0 .. 2147483647"),
        (Given((-1, 0, 1)), "positions that do not increase"),
        (Given((0, 1, 2**31)), "positions that do not increase"),
        (Given((0, 1, 2), (0, 1, 3)), "indices that do not increase .* within 0 .. 2;"),
    ],
)
def test_positions_that_break_their_promise_are_refused(positions: Given, message: str):
    with pytest.raises(ValueError, match=message):
        make_batch(Counting(), positions, seed=0, step=0, batch_size=1, seq_len=3)


def test_errors_name_values_that_work():
    message = "63 positions.* 64 tokens .*positions.max_position_embeddings to at least 64"
    for method in (PoSE(63), PoSE(63, 4), RandPos(63), RandomGaps(63), CREAM(63)):
        with pytest.raises(ValueError, match=message):
            sample(method, (1, 64))
        for reach in (0, 2**31 + 1):
            with pytest.raises(ValueError, match="from 1 to 2147483648"):
                type(method)(reach)
    with pytest.raises(ValueError, match="at least 2 chunks.* contiguous"):
        PoSE(64, 1)
    message = "8 tokens into 9 chunks; .*num_chunks to at most 8, .*seq_len to at least 9"
    with pytest.raises(ValueError, match=message):
        sample(PoSE(64, 9), (1, 8))
    assert sample(PoSE(64, 8), (1, 8)).shape == (1, 8), (
        "the number of chunks that the message names"
    )
    assert sample(RandPos(2**31), (1, 8)).min() >= 0, "the last position fits into 32 bits"
    wrong = {"middle": "x", "text": "x", "deviation": 0.0, "mean": math.inf}
    for field, value in wrong.items():
        with pytest.raises(ValueError, match=f"positions.{field} "):
            CREAM(64, **{field: value})


# Chunk 1 has tokens 0 .. 9, chunk 2 tokens 10 .. 23.
POSITIONS = np.r_[0:10, 100:114][None].astype(np.int32)

ROWS = [
    POSITIONS,
    *(np.asarray(method.sample(np.random.default_rng(1), (1, 24))) for method in METHODS),
]


@pytest.mark.parametrize("kernel", ["dense", "blocked"])
def test_the_second_chunk_sees_the_first_and_no_token_the_future(kernel: str):
    """A jump in positions is not a document boundary: chunk 2 sees chunk 1, at that distance."""
    lm = tiny.lm(kernel=kernel, scaling=Linear(4.0))
    tokens = tiny.tokens(1, 24)
    before = np.asarray(lm.logits(tokens, positions=POSITIONS))
    for index in (0, 5, 9, 10, 20):
        changed = tokens.copy()
        changed[0, index] = (changed[0, index] + 1) % tiny.VOCAB
        after = np.asarray(lm.logits(changed, positions=POSITIONS))
        difference = abs(after - before).max(-1)[0]
        assert (difference[:index] == 0).all()
        assert (difference[index:] > 1e-4).all()
    contiguous = np.asarray(lm.logits(tokens))
    np.testing.assert_allclose(before[:, :10], contiguous[:, :10], atol=2e-5)
    assert abs(before[:, 10:] - contiguous[:, 10:]).max() > 1e-2


@functools.cache
def gradients():
    """The compiled gradient of a batch's loss with respect to the parameters."""
    rotation = Linear(4.0).rope(tiny.CONFIG.rope_base(), 128).rotation()

    def loss(params, arrays):
        return tiny.loss(params, arrays, rotation)

    return jax.jit(jax.grad(loss))


@pytest.mark.parametrize("positions", ROWS, ids=["by hand", *map(str, METHODS)])
def test_the_training_loss_reaches_across_every_jump(positions: np.ndarray):
    """The loss of the last four tokens has a gradient at a token of the first chunk.

    It has none at a token after them, because the mask compares indices, not positions.
    """
    tokens = tiny.tokens(1, 24) % 90 + 7
    tokens[0, 0] = 1
    tokens[0, 23] = 2
    weights = (np.arange(24) >= 19) & (np.arange(24) < 23)
    arrays = {
        "tokens": tokens,
        "targets": np.full((1, 24), 3, np.int32),
        "positions": positions,
        "segment_ids": np.ones((1, 24), np.int32),
        "weights": weights[None].astype(np.float32),
    }
    arrays = jax.tree.map(jax.numpy.asarray, arrays)
    assert int(positions[0, -4]) > 20, "the last tokens are after a jump"
    gradient = np.asarray(gradients()(tiny.params(), arrays)["embed_tokens"]["embedding"])
    assert abs(gradient[1]).max() > 1e-3, "the first token is seen across every jump"
    assert abs(gradient[2]).max() == 0, "the token after the last target is not seen"
    assert abs(gradient[0]).max() == 0, "token 0 does not occur"
