"""Both backends of the benchmark compute the same, and its hardware limits are right."""

import contextlib
import dataclasses
import json
import subprocess
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.stages import Lowered

from ctxext import bench
from ctxext.bench import comparison, ctxext_backend, limits, tables, trace
from ctxext.bench.cases import NARROW, BenchmarkCase, standard_cases
from ctxext.bench.instructions import environment
from ctxext.bench.weights import random_weights
from ctxext.child_python import python_command
from ctxext.cli.main import main
from ctxext.model.config import LlamaConfig
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
CASES = (
    BenchmarkCase("step", 96, 2, shape=TINY),
    BenchmarkCase("step", 96, 2, remat="full", shape=TINY),
    BenchmarkCase("prefill", 64, shape=TINY),
    BenchmarkCase("decode", 64, 2, new_tokens=8, shape=TINY),
    BenchmarkCase("attention", 96, 2, shape=TINY),
    BenchmarkCase("loss", 96, 2, shape=TINY),
    BenchmarkCase("product", 96, shape=TINY),
)

QUICK = ("prefill", "attention", "product")


def tier(case: BenchmarkCase) -> pytest.MarkDecorator | tuple:
    """The step without remat is computed by the test of the command, which compares it too."""
    if case.part in QUICK:
        return ()
    is_compared_elsewhere = case.part == "step" and case.remat == "none"
    return pytest.mark.slow if is_compared_elsewhere else pytest.mark.check


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=tier(case)) for case in CASES],
    ids=lambda case: case.name,
)
def test_both_backends_compute_the_same(case: BenchmarkCase, tmp_path: Path):
    """Compare losses and gradient norms of three steps, the next token and its nll, 8 tokens."""
    transformers_backend = pytest.importorskip("ctxext.bench.transformers_backend")
    weights = random_weights(case, tmp_path)
    ours = ctxext_backend.PARTS[case.part](case, weights)
    theirs = transformers_backend.PARTS[case.part](case, weights)
    for _ in range(3):
        seconds, value = ours()
        their_seconds, expected = theirs()
        np.testing.assert_allclose(value, expected, rtol=2e-4)
        assert seconds > 0
        assert their_seconds > 0


def test_a_comparison_in_processes(tmp_path: Path):
    """The figures are consistent and can be printed and plotted."""
    case = CASES[3]
    weights = random_weights(case, tmp_path)
    result = comparison.compare_backends(case, weights, ["ctxext"], rounds=3)
    backend = result["backends"]["ctxext"]
    seconds = backend["seconds"]
    assert seconds["low"] <= seconds["median"] <= seconds["high"]
    assert backend["peak_gib"] > 0.05
    np.testing.assert_allclose(backend["tokens_per_second"] * seconds["median"], 14)
    np.testing.assert_allclose(
        backend["roofline"],
        limits.decode_bytes(case) * 7 / seconds["median"] / result["read_bandwidth"],
    )
    text = tables.describe({"part": "decode", **result})
    assert text.startswith("decode, 2 x 64 + 8 new")
    assert "of the memory roofline" in text
    charts = tables.length_charts([result, {**result, "tokens": 28}])
    assert [chart.numbers.cells[1][1] for chart in charts] == ["28", "28"]


@pytest.mark.check
def test_the_command_with_transformers(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    cases = {
        "product": CASES[-1:],
        "step": CASES[:1],
        "memory": (CASES[1], dataclasses.replace(CASES[1], seq_len=192)),
    }
    monkeypatch.setattr(bench, "standard_cases", lambda platform: cases)
    out = tmp_path / "cost.svg"
    parts = ["--parts", "step", "memory"]
    assert main(["bench", *parts, "--against", "hf", "--json", "--plot", str(out)]) == 0
    product, *results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert product["part"] == "product"
    assert [result["part"] for result in results] == ["step", "memory", "memory"]
    for result in results:
        assert result["same"]
        for name, backend in result["backends"].items():
            rate = product["backends"][name]["operations_per_second"]
            reached = limits.operations(CASES[0]) / backend["seconds"]["median"]
            if result["part"] == "step":
                np.testing.assert_allclose(backend["product_share"], reached / rate)
        assert result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]
    assert out.exists()
    assert (tmp_path / "cost-memory.svg").exists()


def test_a_case_passes_to_another_process_unchanged():
    for case in (*CASES, *standard_cases("tpu")["step"]):
        assert BenchmarkCase.parse(case.json()) == case


def kernels(shape: LlamaConfig) -> list[jax.ShapeDtypeStruct]:
    """The shapes of every matrix of a model except the embedding."""
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(shape))
    return [leaf for path, leaf in leaves if path[-1].key == "kernel"]


