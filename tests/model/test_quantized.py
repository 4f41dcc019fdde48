"""Quantized frozen kernels: their numbers, the layers that dequantize them, and runs on them."""

import dataclasses
import json
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext import evaluate, loading, pipeline
from ctxext.attention import Causal
from ctxext.evals import evaluated_model
from ctxext.experiment import Experiment
from ctxext.export import export, export_adapter, merge_note, run_card
from ctxext.files import read_jsonl
from ctxext.interop import peft_base
from ctxext.methods import Linear
from ctxext.model.config import LlamaConfig
from ctxext.model.loss import batch_loss
from ctxext.model.parts import Parts
from ctxext.model.quantized import (
    QUANTIZED,
    Quantize,
    hold,
    is_quantized,
    tree_leaves,
)
from ctxext.model.quantized.nf4 import DYNAMIC_VALUES, NF4, NF4_VALUES, NF4Double
from ctxext.model.segments import layers_apart
from ctxext.model.trainable import ATTENTION, LINEARS, LoRA, join, split
from ctxext.parallel.mesh import ONE_DEVICE, Mesh, shardings
from ctxext.pipeline import train_only
from ctxext.plan.job import Job, count
from ctxext.prove import describe, prove
from ctxext.report.analysis.runs import RunData
from ctxext.report.pages.provenance import facts
from ctxext.rope import Unscaled
from ctxext.rundir import RunDir
from ctxext.tracking import JsonlSink
from ctxext.training.checkpoint import find_step, load_params
from ctxext.training.loop import train
from ctxext.training.state import split_params, state_shapes
from support import tiny
from support.hf_files import write_hf
from support.llamas import TINY, random_params, tokenizer
from support.quantized_by_definition import with_plain_values
from support.tiny_train import tiny_experiment, write_texts

CASES = json.loads((Path(__file__).parents[1] / "golden" / "quant.json").read_text())["cases"]
GOLDEN = {case["id"]: case for case in CASES}
NAMES = list(QUANTIZED)
CONFIG = tiny.config(intermediate_size=128)
"""Its sizes are whole blocks."""


def golden_matrix() -> np.ndarray:
    """The input of the golden blocks as our kernel, [in, out]."""
    params = GOLDEN["nf4-01"]["params"]
    state = params["input_seed"]
    values = []
    for _ in range(int(np.prod(params["shape"]))):
        state = (1664525 * state + 1013904223) % 2**32
        values.append((state >> 8) / 2**24 - 0.5)
    weight = np.float32(values) * np.float32(params["gain"])
    return np.ascontiguousarray(weight.reshape(params["shape"]).T)


def test_nf4_is_bitsandbytes_to_the_bit():
    np.testing.assert_array_equal(np.float32(GOLDEN["codebook-nf4"]["code"]), NF4_VALUES)
    np.testing.assert_array_equal(np.float32(GOLDEN["dynamic-map-8bit"]["code"]), DYNAMIC_VALUES)
    kernel = golden_matrix()
    plain, double = NF4.quantize(kernel), NF4Double.quantize(kernel)
    expected, expected_double = GOLDEN["nf4-01"], GOLDEN["nf4-01-double"]
    assert plain.codes.T.ravel().tolist() == expected["packed_bytes"]
    assert double.codes.T.ravel().tolist() == expected["packed_bytes"]
    np.testing.assert_array_equal(plain.scales.T.ravel(), np.float32(expected["absmax"]))
    assert double.scales.T.ravel().tolist() == expected_double["absmax_uint8"]
    np.testing.assert_array_equal(
        double.scales_of_scales, np.float32(expected_double["nested_absmax"])
    )
    assert double.mean_scale == np.float32(expected_double["offset"])
    for quantized, case in ((plain, expected), (double, expected_double)):
        values = np.asarray(jax.tree.map(jnp.asarray, quantized).dequantize()).T.ravel()
        np.testing.assert_array_equal(values, np.float32(case["dequantised"]))


