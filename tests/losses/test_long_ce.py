"""LongCE against the authors' numbers, and against its definition, one window after another."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Causal
from ctxext.cli.overrides import override
from ctxext.data import Batch
from ctxext.experiment import load_experiment
from ctxext.files import read_jsonl
from ctxext.losses import BATCH, CrossEntropy, Lengths, LongCE
from ctxext.losses.long_ce import SHORT, token_weights
from ctxext.methods.ntk import DynamicNTK
from ctxext.methods.pose import PoSE
from ctxext.model.loss import Forward
from ctxext.model.setup import ModelSetup
from ctxext.model.trainable import Full, LoRA, Trainable
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.requirements import check_context
from ctxext.rope import Rotation, rotation_at
from ctxext.rundir import RunDir
from ctxext.serialization import from_json, to_json
from ctxext.tracking import JsonlSink
from ctxext.training.loop import train
from support import tiny
from support.tiny_train import tiny_base, tiny_experiment, write_texts

CASES = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())["cases"]
GOLDEN = {case["id"]: case for case in CASES if case["method"] == "longce"}
LONG_CE = LongCE(short_context=8, stride=6, clip=1.5)


def of_params(params: dict) -> LongCE:
    return LongCE(params["trunc_len"], params["internal"], params["threshold"])


@pytest.mark.parametrize("case", GOLDEN.values(), ids=lambda case: case["id"])
def test_weights_and_loss_are_the_authors(case):
    full = np.array(case["ce_full"], np.float32)
    short = np.zeros_like(full)
    has_window = np.zeros(full.shape, bool)
    K = case["params"]["trunc_len"]
    for window in case["windows"]:
        first = window["start"] + K - 1  # the loss of token i has index i - 1
        scored = slice(first, first + len(window["ce_scored"]))
        short[scored] = window["ce_scored"]
        has_window[scored] = True
    clip = case["params"]["threshold"]
    of_losses = (jnp.asarray(x)[None] for x in (full, short, has_window))
    weights = np.asarray(token_weights(*of_losses, clip=clip))[0]
    np.testing.assert_allclose(weights, case["weight"], rtol=2e-6)
    assert float((weights * full).mean()) == pytest.approx(case["loss"], rel=2e-6)


class RecordedLosses:
    """A model whose losses are those of a golden case; its tokens are their own indices."""

    def __init__(self, case: dict) -> None:
        self.setup = ModelSetup(tiny.CONFIG, Causal(), "blocked", "float32", ONE_DEVICE)
        self.full = jnp.float32(case["ce_full"])
        scored = [loss for window in case["windows"] for loss in window["ce_scored"]]
        before = case["params"]["trunc_len"]
        self.short = jnp.float32([np.nan] * before + scored + [np.nan] * 100)
        self.lengths: list[int] = []

    def without_gradient(self) -> "RecordedLosses":
        return self

    def hidden(self, batch, **_) -> jax.Array:
        self.lengths.append(batch["tokens"].shape[1])
        return batch["tokens"]

    def token_losses(self, hidden, targets) -> jax.Array:
        is_window = targets.shape[1] != len(self.full)
        return self.short[targets] if is_window else self.full[targets - 1]

    def weighted_loss(self, hidden, targets, weights) -> jax.Array:
        self.weights = weights
        return (weights * self.full[None]).sum()


@pytest.mark.parametrize("name", ["longce-01", "longce-05"])
def test_windows_are_the_authors(name):
    """Every loss is scored by the window that scores it there, after as many tokens.

    The first window, whose context is the whole one, is not computed: its weights are 1.
    """
    case = GOLDEN[name]
    loss = of_params(case["params"])
    T = len(case["ce_full"])
    model = RecordedLosses(case)
    index = jnp.broadcast_to(jnp.arange(T), (2, T))
    # In the second row only answers are trained: other tokens count nowhere.
    is_answer = np.arange(T) % 5 < 2
    trained = np.stack([np.ones(T), is_answer]).astype(np.float32)
    batch = {
        "tokens": index,
        "targets": index + 1,
        "weights": jnp.asarray(trained),
        "positions": index,
        "segment_ids": jnp.ones((2, T), jnp.int32),
    }
    total, sums = loss(model, batch, {SHORT: None})  # pyright: ignore
    expected = np.array(case["weight"], np.float32)
    first = loss.short_context - 1
    expected[first : first + loss.stride] = 1
    np.testing.assert_allclose(model.weights, expected[None] * trained, rtol=2e-6)
    full = np.array(case["ce_full"], np.float32)
    both = expected.sum() + expected[is_answer].sum()
    assert float(total) == pytest.approx(
        float((expected[None] * trained * full[None]).sum()), rel=2e-6
    )
    assert float(sums["weight"]) == T + is_answer.sum()
    assert float(sums["token_weight"]) == pytest.approx(float(both), rel=2e-6)
    assert float(sums["cross_entropy"]) == pytest.approx(
        full.sum() + full[is_answer].sum(), rel=2e-6
    )
    (passes,) = loss.forward_passes(Lengths(T, T, T)).items()
    lengths = [window["length"] for window in case["windows"]]
    assert passes == (max(lengths), len(lengths) - 1)


FIRST = np.zeros((2, 31), int)
"""The first token of the document of each token."""
FIRST[0, 11:] = 11
FIRST[1, 29:] = 29


def packed_batch() -> dict[str, jax.Array]:
    """Two rows of 31 tokens: one of two documents, one of a document and padding; they skip."""
    tokens = tiny.tokens(2, 32, seed=3)
    segments = np.ones((2, 31), np.int32)
    segments[0, 11:] = 2
    segments[1, 29:] = 0
    weights = (segments != 0).astype(np.float32)
    weights[0, 10] = 0
    positions = PoSE(96, 3).sample(np.random.default_rng(5), (2, 31))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], weights, positions, segments)
    return {name: jnp.asarray(x) for name, x in batch._asdict().items()}


def rotations(batch: dict) -> dict[str, Rotation]:
    """Frequencies that follow the length: other ones in short contexts."""

    def rotation(seq_len: int):
        return rotation_at(DynamicNTK(2.0), tiny.CONFIG.rope_base(), seq_len)

    positions = np.asarray(batch["positions"])
    return {BATCH: rotation(96), **LONG_CE.rotations(positions, rotation)}  # pyright: ignore


def forward(params, rotation, remat: str = "none", mesh: Mesh = ONE_DEVICE) -> Forward:
    setup = ModelSetup(tiny.CONFIG, Causal(), "blocked", "float32", mesh)
    return Forward(params, rotation, setup, remat)


def reference_weights(params, batch: dict) -> np.ndarray:
    """The weights by definition, one window of the text after another."""

    @jax.jit
    def losses(rows: dict, rotation) -> jax.Array:
        model = forward(params, rotation)
        return model.token_losses(model.hidden(rows), rows["targets"])

    frequencies = rotations(batch)
    full = np.asarray(losses(batch, frequencies[BATCH]))
    weights = np.ones((2, 31))
    K, stride = LONG_CE.short_context, LONG_CE.stride
    for start in range(stride, 32 - K, stride):
        # The last of its K + I tokens is only a target.
        window = {name: x[:, start : start + K + stride - 1] for name, x in batch.items()}
        window["positions"] = window["positions"] - window["positions"][:, :1]
        scored = np.asarray(losses(window, frequencies[SHORT]))[:, K - 1 :]
        places = slice(start + K - 1, start + K - 1 + stride)
        ratio = np.minimum(np.exp(scored - full[:, places]), LONG_CE.clip)
        weights[:, places] = np.where(FIRST[:, places] < start, ratio, 1)
    return weights * np.asarray(batch["weights"])


def test_loss_and_gradient_are_those_of_fixed_weights():
    """Against autodiff of sum w nll, with packed documents, padding and skipped positions."""
    batch = packed_batch()
    params = tiny.params()
    weights = reference_weights(params, batch)
    shortened = np.abs(weights - np.asarray(batch["weights"])) > 1e-4
    assert not shortened[0, :19].any(), "its second document begins after the window at token 6"
    assert shortened[0].sum() > 5
    assert shortened[1].sum() > 8
    assert weights.max() == LONG_CE.clip

    def fixed(params) -> jax.Array:
        model = forward(params, rotations(batch)[BATCH])
        logits = model.hidden(batch) @ model._model.output_kernel()
        nll = jax.nn.logsumexp(logits, -1)
        nll -= jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
        return (jnp.float32(weights) * nll).sum()

    def ours(params) -> tuple[jax.Array, dict]:
        frequencies = rotations(batch)
        return LONG_CE(forward(params, frequencies[BATCH]), batch, frequencies)

    (value, sums), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    expected, expected_gradient = jax.jit(jax.value_and_grad(fixed))(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert float(sums["token_weight"]) == pytest.approx(weights.sum(), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(b).max()),
        gradient,
        expected_gradient,
    )


def run_losses(where: Path, texts: Path, **changes) -> list[float]:
    """The losses of three steps of eight rows."""
    experiment = tiny_experiment(texts, steps=3, batch_size=8)
    settings = dataclasses.replace(experiment.train, **changes.pop("train", {}))
    loss = LongCE(short_context=20, stride=10)
    experiment = dataclasses.replace(experiment, loss=loss, train=settings, **changes)
    run = RunDir(where).open(experiment)
    train(experiment, run, tiny_base(), sinks=[JsonlSink(run.metrics_file)], progress=False)
    rows = read_jsonl(run.metrics_file)
    assert all(0 < row["token_weight"] < 5 for row in rows)
    assert all(row["cross_entropy"] > 1 for row in rows)
    return [row["loss"] for row in rows]


ADAPTERS = LoRA(rank=4, dropout=0.1)


@pytest.fixture(scope="module")
def losses_alone(tmp_path_factory) -> Callable[[Trainable], list[float]]:
    """The losses on one device, of whole batches, by what is trained."""

    @functools.cache
    def of(trainable: Trainable) -> list[float]:
        folder = tmp_path_factory.mktemp("alone")
        return run_losses(folder / "run", write_texts(folder / "texts"), trainable=trainable)

    return of


@pytest.mark.parametrize(
    ("trainable", "changes"),
    [
        pytest.param(trainable, changes, marks=mark)
        for trainable, changes, mark in (
            (Full(), {"mesh": Mesh(data=2, fsdp=2)}, pytest.mark.slow),
            (Full(), {"mesh": Mesh(fsdp=2, seq=2, tensor=2)}, pytest.mark.check),
            (Full(), {"mesh": Mesh(seq=4)}, pytest.mark.slow),
            (Full(), {"train": {"accumulate": 4, "batch_size": 2}}, pytest.mark.check),
            (Full(), {"train": {"remat": "full"}}, pytest.mark.slow),
            (Full(), {"train": {"remat": "offload"}}, pytest.mark.check),
            (ADAPTERS, {"mesh": Mesh(fsdp=2, seq=2)}, pytest.mark.slow),
        )
    ],
    ids=str,
)
def test_a_mesh_accumulation_and_recomputing_change_nothing(
    trainable, changes, losses_alone, tmp_path
):
    texts = write_texts(tmp_path / "texts")
    actual = run_losses(tmp_path / "run", texts, trainable=trainable, **changes)
    np.testing.assert_allclose(actual, losses_alone(trainable), rtol=2e-5)


def test_it_is_an_option_of_experiments_and_refuses_rows_that_are_too_short():
    experiment = tiny_experiment(Path("texts"))
    chosen = override(
        experiment, ["--short-context", "16", "--loss.stride", "8"], methods=["long-ce"]
    )
    assert chosen.loss == LongCE(16, 8)
    assert override(chosen, ["--loss.clip", "2"]).loss == LongCE(16, 8, 2.0)
    assert override(chosen, [], methods=["cross-entropy"]).loss == CrossEntropy()
    assert from_json(to_json(chosen)) == chosen
    check_context(chosen)
    short = dataclasses.replace(chosen, loss=LongCE(60, 5))
    message = "rows of 64 tokens .* 60 to 64: lower loss.short_context .* train.seq_len"
    with pytest.raises(ValueError, match=message):
        check_context(short)
    for field in ("short_context", "stride", "clip"):
        with pytest.raises(ValueError, match=f"loss.{field} must be"):
            LongCE(**{field: 0})


OWN_LOSS = """
import dataclasses
from ctxext.data import Files
from ctxext.experiment import Experiment, Train
from ctxext.losses import Loss
from ctxext.optim import Optim


