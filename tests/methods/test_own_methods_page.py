"""The files of docs/own-methods.md, one of each kind of method, do what their docstrings say."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Causal, LayerKind
from ctxext.attention.length import pieces_of_any_length
from ctxext.audit import Subject, audit
from ctxext.cli.method_options import make_methods
from ctxext.cli.overrides import override
from ctxext.losses import Lengths
from ctxext.methods import make
from ctxext.methods.dca import DCA
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.positions import check_placement
from ctxext.rope import RopeBase, Unscaled, rope_at, target_length
from support.attention_by_definition import by_definition
from support.tiny_train import tiny_experiment

PAGE = (Path(__file__).parents[2] / "docs" / "own-methods.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
LLAMA2 = RopeBase(128, 1e4, 4096)
T = 48
INDEX = np.arange(T)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """All files of the page in the current directory."""
    for name, source in FILES.items():
        (tmp_path / name).write_text(source)
    monkeypatch.chdir(tmp_path)


def test_every_file_is_short():
    assert len(FILES) == 8
    assert all(len(source.strip().splitlines()) <= 33 for source in FILES.values())


def test_frequencies():
    scaling = make("frequencies.py:SlowHalf")
    np.testing.assert_array_equal(rope_at(scaling, LLAMA2, 100).inv_freq, LLAMA2.inv_freq)
    stretched = rope_at(scaling, LLAMA2, 12288).inv_freq / LLAMA2.inv_freq
    np.testing.assert_allclose(stretched, np.repeat([1, 1 / 3], 32))


def test_a_wrapper():
    flags = ["--longest", "16384", "--inner", "yarn", "--factor", "4"]
    (scaling,) = make_methods(["wrapper.py:WholeTurns"], flags)
    rope = rope_at(scaling, LLAMA2, 100)
    yarn = Yarn(4.0).rope(LLAMA2, 100)
    wavelengths = 2 * np.pi / yarn.inv_freq
    np.testing.assert_allclose(2 * np.pi / rope.inv_freq, np.minimum(wavelengths, 16384))
    assert rope.attention_factor == yarn.attention_factor
    assert target_length(scaling, 4096) == 16384


def test_attention_with_scaled_queries():
    method = make("attention.py:NearAndFar", near=8, group=4)
    pieces = pieces_of_any_length(method)
    plain = SelfExtend(4, 8).pieces(T)
    for ours, theirs in zip(pieces, plain, strict=True):
        assert ours.mask == theirs.mask
        for name in ("query_positions", "key_positions"):
            np.testing.assert_array_equal(getattr(ours, name)(INDEX), getattr(theirs, name)(INDEX))
        assert ours.query_scale is not None
        for positions in (INDEX, jnp.asarray(INDEX)):
            scale = np.asarray(ours.query_scale(positions))
            expected = 1 + np.log(np.maximum(INDEX, 8) / 8) / 10
            np.testing.assert_allclose(scale, expected, rtol=1e-6)


def test_a_bias_in_some_heads():
    pieces = pieces_of_any_length(make("bias.py:RecentHeads"))
    assert [list(piece.heads.of(4)) for piece in pieces] == [[0, 1], [2, 3]]
    assert pieces[0].bias is not None
    assert pieces[0].bias(4) == [1 / 16, 1 / 32, 1 / 64, 1 / 128]
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(48, heads, 8)) for heads in (4, 2, 2))
    out = by_definition(pieces, q, k, v)
    plain = by_definition(Causal().pieces(48), q, k, v)
    np.testing.assert_array_equal(out[:, 2:], plain[:, 2:])
    assert abs(out - plain)[9:, :2].max(-1).min() > 1e-3


def test_a_mask():
    near, far = pieces_of_any_length(make("mask.py:Sparse", near=5, step=3))
    query = 20
    seen = [piece.mask.visible(query, np.arange(30)).nonzero()[0].tolist() for piece in (near, far)]
    assert seen == [[16, 17, 18, 19, 20], [0, 3, 6, 9, 12, 15]]
    assert far.mask.block(range(8), range(8, 16)) == (False, False)
    assert far.mask.block(range(16, 24), range(8)) == (True, False)


def test_a_temperature_of_another_attention():
    flags = ["--training-length", "64", "--exponent", "0.5", "--chunk-size", "48"]
    flags += ["--inner", "dca", "--local-window", "16"]
    (method,) = make_methods(["temperature.py:PowerTemperature"], flags)
    assert method.inner == DCA(48, 16)
    for ours, theirs in zip(method.pieces(256), DCA(48, 16).pieces(256), strict=True):
        for positions in (np.array([0, 62, 63, 255]), jnp.array([0, 62, 63, 255])):
            scale = np.asarray(ours.query_scale(positions))
            np.testing.assert_allclose(scale, [1, 1, 1, 2], rtol=1e-6)
        assert dataclasses.replace(ours, query_scale=None) == theirs


def test_positions():
    method = make("positions.py:Jump", max_position_embeddings=40)
    rows = method.sample(np.random.default_rng(0), (500, 16))
    assert (rows[:, :8] == np.arange(8)).all()
    moved = rows[:, 8:] - np.arange(8, 16)
    assert (moved == moved[:, :1]).all()
    assert set(moved[:, 0].tolist()) == set(range(25))
    check_placement(method, method.place(np.random.default_rng(0), 16, INDEX.copy), 16)


class Model:
    """A model whose losses are 1, 2, 3, ..."""

    def hidden(self, batch):
        return batch["tokens"]

    def weighted_loss(self, hidden, targets, weights):
        return (weights * (1 + jnp.arange(hidden.shape[1]))[None]).sum()


def test_a_loss():
    experiment = override(
        tiny_experiment(Path("texts")), ["--first", "3"], methods=["loss.py:LaterTokens"]
    )
    loss: Any = experiment.loss
    weights = jnp.array([[1.0, 1, 1, 1, 0, 1]])
    batch = {"tokens": jnp.zeros((1, 6), int), "targets": None, "weights": weights}
    total, sums = loss(Model(), batch, {})
    assert float(total) == 4 + 6
    assert {name: float(x) for name, x in sums.items()} == {"weight": 2}
    loss.check(Lengths(row=4, window=4, target=4), 2)
    with pytest.raises(ValueError, match="loss.first must be in 0 .. 2, got 3"):
        loss.check(Lengths(row=3, window=4, target=4), 2)


@pytest.mark.check
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("attention.py:NearAndFar", {"near": 32, "group": 4}),
        ("bias.py:RecentHeads", {}),
        ("mask.py:Sparse", {"near": 32, "step": 8}),
        ("temperature.py:PowerTemperature", {"training_length": 64}),
    ],
)
def test_kernels_and_the_cache_agree_about_attention(name: str, fields: dict[str, Any]):
    base = RopeBase(8, 1e4, 64)
    result = audit(Subject(make(name, **fields), Unscaled(), base, 200, (LayerKind(),) * 4, (4, 2)))
    assert result.findings == []
    assert result.cache.result == "same"
    assert [kernel.result for kernel in result.kernels if kernel.name == "blocked"] == ["same"]
