"""The bench's two sides do the same work, its limits are counted right, and it says what it cannot do."""

import contextlib
import dataclasses
import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.stages import Lowered

from ctxext import bench
from ctxext.bench import comparison, limits, tables, trace
from ctxext.bench.cases import NARROW, Work, standard
from ctxext.bench.weights import random_weights
from ctxext.cli.main import main
from ctxext.model.decoder import param_shapes

TINY = dataclasses.replace(
    NARROW,
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)
WORKS = (
    Work("step", 96, 2, shape=TINY),
    Work("step", 96, 2, remat="full", shape=TINY),
    Work("prefill", 64, shape=TINY),
    Work("decode", 64, 2, new_tokens=8, shape=TINY),
    Work("attention", 96, 2, shape=TINY),
    Work("loss", 96, 2, shape=TINY),
)


QUICK = ("prefill", "attention")


@pytest.mark.parametrize(
    "work",
    [x if x.part in QUICK else pytest.param(x, marks=pytest.mark.check) for x in WORKS],
    ids=lambda work: work.name,
)
def test_both_sides_find_the_same(work: Work, tmp_path: Path):
    """Losses and gradient norms of three training steps, the next token and its nats, 8 tokens, norms of gradients."""
    theirs = pytest.importorskip("ctxext.bench.transformers_backend")
    weights = random_weights(work, tmp_path)
    one, other = (side.PARTS[work.part](work, weights) for side in (ours, theirs))
    for _ in range(3):
        (seconds, value), (their_seconds, expected) = one(), other()
        np.testing.assert_allclose(value, expected, rtol=2e-4)
        assert seconds > 0 and their_seconds > 0


def test_a_match_in_processes(tmp_path: Path):
    """The figures hold together, and read."""
    work = WORKS[3]
    found = comparison.match(work, random_weights(work, tmp_path), ["ours"], rounds=3)
    side = found["sides"]["ours"]
    assert (
        side["seconds"]["low"] <= side["seconds"]["median"] <= side["seconds"]["high"]
        and side["peak_gib"] > 0.05
    )
    np.testing.assert_allclose(side["tokens_per_second"] * side["seconds"]["median"], 14)
    np.testing.assert_allclose(
        side["roofline"],
        limits.decode_bytes(work) * 7 / side["seconds"]["median"] / found["read_bandwidth"],
    )
    text = tables.describe({"decode": {"matches": [found]}})
    assert text.startswith("decode, 2 x 64 + 8 new") and "of the memory roofline" in text
    charts = tables.against_length([found, {**found, "tokens": 28}])
    assert [chart.numbers.cells[1][1] for chart in charts] == ["28", "28"]


@pytest.mark.check
def test_the_command_beside_transformers(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    works = {"step": WORKS[:1], "memory": (WORKS[1], dataclasses.replace(WORKS[1], seq_len=192))}
    monkeypatch.setattr(bench, "standard", lambda platform: works)
    out = tmp_path / "cost.svg"
    assert (
        main(
            ["bench", "--parts", "step", "memory", "--against", "hf", "--json", "--plot", str(out)]
        )
        == 0
    )
    figures = json.loads(capsys.readouterr().out)
    for found in (*figures["step"]["matches"], *figures["memory"]["matches"]):
        assert (
            found["same"]
            and found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]
        )
    assert out.exists() and (tmp_path / "cost-memory.svg").exists()


def test_work_passes_to_another_process_whole():
    for work in (*WORKS, *standard("tpu")["step"]):
        assert Work.parse(work.json()) == work


def test_bytes_of_a_decode_are_those_of_the_tree_and_the_cache():
    """Every parameter but embedding and norms, and at the middle step 64 + 4.5 cached tokens of 2 layers."""
    tree = param_shapes(TINY)
    kernels = [
        x.size for path, x in jax.tree_util.tree_leaves_with_path(tree) if path[-1].key == "kernel"
    ]
    cached = 2 * 2 * 2 * 16 * 2 * 68.5
    assert limits.decode_bytes(WORKS[3]) == 4 * (sum(kernels) + cached)


def test_operations_of_a_step_are_those_that_xla_counts():
    """Without attention, which is masked there and skipped here: matrix products of the forward pass, three times."""
    work = Work(
        "step",
        256,
        shape=dataclasses.replace(TINY, num_attention_heads=1, num_key_value_heads=1, head_dim=2),
    )
    shapes = param_shapes(work.shape)
    kernels = [
        x for path, x in jax.tree_util.tree_leaves_with_path(shapes) if path[-1].key == "kernel"
    ]

    def products(kernels):  # every kernel once, on 256 tokens
        return [
            jax.numpy.ones((256, k.shape[-2])) @ k for k in kernels
        ]  # stacks of layers count their layers

    lowered: Lowered = jax.jit(products).lower(kernels)
    counted = lowered.cost_analysis()
    attention = 2 * 4 * 2 * 256 * 257 // 2
    assert counted is not None
    np.testing.assert_allclose(
        limits.model_flops(work) / 3 - attention, counted["flops"], rtol=0.01
    )