@dataclasses.dataclass(frozen=True)
class LastTokens(Loss):
    count: int

    def __call__(self, forward, batch, rotations):
        weights = batch["weights"].at[:, : -self.count].set(0)
        nll = forward.weighted_loss(forward.hidden(batch), batch["targets"], weights)
        return nll, {"weight": weights.sum()}


experiment = Experiment(
    "own", Files("x"), Optim(1e-3), Train(1, 24, 1), init="tiny-llama", loss=LastTokens(4)
)
"""


def test_an_experiment_file_may_define_a_loss(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN_LOSS)
    experiment = load_experiment(file)
    assert to_json(from_json(to_json(experiment), trust=True)) == to_json(experiment)
    by_name = override(tiny_experiment(Path("x")), ["--count", "3"], methods=[f"{file}:LastTokens"])
    loss = override(experiment, ["--loss.count", "3"]).loss
    assert to_json(by_name.loss) == to_json(loss)
    case = GOLDEN["longce-01"]
    T = len(case["ce_full"])
    index = jnp.arange(T)[None]
    batch = {"tokens": index, "targets": index + 1, "weights": jnp.ones((1, T))}
    total, sums = loss(RecordedLosses(case), batch, {})  # pyright: ignore
    assert float(total) == pytest.approx(sum(case["ce_full"][-3:]), rel=1e-6)
    assert float(sums["weight"]) == 3