def test_decoding_reads_the_weights_and_the_cache():
    """Every matrix but the embedding, and 64 + 4.5 cached tokens of 2 layers at the middle step."""
    weights = sum(kernel.size for kernel in kernels(TINY))
    cached = 2 * 2 * 2 * 16 * 2 * 68.5
    assert limits.decode_bytes(CASES[3]) == 4 * (weights + cached)


def test_operations_of_a_step_are_those_that_xla_counts():
    """A step has three times the matrix products of the forward pass.

    Attention is left out: XLA would also count its masked part, which the limit skips.
    """
    shape = dataclasses.replace(TINY, num_attention_heads=1, num_key_value_heads=1, head_dim=2)
    case = BenchmarkCase("step", 256, shape=shape)

    def products(matrices):
        """Every matrix once, on 256 tokens; stacks of layers count their layers."""
        return [jax.numpy.ones((256, matrix.shape[-2])) @ matrix for matrix in matrices]

    lowered: Lowered = jax.jit(products).lower(kernels(case.shape))
    cost = lowered.cost_analysis()
    assert cost is not None
    attention = 2 * 4 * 2 * 256 * 257 // 2
    forward = limits.model_flops(case) / 3
    np.testing.assert_allclose(forward - attention, cost["flops"], rtol=0.01)


def test_bandwidth_is_of_the_quickest_round(monkeypatch: pytest.MonkeyPatch):
    """By a fake clock, two workers read all of the memory in rounds of 4, 0.5 and 2 s."""
    bytes_read = []
    times = iter([0.0, 4.0, 10.0, 10.5, 20.0, 22.0])
    monkeypatch.setattr(limits.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(limits.np, "max", lambda part: bytes_read.append(part.nbytes))
    assert limits.read_bandwidth(2**20, 3) == 2**21
    assert sum(bytes_read) == 3 * 2**20
    assert len(bytes_read) == 6


def test_the_time_on_the_device_excludes_gaps_and_counts_overlaps_once():
    """Two kernels that overlap by 1 us and one apart; other events and devices do not count."""
    trace_text = """
        planes { name: "/device:GPU:1"
                 lines { name: "Stream #1" events { metadata_id: 1 duration_ps: 77000000 } } }
        planes { name: "/device:GPU:0"
                 lines { name: "Stream #14(Compute)" timestamp_ns: 500
                         events { metadata_id: 1 offset_ps: 0 duration_ps: 5000000 }
                         events { metadata_id: 1 offset_ps: 4000000 duration_ps: 5000000 } }
                 lines { name: "Stream #15(MemcpyD2H)" timestamp_ns: 20500
                         events { metadata_id: 1 offset_ps: 0 duration_ps: 2000000 } }
                 lines { name: "XLA Modules" events { metadata_id: 1 duration_ps: 99000000 } }
                 event_metadata { key: 1 value { id: 1 name: "gemm" } } }
        planes { name: "/host:CPU"
                 lines { name: "Stream #2" events { metadata_id: 1 duration_ps: 88000000 } } }"""
    serialized = jax.profiler.ProfileData.text_proto_to_serialized_xspace(trace_text)
    profile = jax.profiler.ProfileData.from_serialized_xspace(serialized)
    assert trace.busy_seconds(profile) == pytest.approx(11e-6)
    calls = []
    seconds = trace.device_seconds(lambda: calls.append(jax.numpy.ones(3).block_until_ready()))
    assert seconds is None
    assert calls
    seconds = {"median": 1.0, "low": 1.0, "high": 1.0}
    backend = {
        "seconds": seconds,
        "tokens_per_second": 9.0,
        "peak_gib": 1.0,
        "device_seconds": 0.91,
        "version": "jax",
    }
    result = {"part": "prefill", "case": "prefill", "cpu_isa": None}
    text = tables.describe({**result, "backends": {"ctxext": backend}})
    assert "the device busy for 0.91 s" in text


def test_only_bfloat16_on_a_known_device_has_an_mfu():
    case = standard_cases("gpu")["step"][0]
    share = limits.mfu(case, 1.0, "NVIDIA H100 80GB HBM3")
    assert share is not None
    assert share == pytest.approx(limits.model_flops(case) / 989e12, rel=0.01)
    assert limits.mfu(case, 1.0, "cpu") is None
    exact = dataclasses.replace(case, dtype="float32")
    assert limits.mfu(exact, 1.0, "NVIDIA H100 80GB HBM3") is None


def test_a_backend_that_fails_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="the backend 'ctxext' .* ended without a result"):
        comparison.compare_backends(CASES[0], tmp_path / "nothing", ["ctxext"], rounds=1)