def test_bandwidth_is_of_the_quickest_round(monkeypatch: pytest.MonkeyPatch):
    """Rounds of 4, 0.5 and 2 s by a clock that is told so, while two workers read all of the memory between them."""
    read, times = [], iter([0.0, 4.0, 10.0, 10.5, 20.0, 22.0])
    monkeypatch.setattr(limits.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(limits.np, "max", lambda part: read.append(part.nbytes))
    assert limits.read_bandwidth(2**20, 3) == 2**21 and sum(read) == 3 * 2**20 and len(read) == 6


def test_an_accelerator_s_time_is_that_of_its_kernels_without_gaps_and_overlaps():
    """Two kernels that overlap for 1 us, one apart; what is no kernel, and another device, do not count."""
    trace_of = """
        planes { name: "/device:GPU:1" lines { name: "Stream #1" events { metadata_id: 1 duration_ps: 77000000 } } }
        planes { name: "/device:GPU:0"
                 lines { name: "Stream #14(Compute)" timestamp_ns: 500
                         events { metadata_id: 1 offset_ps: 0 duration_ps: 5000000 }
                         events { metadata_id: 1 offset_ps: 4000000 duration_ps: 5000000 } }
                 lines { name: "Stream #15(MemcpyD2H)" timestamp_ns: 20500
                         events { metadata_id: 1 offset_ps: 0 duration_ps: 2000000 } }
                 lines { name: "XLA Modules" events { metadata_id: 1 duration_ps: 99000000 } }
                 event_metadata { key: 1 value { id: 1 name: "gemm" } } }
        planes { name: "/host:CPU" lines { name: "Stream #2" events { metadata_id: 1 duration_ps: 88000000 } } }"""
    data = jax.profiler.ProfileData
    profile = data.from_serialized_xspace(data.text_proto_to_serialized_xspace(trace_of))
    assert trace.busy(profile) == pytest.approx(11e-6)
    ran = []
    assert (
        trace.device_seconds(lambda: ran.append(jax.numpy.ones(3).block_until_ready())) is None
        and ran
    )
    seconds = {"median": 1.0, "low": 1.0, "high": 1.0}
    side = {
        "seconds": seconds,
        "tokens_per_second": 9.0,
        "peak_gib": 1.0,
        "device_seconds": 0.91,
        "version": "jax",
    }
    found = {"work": "prefill", "sides": {"ours": side}}
    assert "the device busy for 0.91 s" in tables.describe({"prefill": {"matches": [found]}})


def test_only_bfloat16_on_a_known_device_has_an_mfu():
    work = standard("gpu")["step"][0]
    share = limits.mfu(work, 1.0, "NVIDIA H100 80GB HBM3")
    assert share is not None and share == pytest.approx(limits.model_flops(work) / 989e12, rel=0.01)
    assert limits.mfu(work, 1.0, "cpu") is None
    assert (
        limits.mfu(dataclasses.replace(work, dtype="float32"), 1.0, "NVIDIA H100 80GB HBM3") is None
    )


def test_a_side_that_fails_says_so(tmp_path: Path):
    with pytest.raises(ValueError, match="the side 'ours' of the bench ended without an answer"):
        comparison.match(WORKS[0], tmp_path / "nothing", ["ours"], rounds=1)


def test_sides_on_different_devices_are_no_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sides = {"ours": ("jax 1", "NVIDIA H200"), "theirs": ("torch 2", "cpu")}
    monkeypatch.setattr(
        match,
        "opened",
        lambda name, *_: contextlib.nullcontext(
            types.SimpleNamespace(version=sides[name][0], device=sides[name][1])
        ),
    )
    with pytest.raises(
        ValueError, match="different devices: jax 1 on NVIDIA H200; torch 2 on cpu; install a torch"
    ):
        comparison.match(WORKS[0], tmp_path, list(sides), rounds=1)


def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(ValueError, match="no bench 'speed'; known: eval, io, step"):
        bench.measure("tiny-llama", ["speed"])
    with pytest.raises(ValueError, match="nothing to bench against called 'vllm'; known: hf"):
        bench.measure("tiny-llama", ["step"], against="vllm")
    assert main(["bench", "--plot", str(tmp_path / "a.svg")]) == 2
    assert "add memory to --parts" in capsys.readouterr().err
