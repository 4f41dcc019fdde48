"""`ctxext plan`: memory against the compilers, operations against the traced program, refusals."""

import dataclasses
import json
import math
import re
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ctxext.attention import Attention, Causal
from ctxext.cli.main import main
from ctxext.data import Batch
from ctxext.experiment import Experiment, load_experiment
from ctxext.losses import CrossEntropy, LongCE, Loss, step_rotations
from ctxext.methods import LMInfinite, SelfExtend
from ctxext.model.config import SHAPES, LlamaConfig
from ctxext.model.loss import Forward
from ctxext.model.parts import Parts
from ctxext.model.remat import REMAT
from ctxext.model.setup import ModelSetup
from ctxext.model.trainable import LINEARS, Full, LastLayers, LoRA, Trainable, join
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.plan import compile_request
from ctxext.plan.accelerators import ACCELERATORS, GIB, PREALLOCATED, of_kind, topology
from ctxext.plan.compile_request import _reason
from ctxext.plan.compile_worker import device_and_host_bytes, needs_and_has
from ctxext.plan.flops import step_flops, visible_pairs
from ctxext.plan.gpu_target import CHIPS
from ctxext.plan.job import Job, axes, count
from ctxext.plan.memory import cache_bytes, memory
from ctxext.plan.plan import Plan
from ctxext.plan.search import MARGIN, meshes, search
from ctxext.rope import RopeBase, Unscaled
from support import tiny
from support.tiny_train import tiny_experiment

RECIPE = Path(__file__).parents[2] / "experiments" / "llama2_7b_yarn_8k.py"
FULL = Full()
QLORA = LoRA(16, targets=LINEARS, quantize="nf4")
PARAMETERS = {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192}


def step(
    model: str, seq_len: int, mesh: Mesh, trainable: Trainable = FULL, **train
) -> tuple[Experiment, Job]:
    """The recipe's step on another model, length and mesh, with one row per device."""
    experiment = load_experiment(RECIPE)
    devices = math.prod(mesh.sizes.values())
    settings = {"seq_len": seq_len, "batch_size": mesh.data * mesh.fsdp, "accumulate": 1, **train}
    experiment = dataclasses.replace(
        experiment,
        mesh=mesh,
        model=SHAPES[f"llama2-{model}"],
        trainable=trainable,
        train=dataclasses.replace(experiment.train, **settings),
    )
    return experiment, Job.of(experiment, SHAPES[f"llama2-{model}"], devices)


# GiB per device by the compiler at default effort (libtpu 0.0.42.1, jax 0.10.2), as printed by
# `ctxext plan EXPERIMENT --topology TOPOLOGY --compile --precise`; experiments/LOG.md has the
# topologies.
@pytest.mark.parametrize(
    ("model", "seq_len", "mesh", "train", "peak"),
    [
        ("7b", 8192, Mesh(fsdp=16), {}, 9.62),
        ("7b", 32768, Mesh(fsdp=16), {}, 17.83),
        ("7b", 32768, Mesh(fsdp=4, seq=4), {}, 9.68),
        ("7b", 131072, Mesh(fsdp=8, seq=8), {}, 8.23),
        ("70b", 32768, Mesh(fsdp=16, seq=4), {}, 29.80),
        ("13b", 32768, Mesh(fsdp=16), {}, 29.39),
        ("7b", 8192, Mesh(), {"trainable": LoRA(rank=8)}, 15.74),
        ("7b", 8192, Mesh(), {"trainable": QLORA}, 7.81),
    ],
)
def test_memory_is_within_a_tenth_of_the_compiler(model, seq_len, mesh, train, peak):
    _, job = step(model, seq_len, mesh, **train)
    assert memory(job, "tpu").peak / GIB == pytest.approx(peak, rel=0.1)


