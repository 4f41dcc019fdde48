"""The monitor equals sums by hand and the reference implementation, and changes no training."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctxext.attention.largest_logit as largest
from ctxext.attention import Causal
from ctxext.attention.largest_logit import largest_logit
from ctxext.data import Stdlib, make_batch
from ctxext.experiment import load_experiment
from ctxext.files import read_jsonl
from ctxext.methods.linear import Linear
from ctxext.methods.self_extend import SelfExtend
from ctxext.model.config import SHAPES
from ctxext.model.trainable import Full, LoRA
from ctxext.parallel.mesh import Mesh
from ctxext.plan.accelerators import of_kind
from ctxext.plan.flops import seconds_at_peak
from ctxext.positions import Contiguous
from ctxext.rundir import RunDir
from ctxext.tracking import JsonlSink
from ctxext.training.loop import train
from ctxext.training.monitor import (
    NEVER,
    Monitor,
    band_sums,
    bands,
    first_short_loss,
    tokens_seen,
)
from support.reference_llama import ReferenceLlama
from support.tiny_train import CONFIG, ByteTokenizer, tiny_base, tiny_experiment, write_texts

RECIPE = Path(__file__).parents[2] / "experiments" / "llama2_7b_yarn_8k.py"
SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 3, 3, 3, 0], [5] * 10])


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("data") / "texts")


def start(experiment, path, base=None):
    run = RunDir(path).open(experiment)
    params = train(
        experiment, run, base or tiny_base(), sinks=[JsonlSink(run.metrics_file)], progress=False
    )
    rows = read_jsonl(run.metrics_file)
    return params, [r for r in rows if "loss" in r], [r for r in rows if "short_loss" in r]


def bits(tree) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def test_the_first_loss_is_read_next_to_evaluations_at_the_same_step(tmp_path):
    """As a run resumes that has both, in either order."""
    measured, asked = {"step": 0, "short_loss": 1.5}, {"step": 0, "eval/passkey@64": 0.5}
    later = {"step": 20, "short_loss": 2.5}
    cases = [([asked, measured, later], 1.5), ([measured, asked], 1.5), ([asked, later], None)]
    for number, (rows, expected) in enumerate(cases):
        sink = JsonlSink(tmp_path / f"{number}.jsonl")
        for row in rows:
            sink.log(row)
        assert first_short_loss(tmp_path / f"{number}.jsonl") == expected
    assert first_short_loss(tmp_path / "none.jsonl") is None


def test_bands_are_doublings_that_end_at_the_length():
    assert bands(131072) == [0, 2048, 4096, 8192, 16384, 32768, 65536, 131072]
    assert bands(64) == [0, 1, 2, 4, 8, 16, 32, 64]
    assert bands(3) == [0, 1, 2, 3]
    assert bands(1) == [0, 1]


def test_tokens_seen_are_those_of_the_same_document():
    assert tokens_seen(SEGMENTS).tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3, 0], list(range(10))]


def test_band_sums_are_exact():
    rng = np.random.default_rng(0)
    losses, weights = rng.gamma(2, 2, (2, 3, 50)).astype(np.float32)
    context = rng.integers(0, 40, (3, 50))
    edges = [0, 3, 4, 11, 40]
    nll, weight = band_sums(losses, weights, context, edges)
    for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        inside = [
            (float(a), float(w))
            for a, w, n in zip(losses.flat, weights.flat, context.flat, strict=True)
            if low <= n < high
        ]
        assert nll[i] == pytest.approx(math.fsum(a * w for a, w in inside), rel=1e-14)
        assert weight[i] == pytest.approx(math.fsum(w for _, w in inside), rel=1e-14)
    nll, _ = band_sums(losses[:, :1], weights[:, :1], context[:, :1] * 0, edges)
    assert nll[1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("attention", [Causal(), SelfExtend(2, 3)], ids=["causal", "self-extend"])
@pytest.mark.parametrize("held", [2**24, 300], ids=["at once", "in chunks"])
def test_the_largest_logit_is_that_of_brute_force(attention, held, monkeypatch):
    monkeypatch.setattr(largest, "MAX_SCORES", held)
    masks = [piece.mask for piece in attention.pieces(1024)]
    rng = np.random.default_rng(1)
    queries = [rng.normal(size=(2, 10, 4, 8)).astype(np.float32) for _ in masks]
    keys = [rng.normal(size=(2, 10, 2, 8)).astype(np.float32) for _ in masks]
    index = np.broadcast_to(np.arange(10), (2, 10))
    query_index = np.where(SEGMENTS == 0, -1, index)
    actual = largest_logit(
        [jnp.asarray(q) for q in queries],
        [jnp.asarray(k) for k in keys],
        masks,
        query_index=jnp.asarray(query_index),
        key_index=jnp.asarray(index),
        query_segments=jnp.asarray(SEGMENTS),
        key_segments=jnp.asarray(SEGMENTS),
    )
    scores = []
    for q, k, mask in zip(queries, keys, masks, strict=True):
        for b, n, t in np.ndindex(2, 4, 10):
            for s in range(t + 1):
                if SEGMENTS[b, s] == SEGMENTS[b, t] != 0 and mask.visible(t, s):
                    product = q[b, t, n].astype(np.float64) @ k[b, s, n // 2]
                    scores.append(float(product) / 8**0.5)
    assert float(actual) == pytest.approx(max(scores), rel=1e-6)


def test_the_monitor_changes_no_training_and_equals_the_reference(texts, tmp_path):
    unmonitored = tiny_experiment(texts, monitor_every=0)
    monitored = tiny_experiment(texts, monitor_every=4)
    unmonitored_params, unmonitored_steps, no_rows = start(unmonitored, tmp_path / "plain")
    params, steps, monitor_rows = start(monitored, tmp_path / "monitored")
    assert bits(params) == bits(unmonitored_params)
    assert not no_rows
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in steps] == [row[name] for row in unmonitored_steps]
    assert [row["step"] for row in monitor_rows] == [0, 4, 6]
    assert monitor_rows[0]["short_drift"] == 0
    for row in monitor_rows[1:]:
        assert row["short_drift"] == row["short_loss"] - monitor_rows[0]["short_loss"]

    rows = monitored.data.open(ByteTokenizer())
    long = make_batch(rows, Contiguous(), seed=0, step=NEVER, batch_size=4, seq_len=64)
    heldout = Stdlib("heldout").open(ByteTokenizer())
    short = make_batch(heldout, Contiguous(), seed=0, step=0, batch_size=4, seq_len=32)
    rope = Linear(2.0).rope(CONFIG.rope_base(), 64)
    peaks = [-np.inf] * 2
    sums = {}
    for batch in (long, short):
        for tokens, targets, weights, _, segments in zip(*batch, strict=True):
            for segment in np.unique(segments[segments > 0]):
                inside = segments == segment
                reference = ReferenceLlama(CONFIG, params)
                logits = reference.feed(tokens[inside], rope)
                lse = np.log(np.exp(logits).sum(-1))
                nll = lse - logits[np.arange(inside.sum()), targets[inside]]
                if batch is long:
                    peaks = np.maximum(peaks, reference.peaks)
                for context, (loss, weight) in enumerate(zip(nll, weights[inside], strict=True)):
                    # The bands of the long batch are 0, 1, 2-3, 4-7, ...
                    band = "short" if batch is short else context.bit_length()
                    total = sums.setdefault(band, np.zeros(2))
                    total += np.array([loss * weight, weight])
    means = {band: nll / weight for band, (nll, weight) in sums.items()}
    last = monitor_rows[-1]
    by_position = [value for name, value in last.items() if name.startswith("loss_by_position/")]
    np.testing.assert_allclose(by_position, [means[i] for i in range(7)], rtol=2e-5)
    assert "loss_by_position/32-63" in last
    assert last["short_loss"] == pytest.approx(means["short"], rel=2e-5)
    by_layer = [last["attention_logit/layer_00"], last["attention_logit/layer_01"]]
    np.testing.assert_allclose(by_layer, peaks, rtol=2e-5)
    assert last["attention_logit_max"] == max(by_layer)


@pytest.mark.check
def test_the_alarm_is_printed_and_the_reference_survives_a_resume(texts, tmp_path, capsys):
    wild = tiny_experiment(texts, steps=4, monitor_every=2, drift_alarm=0.5, log_every=5)
    wild = dataclasses.replace(wild, optim=dataclasses.replace(wild.optim, learning_rate=0.5))
    _, _, monitor_rows = start(wild, tmp_path / "run")
    num_alarms = sum("alarm" in row for row in monitor_rows)
    assert num_alarms > 0
    assert capsys.readouterr().err.count("alarm: step ") == num_alarms
    for row in monitor_rows:
        assert ("alarm" in row) == (row["short_drift"] > 0.5)
    longer = dataclasses.replace(wild, train=dataclasses.replace(wild.train, steps=6))
    _, _, more = start(longer, tmp_path / "run")
    assert [row["step"] for row in more] == [0, 2, 4, 6]
    assert more[-1]["short_drift"] == more[-1]["short_loss"] - monitor_rows[0]["short_loss"]


@pytest.mark.check
def test_a_run_made_long_enough_later_has_no_step_0(texts, tmp_path):
    start(tiny_experiment(texts, steps=3, monitor_every=4), tmp_path / "run")
    _, _, monitor_rows = start(tiny_experiment(texts, steps=4, monitor_every=4), tmp_path / "run")
    assert [(row["step"], "short_drift" in row) for row in monitor_rows] == [(4, False)]


@pytest.mark.check
def test_many_devices_measure_the_same(texts):
    def monitor_row(mesh: Mesh) -> dict:
        experiment = dataclasses.replace(
            tiny_experiment(texts), trainable=LoRA(rank=2, dropout=0.1), mesh=mesh
        )
        params = experiment.trainable.init(tiny_base().params, 0)
        rows = experiment.data.open(ByteTokenizer())
        return Monitor(experiment, tiny_base(), rows, None).row(0, params, {})

    alone = monitor_row(Mesh())
    for mesh in (Mesh(fsdp=2, seq=2), Mesh(data=2, tensor=2)):
        assert monitor_row(mesh) == pytest.approx(alone, rel=1e-5)


def test_values_that_are_not_finite_are_named_and_left_out(texts):
    experiment = tiny_experiment(texts)
    params = tiny_base().params
    embedding = params["embed_tokens"]["embedding"].at[ord("e") + 3].set(jnp.nan)
    monitor = Monitor(experiment, tiny_base(), experiment.data.open(ByteTokenizer()), 5.0)
    row = monitor.row(3, {**params, "embed_tokens": {"embedding": embedding}}, {})
    assert row["step"] == 3
    assert "short_loss" not in row
    assert "short_drift" not in row
    assert row["alarm"].startswith("step 3: not finite")
    assert "short_loss" in row["alarm"]
    assert all(math.isfinite(value) for name, value in row.items() if name != "alarm")


def test_seconds_at_peak_of_7b_by_the_formula_of_palm():
    """PaLM, appendix B: 6 N + 12 L H Q T FLOPs per token, half of the latter with a causal mask."""
    experiment = load_experiment(RECIPE)
    batch = experiment.train.batch_size * experiment.train.accumulate
    experiment = dataclasses.replace(experiment, trainable=Full(), mesh=Mesh(fsdp=8))
    experiment = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, dtype="bfloat16")
    )
    # No embedding, no norms.
    multiplies = 6_738_415_616 - 32000 * 4096 - 65 * 4096
    work = batch * 8192 * (6 * multiplies + 12 * 32 * 32 * 128 * 8193 / 2)
    seconds = seconds_at_peak(experiment, SHAPES["llama2-7b"], "NVIDIA H100 80GB HBM3", 8)
    assert seconds == pytest.approx(work / (8 * 989e12), rel=1e-9)
    assert seconds_at_peak(experiment, SHAPES["llama2-7b"], "cpu", 8) is None
    precise = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, dtype="float32")
    )
    assert seconds_at_peak(precise, SHAPES["llama2-7b"], "TPU v5p", 8) is None
    # jax may count a chip of v4, or each of its two cores, as a device.
    assert seconds_at_peak(experiment, SHAPES["llama2-7b"], "TPU v4", 8) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H200", "h200-141"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", None),
        ("cpu", None),
    ],
)
def test_accelerators_by_jax_device_kind(kind, name):
    accelerator = of_kind(kind)
    assert (accelerator and accelerator.name) == name