def test_backends_on_different_devices_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    processes = {
        "ctxext": types.SimpleNamespace(version="jax 1", device="NVIDIA H200"),
        "transformers": types.SimpleNamespace(version="torch 2", device="cpu"),
    }

    def backend_process(name: str, *_: object):
        return contextlib.nullcontext(processes[name])

    monkeypatch.setattr(comparison, "backend_process", backend_process)
    message = "different devices: jax 1 on NVIDIA H200; torch 2 on cpu; install a torch"
    with pytest.raises(ValueError, match=message):
        comparison.compare_backends(CASES[0], tmp_path, list(processes), rounds=1)


def test_unknown_benchmarks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(ValueError, match="no benchmark 'speed'; known: eval, io, product, step"):
        bench.measure("tiny-llama", ["speed"])
    with pytest.raises(ValueError, match="no benchmark against 'vllm'; known: hf"):
        bench.measure("tiny-llama", ["step"], against="vllm")
    assert main(["bench", "--plot", str(tmp_path / "a.svg")]) == 2
    assert "add memory to --parts" in capsys.readouterr().err
    with pytest.raises(ValueError, match="with --cpu-isa give --parts of product, step"):
        bench.measure("tiny-llama", ["eval"], cpu_isa="avx2")
    with pytest.raises(ValueError, match="--cpu-isa is for CPUs; this is a tpu"):
        bench.measure("tiny-llama", ["step"], cpu_isa="avx2", platform="tpu")


@pytest.fixture
def counted_backends(monkeypatch: pytest.MonkeyPatch):
    """Backends whose n-th case takes n seconds, and is interrupted if n is 3."""
    cases = {"product": CASES[-1:], "attention": CASES[4:5], "loss": CASES[5:6]}
    monkeypatch.setattr(bench, "standard_cases", lambda platform: cases)
    monkeypatch.setattr(bench, "_platform", lambda: "cpu")
    asked = []

    class Backend(comparison.BackendProcess):
        def __init__(self, name: str):
            self.name, self.version, self.device = name, "jax 1", "cpu"
            self.rounds = []

        def round(self):
            if len(asked) == 3:
                raise KeyboardInterrupt
            return {"seconds": float(len(asked)), "value": [1.0], "peak": 2**30}

    def backend_process(name: str, case: BenchmarkCase, weights: Path, cpu_isa: str | None):
        asked.append((case.part, cpu_isa))
        return contextlib.nullcontext(Backend(name))

    monkeypatch.setattr(comparison, "backend_process", backend_process)
    return asked


def test_each_result_is_printed_when_it_is_there(counted_backends, capsys):
    """Also at Ctrl-C: the product and the attention are there, the loss is not."""
    command = ["bench", "--parts", "attention", "loss", "--cpu-isa", "avx2"]
    assert main([*command, "--json"]) == 130
    assert counted_backends == [("product", "avx2"), ("attention", "avx2"), ("loss", "avx2")]
    out, errors = capsys.readouterr()
    product, attention = map(json.loads, out.splitlines())
    assert (product["part"], product["cpu_isa"]) == ("product", "avx2")
    rate = product["backends"]["ctxext"]["operations_per_second"]
    assert rate == 2 * 96**3
    # 4 heads of 16, rows of 96 tokens: two products forward, five backward, of the visible pairs.
    pairs = 2 * 4 * 96 * 97 // 2
    share = 7 * 2 * 16 * pairs / 2 / rate
    assert attention["backends"]["ctxext"]["product_share"] == pytest.approx(share)
    assert "measuring 3/3 loss, 2 x 96, vocabulary 1,024" in errors
    assert "interrupted: 2 results are printed" in errors
    text = tables.describe(attention)
    assert text.startswith("attention, 2 x 96, with instructions up to AVX2\n")
    assert f"{share:.0%} of the rate of products" in text


def test_narrower_instructions_are_asked_of_both_libraries():
    """Flags that the user has set are kept; without a request nothing changes."""
    inherited = {"XLA_FLAGS": "--xla_dump_to=d", "HOME": "/h"}
    assert environment(None, inherited) == inherited
    assert environment(None, {"HOME": "/h"}) == {"HOME": "/h"}
    narrow = environment("avx2", inherited)
    assert narrow["XLA_FLAGS"].split()[:2] == ["--xla_dump_to=d", "--xla_cpu_max_isa=AVX2"]
    assert narrow["ATEN_CPU_CAPABILITY"] == "avx2"
    assert narrow["HOME"] == "/h"


@pytest.mark.check
def test_torch_follows_the_narrower_instructions():
    pytest.importorskip("torch")
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    command = python_command("-c", code)
    process = subprocess.run(
        command, env=environment("avx2"), stdout=subprocess.PIPE, text=True, check=True
    )
    assert process.stdout.strip() == "AVX2"
