"""A method that uses all that a piece can say: every kernel, and the cache, evaluate it alike."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Causal, Heads, LayerKind, Layers, Piece, make_attention
from ctxext.attention.cache import caches_rotated
from ctxext.attention.heads import HeadSet, head_sets
from ctxext.attention.length import pieces_at, pieces_of_any_length, rotation_for
from ctxext.attention.maps import Divided
from ctxext.attention.pieces import Attention, Band
from ctxext.attention.visible import visible_pairs
from ctxext.data import make_batch
from ctxext.files import read_jsonl
from ctxext.methods import PoSE, SelfExtend
from ctxext.model.lm import _logits
from ctxext.parallel.attention import make_sharded_attention, ring_order, token_order
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.rope import RopeBase, Unscaled
from ctxext.rundir import RunDir
from ctxext.tracking import JsonlSink
from ctxext.training.loop import train
from ctxext.training.rotation import training_rotation
from support import tiny
from support.attention_by_definition import AtLength, Even, Everything, Growing, by_definition
from support.tiny_train import tiny_base, tiny_experiment, write_texts

BASE = RopeBase(8, 1e4, 64)
T = 160
LENGTHS = (73, 51, 36)
"""Tokens of the documents of each row."""
LENGTH = 900


def arrays() -> list[jax.Array]:
    """q, k, v, and the weights of outputs."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, T, n, 8)), jnp.float32) for n in (4, 2, 2, 4)]


def packed() -> tuple[np.ndarray, np.ndarray]:
    """Positions that skip, and segments: each row holds the documents in another order."""
    positions = PoSE(max_position_embeddings=LENGTH, num_chunks=5).sample(
        np.random.default_rng(5), (2, T)
    )
    lengths = np.array(LENGTHS)
    segments = np.stack([np.repeat([1, 2, 3], row) for row in (lengths, lengths[::-1])])
    return positions, segments.astype(np.int32)


@functools.cache
def outcome(kernel: str, mesh: Mesh = ONE_DEVICE, *, gradients: bool = True) -> list[np.ndarray]:
    """The output and, if asked for, the gradients of q, k and v."""
    q, k, v, weights = arrays()
    positions, segments = (jnp.asarray(x) for x in packed())
    rotation = rotation_for(Unscaled(), Everything(), BASE, LENGTH)

    def loss(q, k, v, rotation):
        q, k, v = (ring_order(x, mesh) for x in (q, k, v))
        attend = make_sharded_attention(
            mesh,
            Everything(),
            kernel,
            rotation,
            ring_order(positions, mesh),
            ring_order(segments, mesh),
        )
        out = token_order(attend(q, k, v, None, None)[0], mesh)
        return (out * weights).sum(), out

    if not gradients:
        return [np.asarray(jax.jit(loss)(q, k, v, rotation)[1])]
    of_loss = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, out), grads = of_loss(q, k, v, rotation)
    return [np.asarray(x) for x in (out, *grads)]


def test_dense_is_the_definition():
    q, k, v, _ = (np.asarray(x, np.float64) for x in arrays())
    positions, segments = packed()
    out = outcome("dense")[0]
    pieces = Everything().pieces(LENGTH)
    for row in range(2):
        for segment in (1, 2, 3):
            own = segments[row] == segment
            expected = by_definition(
                pieces,
                q[row, own],
                k[row, own],
                v[row, own],
                positions=positions[row, own] - positions[row, own][0],
            )
            np.testing.assert_allclose(out[row, own], expected, atol=5e-6)


@pytest.mark.parametrize(
    ("kernel", "mesh"),
    [
        ("blocked", ONE_DEVICE),
        *(
            pytest.param("ring", mesh, marks=pytest.mark.slow)
            for mesh in (Mesh(seq=2), Mesh(seq=4), Mesh(seq=8))
        ),
        pytest.param("ring", Mesh(fsdp=2, seq=2, tensor=2), marks=pytest.mark.check),
        pytest.param("blocked", Mesh(fsdp=2, tensor=2), marks=pytest.mark.check),
    ],
    ids=str,
)
def test_kernels_equal_dense_in_values_and_gradients(kernel: str, mesh: Mesh):
    for actual, expected in zip(outcome(kernel, mesh), outcome("dense"), strict=True):
        scale = max(1, abs(expected).max())
        np.testing.assert_allclose(actual, expected, atol=1e-5 * scale, rtol=0)


