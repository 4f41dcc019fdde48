"""Trained subsets: the split of the tree, the compiler's count of their memory, refusals."""

import dataclasses

import jax
import numpy as np
import pytest

from ctxext.attention import Causal
from ctxext.cli.overrides import override
from ctxext.data import Batch, Files
from ctxext.experiment import Experiment, Train
from ctxext.losses import BATCH
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import param_shapes
from ctxext.model.loss import batch_loss
from ctxext.model.trainable import Full, LastLayers, LoRA, join, split
from ctxext.optim import Optim
from ctxext.rope import Unscaled
from ctxext.rundir import RunDir
from ctxext.serialization import from_json, to_json
from ctxext.training.checksums import parameter_checksum
from ctxext.training.loop import train
from ctxext.training.state import state_shapes
from ctxext.training.step import compiled_step
from model.test_lora import training, two_steps
from support import tiny
from support.tiny_train import CONFIG, tiny_base, tiny_experiment, write_texts

MIDDLE = LlamaConfig(2048, 256, 512, 6, 4, 2, 64, 1e-5, 1e4, 256)
CHOICES = [Full(), LoRA(), LoRA(modules_to_save=("norm", "embed_tokens")), LastLayers(2)]


def names(tree) -> set[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves}


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("trainable", [*CHOICES, LastLayers(6)], ids=str)
def test_every_parameter_is_trained_or_frozen_as_declared(trainable):
    trained, frozen = trainable.shapes(MIDDLE)
    assert not names(trained) & names(frozen)
    D = 256
    F = 512
    KV = 128
    L = 6
    layer = 2 * D * D + 2 * D * KV + 3 * D * F + 2 * D
    adapters = 8 * L * (2 * (D + D) + 2 * (D + KV))
    expected = {
        Full(): L * layer + 2 * 2048 * D + D,
        LoRA(): adapters,
        LoRA(modules_to_save=("norm", "embed_tokens")): adapters + 2048 * D + (2 * L + 1) * D,
        LastLayers(2): 2 * layer + D + 2048 * D,
        LastLayers(6): 6 * layer + D + 2048 * D,
    }[trainable]
    assert count(trained) == expected
    added = adapters if isinstance(trainable, LoRA) else 0
    assert count(trained) + count(frozen) == MIDDLE.num_parameters + added


def compiled(trainable, dtype):
    settings = Train(2, 256, 2, dtype=dtype, remat="full")
    experiment = Experiment(
        "x", Files("x"), Optim(1e-3), settings, model=MIDDLE, trainable=trainable
    )
    params, opt_state, frozen = state_shapes(experiment, MIDDLE)
    shape = (1, 2, 256)
    batch = {
        f: jax.ShapeDtypeStruct(shape, np.float32 if f == "weights" else np.int32)
        for f in Batch._fields
    }
    rotations = {BATCH: Unscaled().rope(MIDDLE.rope_base(), 256).rotation()}
    step = (
        compiled_step(experiment, MIDDLE)
        .lower(params, opt_state, batch, rotations, frozen)
        .compile()
    )
    batch_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((batch, rotations)))
    return step.memory_analysis(), count(params), count(frozen), batch_bytes


@pytest.mark.check
def test_the_compiler_counts_the_subset_and_not_the_model():
    measured = {(trainable, "float32"): compiled(trainable, "float32") for trainable in CHOICES}
    full, total, *_ = measured[Full(), "float32"]
    measured[LoRA(), "bfloat16"] = compiled(LoRA(), "bfloat16")
    for (trainable, dtype), (memory, trained, frozen, batch_bytes) in measured.items():
        # Float32 parameters and two moments, frozen ones once, and the step counts of AdamW and of
        # the schedule.
        exact = 12 * trained + {"float32": 4, "bfloat16": 2}[dtype] * frozen + batch_bytes
        assert exact <= memory.argument_size_in_bytes <= exact + 64, trainable
        # The outputs also have a pointer each.
        assert 12 * trained <= memory.output_size_in_bytes <= 12 * trained + 1024
        # A CPU multiplies bfloat16 by way of float32 copies.
        if trainable != Full() and dtype == "float32":
            # At least the float32 gradients of what is not trained must be gone.
            assert full.temp_size_in_bytes - memory.temp_size_in_bytes > 4 * (total - trained)


def test_layers_before_the_last_ones_have_no_backward_pass():
    def scans(trainable) -> float:
        trained, frozen = split(trainable.init(tiny.params(config), 0), trainable.pattern(config))

        def loss(trained, batch):
            static = {
                "config": config,
                "attention": Causal(),
                "kernel": "dense",
                "dtype": "float32",
                "remat": "none",
            }
            return batch_loss(
                trainable.materialize(join(trained, frozen), {}), batch, rotation, **static
            )[0]

        rows = np.zeros((1, 64), np.int32)
        batch = {
            f: jax.numpy.asarray(rows, np.float32 if f == "weights" else np.int32)
            for f in Batch._fields
        }
        text = str(jax.make_jaxpr(jax.grad(loss))(trained, batch))
        return text.count("scan[")

    config = tiny.config(num_hidden_layers=4)
    rotation = Unscaled().rope(config.rope_base(), 64).rotation()
    # Forward and backward over one stack are two scans; over a frozen and a trained one three.
    assert (scans(Full()), scans(LastLayers(2)), scans(LastLayers(4))) == (2, 3, 2)