def test_nf4_ties_go_to_the_lower_code_and_a_block_of_zeros_stays_zero():
    middles = (NF4_VALUES[:-1] + NF4_VALUES[1:]) / 2
    block = np.zeros((64, 2), np.float32)
    block[:16, 0] = [1, *middles]
    codes = NF4.quantize(block).codes
    unpacked = np.stack([codes >> 4, codes & 15], axis=1).reshape(64, 2)
    assert unpacked[:17, 0].tolist() == GOLDEN["nf4-midpoints"]["codes"]
    assert codes[:, 1].tolist() == 32 * GOLDEN["nf4-zero-block"]["packed_bytes"]
    for form in (NF4, NF4Double):
        quantized = jax.tree.map(jnp.asarray, form.quantize(np.zeros((64, 2), np.float32)))
        assert not np.asarray(quantized.dequantize()).any()


def test_int8_is_the_nearest_multiple_of_a_127th_of_the_largest():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(40, 5)).astype(np.float32) * np.float32(10) ** np.arange(-2, 3)
    kernel = np.concatenate([kernel, np.zeros((40, 1))], axis=1, dtype=np.float32)
    kernel[7, 4] = -1e-35  # far below the channel's scale
    quantized = QUANTIZED["int8"].quantize(kernel)
    for channel in range(5):
        exact = [Fraction(float(w)) for w in kernel[:, channel]]
        largest = max(map(abs, exact))
        expected = [round(w * 127 / largest) for w in exact]
        assert quantized.codes[:, channel].tolist() == expected
    assert not quantized.codes[:, 5].any()
    values = np.asarray(jax.tree.map(jnp.asarray, quantized).dequantize())
    exact_values = quantized.codes * np.float64(np.abs(kernel).max(axis=0)) / 127
    np.testing.assert_allclose(values, exact_values, rtol=2e-7)


@pytest.mark.check
def test_every_form_is_that_of_bitsandbytes_on_random_matrices():
    """Runs where bitsandbytes is installed (0.50.2 was read)."""
    functional = pytest.importorskip("bitsandbytes.functional")
    import torch

    rng = np.random.default_rng(0)
    num_blocks = 0
    num_apart = 0
    for trial in range(24):
        shape = (64 * int(rng.integers(1, 12)), int(rng.integers(1, 40)))
        kernel = (rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 3)).astype(np.float32)
        if trial % 3 == 1:
            kernel[:64] = 0
        if trial % 3 == 2:
            kernel = np.round(kernel, 2)
        weight = torch.tensor(np.ascontiguousarray(kernel.T))
        for form in (NF4, NF4Double):
            double = form is NF4Double
            codes, state = functional.quantize_4bit(
                weight, quant_type="nf4", compress_statistics=double
            )
            ours = form.quantize(kernel)
            np.testing.assert_array_equal(ours.codes.T.ravel(), codes.numpy().ravel())
            values = functional.dequantize_4bit(codes, state).numpy().reshape(-1, 64)
            dequantized = np.asarray(jax.tree.map(jnp.asarray, ours).dequantize())
            blocks = dequantized.T.reshape(-1, 64)
            if not double:
                np.testing.assert_array_equal(ours.scales.T.ravel(), state.absmax.numpy())
                np.testing.assert_array_equal(blocks, values)
            elif kernel.any():  # equal scales less their mean are zero, whatever their codes are
                # bitsandbytes' CPU code takes the neighbour of the nearest value in close calls,
                # and the mean of the scales is a sum in another order.
                apart = np.int32(ours.scales.T.ravel()) - state.absmax.numpy()
                assert np.abs(apart).max() <= 1
                num_blocks += apart.size
                num_apart += np.count_nonzero(apart)
                same = apart == 0
                largest = np.abs(values).max()
                np.testing.assert_allclose(blocks[same], values[same], atol=3e-7 * largest)
        if (np.abs(kernel).max(axis=0) > 0).all():
            codes, stats, _ = functional.int8_vectorwise_quant(weight)
            ours = QUANTIZED["int8"].quantize(kernel)
            np.testing.assert_array_equal(ours.scales[0], stats.numpy())
            # torch rounds 127 / scale twice, which decides ties: rounded numbers have many.
            apart = np.int32(ours.codes.T) - codes.numpy()
            assert np.abs(apart).max() <= 1
            assert np.count_nonzero(apart) <= 0.03 * apart.size
            values = functional.int8_vectorwise_dequant(codes, stats).numpy()
            dequantized = np.asarray(jax.tree.map(jnp.asarray, ours).dequantize()).T
            np.testing.assert_array_equal(dequantized[apart == 0], values[apart == 0])
    assert num_apart < 0.01 * num_blocks