def test_a_ring_equals_dense_in_values():
    """The gradients take twice as long to compile: `make check` compares them."""
    (actual,) = outcome("ring", Mesh(seq=2), gradients=False)
    np.testing.assert_allclose(actual, outcome("dense")[0], atol=1e-5, rtol=0)


CONFIG = tiny.config(num_hidden_layers=1)
"""One layer, whose cache does not depend on frequencies: `incremental` equals recomputing too."""


@pytest.mark.parametrize(
    "semantics", ["incremental", pytest.param("frozen", marks=pytest.mark.check)]
)
def test_cached_decoding_equals_recomputing(semantics):
    lm = tiny.lm(CONFIG, attention=Everything(), semantics=semantics)
    prompts = tiny.tokens(2, 27)
    new = lm.generate(prompts, max_new_tokens=12)
    texts = np.concatenate([prompts, new], 1)
    programs = _logits._cache_size()
    for step in range(12):
        # Without the tokens after it, whose length the method would follow.
        model = lm
        if semantics == "frozen":
            model = dataclasses.replace(lm, attention=AtLength(Everything(), 27))
        logits = np.asarray(model.logits(texts[:, : 27 + step]))[:, -1]
        ordered = np.sort(logits, -1)
        assert (ordered[:, -1] - ordered[:, -2] > 1e-4).all()
        np.testing.assert_array_equal(new[:, step], logits.argmax(-1))
    assert _logits._cache_size() - programs <= 2, "another length compiles nothing"


@pytest.mark.check
def test_rows_of_different_lengths_are_decoded_for_their_own():
    lm = tiny.lm(CONFIG, attention=Everything())
    prompts = [tiny.tokens(1, n, seed=n)[0] for n in (20, 41)]
    together = lm.generate(prompts, max_new_tokens=6)
    for prompt, row in zip(prompts, together, strict=True):
        np.testing.assert_array_equal(lm.generate([prompt], max_new_tokens=6)[0], row)