# The same by the GPU compiler for H100 (jax-cuda12-plugin 0.10.2), as printed by
# `ctxext plan EXPERIMENT --topology h100:N --compile`.
ON_GPU = [
    ("7b", 8192, Mesh(fsdp=8), {}, 17.21),
    ("7b", 8192, Mesh(fsdp=8), {"remat": "none"}, 60.95),
    ("7b", 8192, Mesh(fsdp=8), {"remat": "attention"}, 18.90),
    ("7b", 8192, Mesh(fsdp=4, tensor=2), {}, 16.71),
    ("7b", 65536, Mesh(fsdp=2, seq=2, tensor=2), {}, 24.44),
    ("7b", 131072, Mesh(seq=8), {}, 19.97),
    ("7b", 8192, Mesh(seq=8), {"trainable": LoRA()}, 2.96),
    ("70b", 8192, Mesh(seq=8), {"trainable": LoRA()}, 24.95),
    ("70b", 32768, Mesh(fsdp=16, seq=4), {}, 32.61),
    ("70b", 8192, Mesh(fsdp=32), {"accumulate": 2}, 56.98),
    ("13b", 8192, Mesh(), {"trainable": LoRA(), "accumulate": 64}, 29.53),
    ("7b", 8192, Mesh(), {"trainable": QLORA}, 7.83),
    ("7b", 32768, Mesh(), {"trainable": QLORA}, 16.67),
    ("7b", 2048, Mesh(), {"trainable": QLORA, "remat": "none"}, 18.74),
    ("7b", 8192, Mesh(fsdp=8), {"trainable": QLORA}, 4.31),
    ("7b", 8192, Mesh(), {"trainable": dataclasses.replace(QLORA, quantize="int8")}, 10.53),
]

NEEDS_GPU_COMPILER = pytest.mark.skipif(
    not compile_request.is_compiler_installed("gpu"), reason="needs the extra [plan-gpu]"
)


@pytest.mark.parametrize(("model", "seq_len", "mesh", "train", "peak"), ON_GPU)
def test_memory_on_gpus_is_within_a_twentieth_of_the_compiler(model, seq_len, mesh, train, peak):
    _, job = step(model, seq_len, mesh, **train)
    assert memory(job, "gpu").peak / GIB == pytest.approx(peak, rel=0.05)


# Bytes in GiB on the device, at most, and on the host: for v5e, whose memory the step exceeds, as
# the compiler says when it refuses it.
OFFLOADED = [
    ("7b", 65536, Mesh(), {"trainable": LoRA()}, "h100:1", 21.34, 16.0),
    ("7b", 131072, Mesh(), {"trainable": LoRA()}, "h100:1", 28.79, 32.0),
    ("7b", 65536, Mesh(fsdp=2, seq=4), {}, "h100:8", 16.52, 4.0),
    ("7b", 131072, Mesh(seq=8), {}, "h100:8", 16.16, 4.0),
    ("70b", 32768, Mesh(fsdp=16, seq=4), {}, "h100:64", 22.53, 10.0),
    ("7b", 65536, Mesh(), {"trainable": LoRA()}, "v5e:1x1", 23.90, 16.0),
]


@pytest.mark.parametrize(("model", "seq_len", "mesh", "train", "on", "peak", "host"), OFFLOADED)
def test_what_waits_on_the_host_is_not_on_the_device(model, seq_len, mesh, train, on, peak, host):
    _, job = step(model, seq_len, mesh, remat="offload", **train)
    planned = memory(job, topology(on)[0].platform)
    assert planned.peak / GIB == pytest.approx(peak, rel=0.1)
    assert planned.host / GIB == host
    _, on_device = step(model, seq_len, mesh, remat="full", **train)
    saved = memory(on_device, topology(on)[0].platform).peak - planned.peak
    assert saved == planned.host - 2 * planned.host / job.config.num_hidden_layers