def test_what_is_quantized_and_how_it_is_counted():
    for name in NAMES:
        trained, frozen = LoRA(rank=2, quantize=name).shapes(CONFIG)
        float_trained, float_frozen = LoRA(rank=2).shapes(CONFIG)
        assert trained == float_trained
        assert count(frozen) == count(float_frozen)
        assert frozen["embed_tokens"] == float_frozen["embed_tokens"]
        assert frozen["lm_head"] == float_frozen["lm_head"]
        stack = frozen["segments"]["0"]
        for block, linears in (("self_attn", LINEARS[:4]), ("mlp", LINEARS[4:])):
            for linear in linears:
                kernel = stack[block][linear]["kernel"]
                assert isinstance(kernel, QUANTIZED[name])
                assert kernel.shape == float_frozen["segments"]["0"][block][linear]["kernel"].shape
                num_bytes = sum(
                    np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(kernel)
                )
                bits = 8 * num_bytes / np.prod(kernel.shape)
                assert kernel.bits <= bits < kernel.bits + 0.6
        assert stack["input_layernorm"] == float_frozen["segments"]["0"]["input_layernorm"]


def test_sizes_that_are_no_whole_blocks_are_refused_by_name():
    for name in ("nf4", "nf4-double"):
        message = rf"trainable.quantize {name}: .* 64 inputs, and down_proj of .* 96; choose int8"
        with pytest.raises(ValueError, match=message):
            LoRA(quantize=name).shapes(tiny.CONFIG)
    LoRA(quantize="int8").shapes(tiny.CONFIG)
    with pytest.raises(ValueError, match=r"trainable.quantize 'fp4' is not known; choose one of"):
        LoRA(quantize="fp4")  # pyright: ignore


LENGTH = 32
POSITIONS = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (4, LENGTH))
BATCH = {
    "tokens": tiny.tokens(4, LENGTH),
    "targets": tiny.tokens(4, LENGTH, 1),
    "positions": POSITIONS,
    "segment_ids": np.ones_like(POSITIONS),
    "weights": np.ones((4, LENGTH), np.float32),
}


def loss_and_gradients(
    trained: dict,
    frozen: dict,
    lora: LoRA,
    mesh: Mesh,
    remat: str,
    config: LlamaConfig = CONFIG,
):
    rotation = Unscaled().rope(config.rope_base(), LENGTH).rotation()

    @jax.jit
    @jax.value_and_grad
    def loss(trained: dict, frozen: dict, batch: dict) -> jax.Array:
        return batch_loss(
            lora.materialize(join(trained, frozen), {}),
            batch,
            rotation,
            config=config,
            attention=Causal(),
            kernel="dense",
            remat=remat,
            dtype="float32",
            mesh=mesh,
        )[0]

    trees = [jax.device_put(tree, shardings(mesh.shard(tree))) for tree in (trained, frozen)]
    return loss(*trees, {name: jnp.asarray(values) for name, values in BATCH.items()})


MORE_TRAINED: dict[str, Any] = {
    "rslora": True,
    "modules_to_save": ("norm", "embed_tokens", "lm_head"),
}