def test_layers_that_do_not_rotate_are_scaled_too():
    """Without rotation, attention with scaled queries is that of queries that were scaled."""
    q, k, v, _ = (x[:, :20] for x in arrays())
    positions = jnp.broadcast_to(jnp.arange(20), (2, 20))
    rotation = Unscaled().rope(BASE, 64).rotation()
    layers = Layers((LayerKind(rotates=False), LayerKind()))

    @functools.partial(jax.jit, static_argnums=0)
    def attend(attention, q, kind):
        made = make_attention(attention, "dense", rotation, positions, layers=layers)
        return jnp.stack([made(q, k, v, None, None, one)[0] for one in (0, 1, kind)])

    scaled = q * (1 + positions / 40)[..., None, None]
    for where in ("all", "without-rotation"):
        by_piece = attend(Scaled(where), q, jnp.int32(0))
        by_hand = attend(Causal(), scaled, jnp.int32(0))
        plain = attend(Causal(), q, jnp.int32(0))
        np.testing.assert_allclose(by_piece[0], by_hand[0], atol=1e-6)
        np.testing.assert_allclose(by_piece[2], by_hand[2], atol=1e-6)
        rotated = by_hand if where == "all" else plain
        np.testing.assert_allclose(by_piece[1], rotated[1], atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Scaled(Attention):
    where: str

    def pieces(self, seq_len):
        return (Piece(Band(), query_scale=Growing(20), scaled_layers=self.where),)


def test_sets_of_heads():
    def sets(*shares, N=4, K=2):
        return head_sets([Piece(Band(), heads=Heads(*share)) for share in shares], N, K)

    assert sets((0, 1), (0, 1)) == [HeadSet((0, 1))]
    halves = [HeadSet((0,), slice(0, 2), slice(0, 1)), HeadSet((1,), slice(2, 4), slice(1, 2))]
    assert sets((0, 0.5), (0.5, 1)) == halves
    one, others = sets((0, 0.25), (0.25, 1))
    assert one == HeadSet((0,), slice(0, 1), slice(0, 1))
    assert others == HeadSet((1,), slice(1, 4), (0, 1, 1))
    assert sets((0, 0.5), (0.5, 1), N=9, K=3)[0].query_heads == slice(0, 4)
    with pytest.raises(ValueError, match="no piece applies to query heads 2 to 3"):
        sets((0, 0.5))
    with pytest.raises(ValueError, match="shares with 0 <= first < stop <= 1"):
        Heads(0.5, 0.5)


def test_pairs_are_counted_by_the_share_of_their_heads():
    causal = 40 * 41 // 2
    assert visible_pairs(Everything(), 40) == causal
    assert visible_pairs(Half(), 40) == round((causal + sum(min(i + 1, 5) for i in range(40))) / 2)


@dataclasses.dataclass(frozen=True)
class Half(Attention):
    """Half of the heads see five tokens."""

    def pieces(self, seq_len):
        return Piece(Band(), heads=Heads(0, 0.5)), Piece(Band(0, 5), heads=Heads(0.5, 1))


def test_keys_are_cached_rotated_where_all_pieces_rotate_them_alike():
    assert caches_rotated(Half(), re_rotated=False)
    assert not caches_rotated(Half(), re_rotated=True)
    assert not caches_rotated(SelfExtend(4, 8), re_rotated=False)


def test_fractions_of_positions_are_exact_far_away():
    """(p + 1) / 3 in float32 would be off by 2e-3 there."""
    rotation = Unscaled().rope(BASE, 64).rotation()
    positions = np.arange(131000, 131072)
    whole, part = Divided(1, 3).whole_and_part(jnp.asarray(positions))
    cos, sin = rotation.tables(whole, part)
    angles = (positions[:, None] + 1) / 3 * BASE.inv_freq
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Undeclared(Attention):
    def pieces(self, seq_len):
        return (Piece(Band(), query_scale=Growing(seq_len)),)


@dataclasses.dataclass(frozen=True)
class MovingMask(Attention):
    depends_on_length = True

    def pieces(self, seq_len):
        return (Piece(Band(0, seq_len), bias=Even()),)


def test_what_follows_the_length_must_be_declared_and_no_mask():
    with pytest.raises(ValueError, match="Undeclared .* set depends_on_length = True"):
        pieces_of_any_length(Undeclared())
    with pytest.raises(ValueError, match="MovingMask gives other masks or heads"):
        pieces_of_any_length(MovingMask())
    with pytest.raises(ValueError, match="MovingMask gives other masks or heads"):
        pieces_at(MovingMask(), rotation_for(Unscaled(), MovingMask(), BASE, 64))
    rotation = Unscaled().rope(BASE, 64).rotation()
    with pytest.raises(ValueError, match="Everything follows the length, but"):
        make_attention(Everything(), "dense", rotation, jnp.arange(4)[None])


@pytest.mark.check
def test_training_asks_for_the_length_of_its_batch(tmp_path):
    """The first loss is that of the model; the monitor computes logits of every set of heads."""
    experiment = tiny_experiment(
        write_texts(tmp_path / "texts"), steps=1, batch_size=2, monitor_every=1
    )
    experiment = dataclasses.replace(experiment, attention=Everything())
    run = RunDir(tmp_path / "run").open(experiment)
    train(experiment, run, tiny_base(), sinks=[JsonlSink(run.metrics_file)], progress=False)
    losses = [row["loss"] for row in read_jsonl(run.metrics_file) if "loss" in row]
    rows = experiment.data.open(tiny_base().tokenizer)
    batch = make_batch(rows, experiment.positions, seed=0, step=0, batch_size=2, seq_len=64)
    logits = np.asarray(tiny_base().with_method(Everything()).logits(batch.tokens), np.float64)
    lse = np.log(np.exp(logits).sum(-1))
    nll = lse - np.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
    expected = (nll * batch.weights).sum() / batch.weights.sum()
    assert losses[0] == pytest.approx(expected, abs=2e-5)
    document = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, rope_length="document")
    )
    with pytest.raises(ValueError, match="Everything follows the length of a batch"):
        training_rotation(document, Unscaled(), BASE, 64)