def test_copying_to_the_host_takes_what_the_link_allows():
    experiment, job = step("7b", 65536, Mesh(fsdp=2, seq=4), remat="offload", accumulate=2)
    plan = Plan.of(experiment, job.config, Unscaled(), on="h100:8")
    # The inputs of 32 layers in bfloat16, there and back, twice, at 64 GB/s.
    of_a_microbatch = 32 * (65536 // 4) * 4096 * 2
    assert plan.transfer_seconds == pytest.approx(2 * 2 * of_a_microbatch / 64e9)
    assert "memory of the host for each device, GiB: 4.00 by arithmetic" in plan.text()
    assert json.loads(plan.json())["host_bytes"] == of_a_microbatch
    without, _ = step("7b", 65536, Mesh(fsdp=2, seq=4))
    plan = Plan.of(without, job.config, Unscaled(), on="h100:8")
    assert plan.transfer_seconds is None
    assert "host" not in plan.text()


def test_memory_of_the_host_does_not_count_as_the_device_s():
    class Analysis:
        argument_size_in_bytes = 1265
        output_size_in_bytes = 9
        alias_size_in_bytes = 9
        temp_size_in_bytes = 869
        host_temp_size_in_bytes = 1600
        peak_memory_in_bytes = 2865

    assert device_and_host_bytes(Analysis) == (1265 + 869, 1600)
    Analysis.host_temp_size_in_bytes = 0
    assert device_and_host_bytes(Analysis) == (2865, 0)


def test_the_error_of_a_compiler_is_named():
    stderr = "Traceback\n  File x\njax.errors.JaxRuntimeError: INTERNAL: no tile\n  /where.py:1:2\n"
    process = subprocess.CompletedProcess([], 1, "", stderr)
    assert _reason(process) == "jax.errors.JaxRuntimeError: INTERNAL: no tile"


@pytest.mark.slow
@pytest.mark.parametrize(("model", "seq_len", "mesh", "train", "on", "peak", "host"), OFFLOADED)
def test_the_compilers_still_put_as_much_on_the_host(model, seq_len, mesh, train, on, peak, host):
    experiment, _ = step(model, seq_len, mesh, remat="offload", **train)
    if not compile_request.is_compiler_installed(topology(on)[0].platform):
        pytest.skip("needs the extra [plan] or [plan-gpu]")
    verdict = compile_request.compile_step(experiment, SHAPES[f"llama2-{model}"], Unscaled(), on)
    assert verdict.needs / GIB == pytest.approx(peak, rel=0.02)
    # A compiler that refuses a step does not say what would wait on the host.
    assert verdict.host / GIB == (host if verdict.fits else 0)


@pytest.mark.slow
@pytest.mark.skipif(
    not compile_request.is_compiler_installed("tpu"), reason="needs the extra [plan]"
)
def test_the_tpu_compiler_still_needs_as_much():
    experiment, _ = step("7b", 8192, Mesh(fsdp=16))
    verdict = compile_request.compile_step(
        experiment, SHAPES["llama2-7b"], Unscaled(), "v5e:4x4", precise=True
    )
    assert verdict.needs / GIB == pytest.approx(9.62, rel=0.02)
    assert verdict.fits


@pytest.mark.slow
@NEEDS_GPU_COMPILER
@pytest.mark.parametrize(("model", "seq_len", "mesh", "train", "peak"), ON_GPU)
def test_the_gpu_compiler_still_needs_as_much(model, seq_len, mesh, train, peak):
    experiment, job = step(model, seq_len, mesh, **train)
    verdict = compile_request.compile_step(
        experiment, SHAPES[f"llama2-{model}"], Unscaled(), f"h100:{job.devices}"
    )
    assert verdict.needs / GIB == pytest.approx(peak, rel=0.02)
    assert verdict.fits == (peak < 60)


@pytest.mark.slow
@NEEDS_GPU_COMPILER
@pytest.mark.parametrize("name", CHIPS)
def test_the_gpu_compiler_knows_every_chip(name):
    experiment, _ = step("7b", 8192, Mesh(fsdp=8))
    verdict = compile_request.compile_step(experiment, SHAPES["llama2-7b"], Unscaled(), f"{name}:8")
    assert verdict.needs / GIB == pytest.approx(17.2, rel=0.02)


def test_every_gpu_has_a_target():
    gpus = [x for x in ACCELERATORS.values() if x.platform == "gpu"]
    assert [x.name for x in gpus] == [*CHIPS]
    for gpu in gpus:
        chip = CHIPS[gpu.name]
        assert of_kind(chip.name) is gpu
        assert gpu.memory / PREALLOCATED == pytest.approx(chip.memory, rel=0.02)
        assert f'device_description_str: "{chip.name}"' in chip.target


@pytest.mark.parametrize("model", PARAMETERS)
def test_parameters_optimiser_and_gradients_are_exact(model):
    _, job = step(model, 4096, Mesh(fsdp=8))
    N = PARAMETERS[model]
    assert count(job.trees.trained) == N
    once = memory(job, "tpu")
    # Norms are not cut.
    norms = 4096 * 4
    for name, numbers in (("trained parameters", N), ("optimiser state", 2 * N)):
        assert 4 * numbers / 8 <= once.always[name] < 1.001 * 4 * numbers / 8 + norms
    assert once.backward["gradients"] == once.always["trained parameters"]
    twice = memory(dataclasses.replace(job, accumulate=2), "tpu")
    assert twice.backward["gradients"] == 2 * once.backward["gradients"]


def test_bytes_are_those_of_the_shards_on_the_mesh():
    mesh = Mesh(data=2, fsdp=2, tensor=2)
    _, job = step("7b", 4096, mesh)
    placed = jax.tree.leaves(mesh.shard(job.trees.optimizer))
    counted = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in placed)
    assert job.bytes(job.trees.optimizer) == counted