@pytest.mark.parametrize(
    ("name", "remat", "options"),
    [
        ("nf4-double", "full", MORE_TRAINED),
        pytest.param("int8", "full", MORE_TRAINED, marks=pytest.mark.slow),
        pytest.param("nf4", "none", {}, marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("int8", "none", {}),
                ("nf4", "full", MORE_TRAINED),
                ("nf4-double", "none", {}),
            )
        ),
    ],
)
def test_on_eight_devices_it_trains_as_the_dense_model_of_its_values(
    name: Quantize, remat: str, options: dict[str, Any]
):
    """Losses and gradients against autodiff on one device, with the values as float kernels."""
    lora = LoRA(rank=3, alpha=5.0, targets=("q_proj", "down_proj"), quantize=name, **options)
    trained, frozen = split(lora.init(tiny.params(CONFIG), 1), lora.pattern(CONFIG))
    rng = np.random.default_rng(1)
    trained = jax.tree.map(lambda x: jnp.float32(x + 0.2 * rng.normal(size=x.shape)), trained)
    mesh = Mesh(fsdp=4, tensor=2)
    held = hold(frozen, mesh.shard(lora.held_shapes(frozen)))
    codes = held["segments"]["0"]["mlp"]["down_proj"]["kernel"].codes
    assert codes.addressable_shards[0].data.size * 8 == codes.size
    loss, gradients = loss_and_gradients(trained, held, lora, mesh, remat)
    dense = with_plain_values(frozen, name)
    expected = loss_and_gradients(trained, dense, lora, ONE_DEVICE, remat)
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-5)

    def close(actual: jax.Array, wanted: jax.Array) -> None:
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(actual, wanted, atol=5e-5 * scale)

    jax.tree.map(close, gradients, expected[1])
    assert all(bool(jnp.abs(leaf).max() > 0) for leaf in jax.tree.leaves(gradients))


FALCON = dataclasses.replace(
    CONFIG,
    hidden_act="gelu",
    attention_bias=True,
    mlp_bias=True,
    parts=Parts(norm="layer", norm_bias=True, gated=False, parallel=True, shared_norm=True),
)
MPT = dataclasses.replace(
    CONFIG,
    hidden_act="gelu",
    parts=Parts(norm="layer", gated=False, clip_qkv=1.5, alibi_exponent=8.0),
)
MIXED = dataclasses.replace(
    CONFIG,
    parts=Parts(
        qk_norm=True, sliding_window=9, windowed=(False, True), rotary=(True, False), qkv_bias=True
    ),
)


@pytest.mark.check
@pytest.mark.parametrize(
    ("config", "name", "remat"),
    [(FALCON, "int8", "none"), (MPT, "nf4", "full"), (MIXED, "nf4", "offload")],
    ids=["falcon", "mpt", "mixed"],
)
def test_other_decoders_train_as_the_dense_model_of_their_values(
    config: LlamaConfig, name: Quantize, remat: str
):
    lora = LoRA(rank=3, alpha=5.0, targets=("q_proj", "up_proj", "down_proj"), quantize=name)
    trained, frozen = split(lora.init(tiny.params(config), 1), lora.pattern(config))
    rng = np.random.default_rng(1)
    trained = jax.tree.map(lambda x: jnp.float32(0.2 * rng.normal(size=x.shape)), trained)
    held = hold(frozen, ONE_DEVICE.shard(lora.held_shapes(frozen)))
    assert sum(map(is_quantized, tree_leaves(held))) == (7 if config.parts.gated else 6)
    dense = with_plain_values(frozen, name)
    loss, gradients = loss_and_gradients(trained, held, lora, ONE_DEVICE, remat, config)
    expected = loss_and_gradients(trained, dense, lora, ONE_DEVICE, "none", config)
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-5)

    def close(actual: jax.Array, wanted: jax.Array) -> None:
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(actual, wanted, atol=5e-5 * scale)

    jax.tree.map(close, gradients, expected[1])


STEPS = 3