@pytest.mark.check
def test_training_does_not_change_or_donate_the_base(tmp_path):
    texts = write_texts(tmp_path / "texts")
    base = tiny_base()
    before = parameter_checksum(base.params)
    for number, trainable in enumerate((LoRA(), LastLayers(1))):
        experiment = two_steps(training(texts, trainable))
        train(experiment, RunDir(tmp_path / str(number)).open(experiment), base, progress=False)
        assert parameter_checksum(base.params) == before


def test_the_checksum_detects_one_bit_and_an_exchange():
    tree = {
        "a": jax.numpy.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "b": jax.numpy.ones((3,), jax.numpy.bfloat16),
    }
    bit_flipped = np.array(tree["a"])
    bit_flipped.view(np.uint32)[1, 2, 3] ^= 1
    swapped = np.array(tree["a"])
    swapped[0, 0, 0], swapped[1, 0, 0] = swapped[1, 0, 0], swapped[0, 0, 0]
    others = [
        {**tree, "a": bit_flipped},
        {**tree, "a": swapped},
        {"a": tree["a"], "c": tree["b"]},
        {**tree, "a": tree["a"].reshape(4, 3, 2)},
    ]
    assert len({parameter_checksum(t) for t in (tree, *others)}) == 5
    assert parameter_checksum(jax.tree.map(np.asarray, tree)) == parameter_checksum(tree)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(rank=0), "trainable.rank must be at least 1, got 0"),
        (lambda: LoRA(alpha=0.0), "trainable.alpha must be positive"),
        (lambda: LoRA(alpha=float("nan")), "trainable.alpha must be positive"),
        (lambda: LoRA(dropout=1.0), "trainable.dropout must be at least 0 and below 1"),
        (lambda: LoRA(targets=()), "trainable.targets is empty"),
        (lambda: LoRA(targets=("q",)), "trainable.targets: 'q' is not one of q_proj, k_proj"),
        (lambda: LoRA(targets=("q_proj", "q_proj")), "names something twice"),
        (
            lambda: LoRA(modules_to_save=("embed",)),
            "trainable.modules_to_save: 'embed' is not one of norm, embed_tokens, lm_head",
        ),
        (lambda: LastLayers(0), "trainable.n must be at least 1"),
        (lambda: LastLayers(3).shapes(CONFIG), "trainable.n 3 is more than the 2 layers"),
        (
            lambda: LoRA(modules_to_save=("lm_head",)).shapes(CONFIG),
            "lm_head is its embedding; name embed_tokens",
        ),
    ],
)
def test_subsets_that_cannot_train_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_trainable_subset_is_part_of_an_experiment(tmp_path):
    full = tiny_experiment(tmp_path)
    lora = dataclasses.replace(full, trainable=LoRA(modules_to_save=("norm",)))
    assert from_json(to_json(lora)) == lora
    assert lora.fingerprint != full.fingerprint
    assert dataclasses.replace(full, trainable=Full()).fingerprint == full.fingerprint


def test_the_command_line_chooses_what_is_trained(tmp_path):
    full = tiny_experiment(tmp_path)
    argv = ["--trainable.rank", "16", "--trainable.modules_to_save", "norm", "embed_tokens"]
    lora = override(full, argv, methods=["lora"])
    assert lora.trainable == LoRA(rank=16, modules_to_save=("norm", "embed_tokens"))
    assert override(full, ["--targets", "q_proj"], methods=["lora"]).trainable == LoRA(
        targets=("q_proj",)
    )
    assert override(full, ["--n=2"], methods=["last-layers"]).trainable == LastLayers(2)
    assert override(lora, [], methods=["full"]) == full
    again = override(lora, ["--trainable.alpha", "32", "--trainable.rslora"])
    assert again.trainable == LoRA(
        rank=16, alpha=32.0, rslora=True, modules_to_save=("norm", "embed_tokens")
    )
    short = override(full, ["--rslora", "--rank", "4"], methods=["lora"])
    assert short.trainable == LoRA(rank=4, rslora=True)
    with pytest.raises(ValueError, match="'last-layers' needs n"):
        override(full, [], methods=["last-layers"])
    with pytest.raises(ValueError, match="unknown option --rang; did you mean --rank?"):
        override(full, ["--rang", "4"], methods=["lora"])


def test_split_and_join_are_inverse():
    tree = param_shapes(tiny.CONFIG)
    for pattern in ("", "norm", r"\bkernel$", "nothing"):
        matching, rest = split(tree, pattern)
        assert join(matching, rest) == tree
        assert names(matching) | names(rest) == names(tree)
