"""The table of kernels: which one is chosen, why others refuse, and how the choice is explained."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Band, Causal
from ctxext.attention.kernels import KERNELS, TABLE, choose, evaluate, explain, refusal
from ctxext.attention.masks import Chunks
from ctxext.attention.request import Request
from ctxext.methods import SelfExtend
from ctxext.methods.lm_infinite import First

ONE = tuple(piece.mask for piece in Causal().pieces(1024))
TWO = tuple(piece.mask for piece in SelfExtend(4, 512).pieces(1024))
CHUNKS = (Chunks(1024, 0, 1), Chunks(1024, 1, 2), Chunks(1024, 2))
PLAIN = Request(ONE, "cpu", seq_len=8192, dtype="bfloat16", packed=False)


def request(platform: str, **changes) -> Request:
    return dataclasses.replace(PLAIN, platform=platform, **changes)


def test_every_name_but_auto_is_a_row():
    assert set(KERNELS) == {*TABLE, "auto"}


@pytest.mark.parametrize(
    ("platform", "changes", "expected"),
    [
        ("cpu", {}, "blocked"),
        ("tpu", {}, "splash"),
        ("tpu", {"packed": True, "dtype": "float32"}, "splash"),
        ("tpu", {"masks": TWO}, "splash"),
        ("tpu", {"masks": CHUNKS, "packed": True}, "blocked"),
        ("tpu", {"seq_len": 8200}, "blocked"),
        ("gpu", {}, "cudnn"),
        ("cuda", {}, "cudnn"),
        ("gpu", {"masks": (Band(0, 1024),)}, "cudnn"),
        ("gpu", {"packed": True}, "blocked"),
        ("gpu", {"dtype": "float32"}, "blocked"),
        ("gpu", {"masks": TWO}, "cudnn"),
        ("gpu", {"masks": CHUNKS}, "cudnn"),
        ("gpu", {"masks": CHUNKS, "seq_len": 128 * 1024}, "blocked"),
        ("cpu", {"cut": True}, "ring"),
        ("tpu", {"cut": True}, "ring"),
        ("gpu", {"cut": True}, "ring"),
    ],
)
def test_auto_takes_the_fused_kernel_where_it_is_exact(platform, changes, expected):
    assert choose("auto", request(platform, **changes)) == expected


@pytest.mark.parametrize(
    ("kernel", "platform", "changes", "reason"),
    [
        ("splash", "gpu", {}, "it does not run on gpu"),
        ("splash", "tpu", {"masks": CHUNKS, "packed": True}, "not of each packed document"),
        ("splash", "tpu", {"seq_len": 8200}, "a multiple of 128 tokens, not 8200"),
        ("cudnn", "gpu", {"masks": (First(4, 0),)}, "causal bands, and chunks up to 64, not"),
        ("cudnn", "gpu", {"masks": (Chunks(8, 0, 2),)}, "causal bands, and chunks up to 64, not"),
        ("cudnn", "gpu", {"dtype": "float32"}, "it computes in bfloat16, not float32"),
        ("cudnn", "gpu", {"packed": True}, "it does not know segments"),
        ("cudnn", "gpu", {"cut": True}, "it needs whole sequences, but mesh.seq cuts them"),
        ("splash", "tpu", {"cut": True}, "it needs whole sequences, but mesh.seq cuts them"),
        ("dense", "cpu", {"cut": True}, "it needs whole sequences, but mesh.seq cuts them"),
    ],
)
def test_a_kernel_that_cannot_do_a_request_is_refused_with_the_reason(
    kernel, platform, changes, reason
):
    refused = request(platform, **changes)
    assert reason in refusal(kernel, refused)
    message = f"kernel '{kernel}' cannot be used: .*{reason}.*; choose blocked or auto"
    with pytest.raises(ValueError, match=message):
        choose(kernel, refused)


def test_blocked_and_ring_are_one_algorithm():
    for kernel, cut in itertools.product(("blocked", "ring"), (False, True)):
        assert choose(kernel, request("cpu", cut=cut)) == ("ring" if cut else "blocked")
    assert choose("dense", request("cpu")) == "dense"
    with pytest.raises(ValueError, match="kernel 'flash' is not known; choose one of dense, "):
        choose("flash", PLAIN)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kernel", "platform", "changes", "line"),
    [
        ("dense", "cpu", {}, "dense"),
        ("auto", "cpu", {}, "blocked (auto)"),
        ("auto", "gpu", {}, "cudnn (auto)"),
        ("blocked", "cpu", {"cut": True}, "ring (blocked)"),
        (
            "auto",
            "gpu",
            {"dtype": "float32"},
            "blocked (auto; not cudnn: it computes in bfloat16, not float32)",
        ),
    ],
)
def test_the_choice_is_explained(kernel, platform, changes, line):
    assert explain(kernel, request(platform, **changes)) == line


def test_evaluate_reads_the_request_off_the_arrays():
    """On the CPU "auto" is "blocked", in values that equal those of "dense"."""
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(1, 40, 4, 8)), jnp.float32)
    k = jnp.asarray(rng.normal(size=(1, 40, 2, 8)), jnp.float32)
    v = jnp.asarray(rng.normal(size=(1, 40, 2, 8)), jnp.float32)
    auto = evaluate("auto", [q], [k], v, ONE)
    dense = evaluate("dense", [q], [k], v, ONE)
    np.testing.assert_allclose(auto, dense, atol=1e-6)
    with pytest.raises(ValueError, match="'splash' cannot be used: it does not run on cpu"):
        evaluate("splash", [q], [k], v, ONE)