class StopAt:
    """A sink that stops the run when a step is logged."""

    def __init__(self, step: int, stop: threading.Event) -> None:
        self.step = step
        self.stop = stop

    def log(self, row: dict) -> None:
        if row["step"] == self.step:
            self.stop.set()

    def rows(self, rows: list[dict]) -> None: ...
    def finish(self, failed: bool = False) -> None: ...


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A directory with a `base`, a `run` with adapters on it in nf4, and the run's `adapter`.

    `stopped` is the same run, stopped after the first step and resumed.
    """
    folder = tmp_path_factory.mktemp("quantized")
    config = dataclasses.replace(TINY, intermediate_size=128)
    write_hf(
        folder / "base",
        config,
        random_params(config),
        Linear(2.0),
        tokenizer(),
        dtype="bfloat16",
    )
    experiment = dataclasses.replace(
        tiny_experiment(write_texts(folder / "texts"), steps=STEPS, dtype="bfloat16"),
        init=str(folder / "base"),
        model=None,
        rope=None,
        trainable=LoRA(rank=4, alpha=6.0, dropout=0.1, modules_to_save=("norm",), quantize="nf4"),
    )
    train_only(experiment, folder / "run", track=())
    stop = threading.Event()
    stopped = RunDir(folder / "stopped").open(experiment)
    base = loading.load_base(experiment, for_training=True)
    sinks = [JsonlSink(stopped.metrics_file), StopAt(1, stop)]
    train(experiment, stopped, base, sinks=sinks, stop=stop, progress=False)
    assert 1 <= find_step(stopped.checkpoints) < STEPS
    # Its base is read and quantized again, and the checksum compared.
    train_only(experiment, folder / "stopped", track=())
    export_adapter(folder / "run", folder / "adapter")
    return folder


def saved_experiment(run: Path) -> Experiment:
    return loading.read_saved(RunDir(run).config_file, Experiment)


def test_a_stopped_run_resumes_to_the_last_bit(trained):
    whole, resumed = RunDir(trained / "run"), RunDir(trained / "stopped")
    params, step = load_params(whole.checkpoints)
    resumed_params, resumed_step = load_params(resumed.checkpoints)
    assert step == resumed_step == STEPS
    jax.tree.map(np.testing.assert_array_equal, params, resumed_params)
    measured = [
        [(row["step"], row["loss"], row["grad_norm"]) for row in read_jsonl(run.metrics_file)]
        for run in (whole, resumed)
    ]
    assert len(measured[0]) == STEPS
    assert measured[0] == measured[1]
    assert whole.base_checksum() == resumed.base_checksum()


def with_adapters(params: dict, adapters: dict, scale: float) -> dict:
    """The float tree with the products of adapters added, in float64."""

    def add(path: tuple, kernel: jax.Array) -> jax.Array:
        leaves = adapters["segments"]
        for entry in path[1:-1]:
            leaves = leaves.get(entry.key, {})
        if path[-1].key != "kernel" or "lora_a" not in leaves:
            return kernel
        product = np.matmul(np.float64(leaves["lora_a"]), np.float64(leaves["lora_b"]))
        assert np.abs(product).max() > 0
        return jnp.float32(kernel + scale * product)

    return jax.tree_util.tree_map_with_path(add, params)


def test_a_run_is_asked_with_its_base_in_few_bits(trained, tmp_path):
    """Its logits are those of the values that the codes stand for, with adapters, as floats."""
    run = RunDir(trained / "run")
    experiment = saved_experiment(run.path)
    float_base = loading.load(trained / "base")
    before_training = loading.load_base(experiment)
    asked = evaluate.NamedModel.load(run.path).lm
    whole = float_base.params["segments"]["0"]["mlp"]["down_proj"]["kernel"]
    expected_codes = np.stack([NF4.quantize(np.asarray(layer)).codes for layer in whole])
    for lm in (before_training, asked):
        assert sum(map(is_quantized, tree_leaves(lm.params))) == len(LINEARS)
        kernel = lm.params["segments"]["0"]["mlp"]["down_proj"]["kernel"]
        np.testing.assert_array_equal(kernel.codes, expected_codes)
        # Taken apart, all layers would be dequantized before the loop over tokens.
        assert layers_apart(lm.params) is lm.params

    stored, _ = load_params(run.checkpoints)
    assert jax.tree.structure(stored) == jax.tree.structure(
        experiment.trainable.shapes(float_base.config)[0]
    )
    expected = with_plain_values(float_base.params, "nf4")
    expected = with_adapters(expected, stored, 1.5)
    for block in ("input_layernorm", "post_attention_layernorm"):
        expected["segments"]["0"][block] = stored["segments"]["0"][block]
    expected["norm"] = stored["norm"]
    merged = asked.merged()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged.params, expected)
    dense = dataclasses.replace(asked, params=expected)
    tokens = np.random.default_rng(0).integers(3, 200, (2, 40))
    logits = np.asarray(dense.logits(tokens))
    np.testing.assert_allclose(asked.logits(tokens), logits, atol=1e-5 * np.abs(logits).max())
    new = asked.generate(tokens[:, :36], max_new_tokens=4)
    written = dense.logits(np.concatenate([tokens[:, :36], new], axis=1))
    np.testing.assert_array_equal(new, np.asarray(written)[:, 35:39].argmax(-1))


def test_it_runs_and_is_held_as_in_training(trained):
    """The same bits from the same arrays, in as many bytes as `plan` counts."""
    experiment = saved_experiment(trained / "run")
    lora = experiment.trainable
    base = loading.load_base(experiment, for_training=True)
    asked = loading.load(trained / "run", dtype="bfloat16")
    shapes = state_shapes(experiment, base.config)
    _, frozen = split_params(experiment, base, shapes)
    params, _ = load_params(RunDir(trained / "run").checkpoints)
    in_training = dataclasses.replace(asked, params=lora.materialize(join(params, frozen), {}))
    tokens = np.arange(80).reshape(2, 40)
    np.testing.assert_array_equal(asked.logits(tokens), in_training.logits(tokens))
    job = Job.of(experiment, base.config, 1)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(asked.params))
    scales = 4 * len(ATTENTION) * base.config.num_hidden_layers
    assert num_bytes == job.bytes(job.trees.trained) + job.bytes(job.trees.frozen) + scales


def test_a_run_prints_and_records_the_form_of_its_base(trained, capsys):
    experiment = saved_experiment(trained / "run")
    pipeline._describe_base(experiment, loading.load_base(experiment, for_training=True))
    kernels = 2 * (4 * 64 * 64 - 2 * 64 * 32 + 3 * 64 * 128)  # two layers, half as many K/V heads
    held = kernels * 9 // 16
    printed = (
        f"base: the kernels of its layers are held in nf4, {held / 1e9:.3g} GB instead of "
        f"{2 * kernels / 1e9:.3g} in bfloat16, in training and in evaluations\n"
    )
    assert printed in capsys.readouterr().err
    run = RunDir(trained / "run")
    provenance = json.loads(run.provenance_file.read_text())
    assert provenance["quantized"] == {"bytes": held, "bytes_in_bfloat16": 2 * kernels}
    data = RunData(run.path, "run", [], config=run.settings(), provenance=provenance)
    shown = f"nf4: the kernels of its layers take {held:,} bytes ({2 * kernels:,} in bfloat16)"
    assert dict(facts(data))["held in"] == shown
    model = evaluated_model(loading.load(trained / "base"))
    assert run_card(run, model)["weights"].startswith("the base, trained in nf4, dequantized")


def test_an_adapter_names_the_quantization_of_its_base(trained, caplog):
    recorded = peft_base.recorded_base(trained / "adapter")
    assert recorded is not None
    assert recorded["quantize"] == "nf4"
    loading.load(trained / "base", adapter=trained / "adapter")
    assert "was trained on" in caplog.text
    assert "in nf4 and is merged into it as it is stored" in caplog.text


@pytest.mark.check
def test_a_merged_export_is_the_dequantized_base_with_adapters(trained, tmp_path, monkeypatch):
    """So is the proof; that of the adapter compares weights on the dequantized base."""
    monkeypatch.setitem(sys.modules, "torch", None)
    export(loading.load(trained / "run"), tmp_path / "merged", dtype="bfloat16")
    assert merge_note(RunDir(trained / "run")).startswith("the base, trained in nf4, dequantized")
    proof = prove(tmp_path / "merged", against=trained / "run")
    assert proof["equal"]
    assert not prove(tmp_path / "merged", against=trained / "base")["equal"]
    proof = prove(trained / "adapter", against=trained / "run")
    assert proof["equal"], describe(proof)
    assert "trained on that base in nf4: weights are compared on the dequantized" in describe(proof)