def test_the_planned_cache_has_the_size_that_generation_allocates():
    _, job = step("70b", 4096, Mesh(fsdp=2, tensor=4))
    config = SHAPES["llama2-70b"]
    keys = np.prod((config.num_hidden_layers, 2, 6000, config.num_key_value_heads, config.head_dim))
    keys_and_values_bfloat16 = 2 * keys * 2
    assert cache_bytes(job, 6000) == keys_and_values_bfloat16 // 8


@pytest.mark.parametrize("attention", [Causal(), LMInfinite(2, 24), SelfExtend(4, 16)], ids=str)
@pytest.mark.parametrize("T", [1, 63, 300, 1000])
def test_visible_pairs_are_counted_exactly(attention, T):
    index = np.arange(T)
    masks = [piece.mask.visible(index[:, None], index[None, :]) for piece in attention.pieces(1024)]
    assert visible_pairs(attention, T) == sum(int(np.sum(mask)) for mask in masks)


def is_program(value) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def products(jaxpr, times: int = 1) -> int:
    """2 x multiply-adds of all matrix products in a traced program, loops as often as they run.

    The weight of a norm only scales: its `dot_general`, which has no free dimension on the side of
    the weight, is not a matrix product.
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), (batch, _) = eqn.params["dimension_numbers"]
            if any(x.aval.ndim == len(contract) + len(batch) for x in eqn.invars):
                continue
            inner = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
            total += 2 * times * inner * math.prod(eqn.outvars[0].aval.shape)
        assert eqn.primitive.name != "while", "the number of its iterations is not known"
        repeats = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in jax.tree.leaves(eqn.params, is_leaf=is_program):
            if is_program(value):
                total += products(getattr(value, "jaxpr", value), times * repeats)
    return total


PLAIN = CrossEntropy()


def traced(
    config: LlamaConfig,
    *,
    remat: str,
    gradient: bool,
    trainable: Trainable = FULL,
    loss: Loss = PLAIN,
):
    """(job, its loss or gradient, the arguments) with the dense kernel, which does all pairs."""
    experiment = tiny_experiment(Path("texts"), seq_len=48, batch_size=2)
    settings = dataclasses.replace(experiment.train, remat=remat, kernel="dense")
    experiment = dataclasses.replace(experiment, train=settings, trainable=trainable, loss=loss)
    job = Job.of(experiment, config, 1)
    batch = {
        x: jax.ShapeDtypeStruct((2, 48), np.float32 if x == "weights" else np.int32)
        for x in Batch._fields
    }
    rotation = Unscaled().rope(RopeBase(config.head_dim, 1e4, 32), 48).rotation()

    setup = ModelSetup(config, Causal(), "dense", "float32", ONE_DEVICE)

    def of_batch(trained, frozen, batch):
        params = trainable.materialize(join(trained, frozen), batch)
        rotations = step_rotations(
            loss,
            np.arange(48)[None],
            lambda _: rotation,
            lengths=job.lengths,
            base_rotation_at=lambda _: rotation,
        )
        return loss(Forward(params, rotation, setup, remat), batch, rotations)

    function = jax.value_and_grad(of_batch, has_aux=True) if gradient else of_batch
    return job, function, (*trainable.shapes(config), batch)


@pytest.mark.parametrize(
    "trainable",
    [LoRA(rank=4), LoRA(rank=4, modules_to_save=("embed_tokens", "norm")), LastLayers(1)],
    ids=str,
)
@pytest.mark.parametrize("remat", REMAT)
def test_operations_of_subsets_are_within_a_hundredth(trainable, remat):
    for gradient in False, True:
        job, function, arguments = traced(
            tiny.config(), remat=remat, gradient=gradient, trainable=trainable
        )
        flops = step_flops(job, all_pairs=True)
        counted = products(jax.make_jaxpr(function)(*arguments).jaxpr)
        assert (flops.total if gradient else flops.forward) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize(
    "changes", [{}, {"num_hidden_layers": 3}, {"tie_word_embeddings": True}], ids=str
)
def test_operations_are_those_of_the_traced_program(changes, remat):
    config = tiny.config(**changes)
    for gradient in False, True:
        job, function, arguments = traced(config, remat=remat, gradient=gradient)
        flops = step_flops(job, all_pairs=True)
        counted = products(jax.make_jaxpr(function)(*arguments).jaxpr)
        assert counted == (flops.total if gradient else flops.forward)


def test_which_kernels_recompute_attention_under_remat():
    """The forward pass of attention, 4 N H per pair and layer, where its output has no name."""
    config = tiny.config()
    per_pair = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers

    def recomputed(kernel: str, attention: Attention) -> int:
        job, _, _ = traced(config, remat="attention", gradient=True)
        job = dataclasses.replace(job, kernel=kernel, attention=attention)
        pairs = job.batch_size * visible_pairs(attention, job.seq_len, None)
        named = step_flops(dataclasses.replace(job, kernel="blocked")).recomputed
        again, rest = divmod(step_flops(job).recomputed - named, per_pair * pairs)
        assert rest == 0
        return again

    extended = SelfExtend(2, 5)
    assert recomputed("splash", Causal()) == recomputed("splash", extended) == 0
    # One call of cuDNN keeps to itself what its gradient needs; several are merged, with a name.
    assert (recomputed("cudnn", Causal()), recomputed("cudnn", extended)) == (1, 0)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("trainable", [FULL, LoRA(rank=4)], ids=["full", "lora"])
def test_operations_of_a_loss_are_those_of_the_traced_program(trainable, remat):
    """The windows of LongCE have a forward pass and no other, whatever is trained."""
    loss = LongCE(short_context=20, stride=9)
    job, function, arguments = traced(
        tiny.config(), remat=remat, gradient=True, trainable=trainable, loss=loss
    )
    counted = products(jax.make_jaxpr(function)(*arguments).jaxpr)
    assert step_flops(job, all_pairs=True).total == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    "parts",
    [
        Parts(norm="layer", gated=False, parallel=True, shared_norm=True),
        Parts(qk_norm=True, sliding_window=9, windowed=(False, True)),
    ],
    ids=["parallel", "mixed"],
)
def test_operations_of_other_decoders_are_those_of_the_traced_program(parts):
    job, function, arguments = traced(tiny.config(parts=parts), remat="full", gradient=True)
    counted = products(jax.make_jaxpr(function)(*arguments).jaxpr)
    assert counted == step_flops(job, all_pairs=True).total


def test_a_window_counts_only_for_the_layers_that_have_it():
    config = tiny.config(parts=Parts(sliding_window=9, windowed=(False, True)))
    job, _, _ = traced(config, remat="none", gradient=True)
    of_layers = 48 * 49 // 2, sum(min(i + 1, 9) for i in range(48))
    per_pair = 4 * config.num_attention_heads * config.head_dim * 2
    flops = step_flops(job)
    assert flops.attention == 3 * per_pair * sum(of_layers)


@pytest.mark.parametrize("name", ["mistral-7b", "qwen3-8b", "falcon-40b", "mpt-30b"])
def test_real_shapes_of_other_families_are_planned(name):
    """Sixteen devices hold a sixteenth of the state, and the operations are those by hand."""
    config = SHAPES[name]
    experiment = load_experiment(RECIPE)
    settings = dataclasses.replace(experiment.train, seq_len=2048, batch_size=16, accumulate=1)
    experiment = dataclasses.replace(
        experiment, mesh=Mesh(fsdp=16), model=config, trainable=FULL, train=settings, rope=None
    )
    job = Job.of(experiment, config, 16)
    always = memory(job, "tpu").always
    parameters = config.num_parameters
    assert always["trained parameters"] == pytest.approx(4 * parameters / 16, rel=1e-3)
    assert always["optimiser state"] == pytest.approx(8 * parameters / 16, rel=1e-3)
    mesh = Mesh(fsdp=4, tensor=2)
    on_eight = Job.of(dataclasses.replace(experiment, mesh=mesh), config, 8)
    placed = jax.tree.leaves(mesh.shard(on_eight.trees.trained))
    counted = sum(4 * math.prod(x.sharding.shard_shape(x.shape)) for x in placed)
    assert on_eight.bytes(on_eight.trees.trained) == counted
    D, L = config.hidden_size, config.num_hidden_layers
    matrices = parameters if config.tie_word_embeddings else parameters - D * config.vocab_size
    pairs = 2048 * 2049 // 2
    attention = L * 12 * config.num_attention_heads * config.head_dim * pairs * 16
    expected = 6 * matrices * 16 * 2048 + attention
    assert step_flops(job).model == pytest.approx(expected, rel=1e-3)


def test_operations_agree_with_the_count_of_the_compiler():
    # One layer, because the compiler counts a loop once.
    config = tiny.config(num_hidden_layers=1, hidden_size=256, intermediate_size=768, head_dim=64)
    job, function, arguments = traced(config, remat="none", gradient=True)
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    counted = analysis["flops"] if analysis else 0
    # It counts elementwise operations too.
    assert step_flops(job, all_pairs=True).total == pytest.approx(counted, rel=0.05)


def test_a_step_of_7b_by_hand():
    _, job = step("7b", 8192, Mesh(fsdp=8))
    # Without the embedding, which is looked up, and without norms.
    matrices = PARAMETERS["7b"] - 32000 * 4096 - 65 * 4096
    # Three passes, scores and values, half of the pairs.
    attention = 32 * 6 * 2 * 4096 * (8192 + 1) / 2
    assert step_flops(job).model / (8 * 8192) == pytest.approx(6 * matrices + attention, rel=1e-9)


def test_the_arithmetic_takes_no_time():
    _, job = step("70b", 131072, Mesh(fsdp=8))
    start = time.process_time()
    memory(job, "tpu")
    step_flops(job)
    assert time.process_time() - start < 1


def test_search_finds_the_longest_context():
    experiment, _ = step("7b", 8192, Mesh(fsdp=16))
    device, devices = topology("v5e:4x4")
    candidates = search(experiment, SHAPES["llama2-7b"], device, devices)
    assert {c.experiment.train.remat for c in candidates} == set(REMAT)
    assert candidates[0].seq_len == max(c.seq_len for c in candidates) > 8192
    for candidate in candidates[:3]:
        job = Job.of(candidate.experiment, SHAPES["llama2-7b"], devices)
        assert memory(job, "tpu").peak <= (1 - MARGIN) * device.memory
        longer = dataclasses.replace(job, seq_len=job.seq_len + 1024)
        assert memory(longer, "tpu").peak > (1 - MARGIN) * device.memory


@pytest.mark.parametrize("own", [LoRA(64), QLORA, LastLayers(2), FULL])
def test_no_two_rows_of_a_search_look_alike(own):
    experiment, _ = step("7b", 8192, Mesh(fsdp=1), trainable=own)
    device, devices = topology("h100:1")
    found = search(experiment, SHAPES["llama2-7b"], device, devices)
    rows = [(c.experiment.mesh.text, c.experiment.train.remat, c.text) for c in found]
    assert len(rows) == len(set(rows))
    assert any(c.own for c in found)


def test_a_quantized_base_is_suggested_where_no_float_one_fits(capsys):
    """7B on a card of 24 GB, of which JAX takes 18 GiB."""
    options = ["--topology", "rtx4090:1", "--mesh.fsdp", "1", "--train.batch-size", "1"]
    options += ["--method", "lora", "--search"]
    fits = plan(capsys, *options)[1]
    assert "quantized" not in fits
    assert "nf4" not in fits
    output = plan(capsys, *options, "--train.seq-len", "32768")[1]
    assert (
        "a base in bfloat16 reaches 8,192 of the experiment's 32,768 tokens without the memory of "
        "the host, hence quantized bases (QLoRA)"
    ) in output
    for form in ("int8", "nf4", "nf4-double"):
        assert len(re.findall(rf"lora, {form} +[\d,]+\n", output)) == len(REMAT)
    (flags,) = re.findall(r"the longest: (.*)", output)
    assert flags.startswith("--trainable.quantize nf4-double ")
    found = [option for option in options if option != "--search"] + flags.split()
    assert "(arithmetic): fits" in plan(capsys, *found)[1]


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ([], "try --method lora --quantize int8 "),
        (["--method", "lora"], "try --trainable.quantize int8 "),
    ],
)
def test_advice_quantizes_no_more_than_it_must(method, advice, capsys):
    options = ["--topology", "rtx4090:1", "--mesh.fsdp", "1", "--train.batch-size", "1", *method]
    output = plan(capsys, *options, "--train.seq-len", "32768")[1]
    assert "it fits on a quantized base only (QLoRA)" in output
    assert advice in output
    assert "or, on a quantized base without the memory of the host: " in output
    output = plan(capsys, *options, "--train.seq-len", "8192")[1]
    assert "quantize" not in output


def test_meshes_use_all_devices_and_whole_heads():
    for mesh in meshes(SHAPES["llama2-70b"], 16):
        sizes = axes(mesh, 16)
        assert math.prod(sizes.values()) == 16
        assert 8 % sizes["tensor"] == 0
    assert Mesh(fsdp=2, tensor=8) in meshes(SHAPES["llama2-70b"], 16)


@pytest.mark.parametrize(
    ("text", "name", "devices"),
    [
        ("v5p:2x2x4", "v5p", 16),
        ("v4:2x2x1", "v4", 8),
        ("V6E:1x1", "v6e", 1),
        ("h100:8", "h100-80", 8),
        ("a100-40:4", "a100-40", 4),
        ("cpu:2", "cpu", 2),
    ],
)
def test_topologies(text, name, devices):
    accelerator, number = topology(text)
    assert (accelerator.name, number) == (name, devices)


@pytest.mark.parametrize(
    ("error", "needs", "has"),
    [
        (
            "RESOURCE_EXHAUSTED: ... Total hbm usage (28.15G) exceeds available HBM (15.75G)",
            28.15,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. "
            "Used 213.00G of 95.74G hbm.",
            213.0,
            95.74,
        ),
    ],
)
def test_the_bytes_in_a_refusal_of_the_compiler(error, needs, has):
    assert needs_and_has(error) == (needs * GIB, has * GIB)


def plan(capsys, *options: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["plan", str(RECIPE), *options])
    out, err = capsys.readouterr()
    return code, err if code else out


def test_the_command_shows_what_fits(capsys):
    code, out = plan(capsys)
    assert code == 0
    assert "6,738,415,616 parameters" in out
    assert all(f"{name} (arithmetic)" in out for name in ACCELERATORS)
    code, out = plan(capsys, "--topology", "v5e:2x4")
    assert "does not fit, needs 19." in out
    assert "15.75" in out
    data = json.loads(plan(capsys, "--topology", "v5p:2x2x2", "--json")[1])
    assert data["verdicts"][0]["fits"]
    assert data["parameters"] == PARAMETERS["7b"]
    assert sum(data["bytes_at_peak"].values()) == data["verdicts"][0]["needs"]


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param("v5p:2x2x4", marks=pytest.mark.check),
        pytest.param("h100:8", marks=pytest.mark.slow),
    ],
)
def test_the_winner_of_a_search_is_a_command_line(topology, capsys):
    output = plan(capsys, "--topology", topology, "--search", "--json")[1]
    candidates = json.loads(output)["candidates"]
    best_without_method = next(x for x in candidates if "--method" not in x["flags"])
    for winner in (candidates[0], best_without_method):
        flags = winner["flags"].split()
        data = json.loads(plan(capsys, "--topology", topology, *flags, "--json")[1])
        assert data["verdicts"][0]["fits"]
        assert data["verdicts"][0]["needs"] == winner["needs"]
    assert "--method lora" in candidates[0]["flags"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology", "v9:2x2"], "accelerator 'v9' is not one of v4, v5e"),
        (["--topology", "a100:8"], "accelerator 'a100' is not one of"),
        (["--topology", "v5p:2x2"], "write v5p with 3 numbers, such as v5p:2x2x2"),
        (
            ["--topology", "v5p:2x2x4"],
            "is for 8 devices, the topology has 16; --mesh.fsdp -1 takes them all",
        ),
        (["--topology", "v5p:2x2x4", "--mesh.fsdp", "16"], "train.batch_size 8 .* multiple of 16"),
        (["--mesh.fsdp", "-1"], "say which with --topology"),
        (["--search"], "need --topology"),
        (["--compile"], "need --topology"),
        (
            ["--topology", "cpu:8", "--compile"],
            "--compile asks the compilers of v4, v5e, .*, b200; not of cpu:8",
        ),
    ],
)
def test_impossible_plans_are_refused(options, message, capsys):
    code, err = plan(capsys, *options)
    assert code == 2
    assert re.search(message, err), err


@pytest.mark.parametrize(("topology", "extra"), [("v5e:2x4", "plan"), ("h100:8", "plan-gpu")])
def test_a_missing_compiler_is_named_with_its_extra(topology, extra, capsys, monkeypatch):
    monkeypatch.setattr(compile_request.importlib.util, "find_spec", lambda name: None)
    assert f"pip install 'ctxext[{extra}]'" in plan(capsys, "--topology", topology, "--compile")[1]
