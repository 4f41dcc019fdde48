"""Adapters: values, gradients and dropout against the formula, resumed runs, frozen parameters."""

import dataclasses
import functools
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext import loading
from ctxext.attention import Causal
from ctxext.data import Batch
from ctxext.model import loss as loss_module
from ctxext.model.decoder import bind
from ctxext.model.lm import LM
from ctxext.model.loss import batch_loss, over_chunks
from ctxext.model.trainable import LINEARS, Full, LastLayers, LoRA, join, split
from ctxext.parallel.mesh import Mesh, shardings
from ctxext.rope import Unscaled
from ctxext.rundir import RunDir
from ctxext.training.checkpoint import load_params
from ctxext.training.loop import train
from support import tiny
from support.hf_files import write_hf
from support.tiny_train import CONFIG, tiny_base, tiny_experiment, write_texts
from training.test_loop import At, bits, measured, start

LORA = LoRA(rank=3, alpha=5.0, targets=LINEARS)
STATIC = {"config": tiny.CONFIG, "attention": Causal(), "kernel": "dense", "remat": "none"}
ROTATION = Unscaled().rope(tiny.CONFIG.rope_base(), 32).rotation()


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "texts")


def batch(rows: int = 2, length: int = 24) -> dict[str, jax.Array]:
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    values = {
        "tokens": tiny.tokens(rows, length),
        "targets": tiny.tokens(rows, length, 1),
        "positions": positions,
        "segment_ids": np.ones_like(positions),
        "weights": np.ones((rows, length), np.float32),
    }
    assert set(values) == set(Batch._fields)
    return {name: jnp.asarray(value) for name, value in values.items()}


@jax.jit
def plain_loss(params, micro):
    return batch_loss(params, micro, ROTATION, dtype="float32", **STATIC)[0]


def adapters(lora: LoRA, seed: int = 1) -> tuple[dict, dict]:
    """(trained, frozen) of the tiny model.

    B is random too: with B = 0 half of the formula would not be tested.
    """
    params = lora.init(tiny.params(), seed)
    trained, frozen = split(params, lora.pattern(tiny.CONFIG))
    rng = np.random.default_rng(seed)

    def randomise(x: jax.Array) -> jax.Array:
        return jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32)

    return jax.tree.map(randomise, trained), frozen


@functools.partial(jax.jit, static_argnames=("lora", "dtype"))
def loss(trained, frozen, micro, *, lora: LoRA, dtype: str = "float32"):
    params = lora.materialize(join(trained, frozen), micro)
    return batch_loss(params, micro, ROTATION, dtype=dtype, **STATIC)[0]


def dense(trained: dict, frozen: dict, lora: LoRA) -> dict:
    """W + s A B, layer by layer in numpy, without the code under test."""
    scale = lora.alpha / (np.sqrt(lora.rank) if lora.rslora else lora.rank)
    out = jax.tree.map(np.asarray, frozen)
    for block, linears in trained["segments"]["0"].items():
        for name, leaves in linears.items():
            for layer in range(2):
                a = np.float64(leaves["lora_a"][layer])
                b = np.float64(leaves["lora_b"][layer])
                delta = scale * a @ b
                kernel = out["segments"]["0"][block][name]["kernel"].copy()
                kernel[layer] += delta
                out["segments"]["0"][block][name]["kernel"] = kernel
    return out


@pytest.mark.parametrize(
    "lora",
    [
        LORA,
        pytest.param(dataclasses.replace(LORA, rslora=True), marks=pytest.mark.slow),
        pytest.param(LoRA(rank=1, targets=("k_proj",)), marks=pytest.mark.slow),
    ],
)
def test_the_model_with_adapters_is_the_model_with_merged_kernels(lora):
    trained, frozen = adapters(lora)
    expected = plain_loss(dense(trained, frozen, lora), batch())
    without_adapters = plain_loss(frozen, batch())
    assert float(loss(trained, frozen, batch(), lora=lora)) == pytest.approx(
        float(expected), rel=1e-5
    )
    assert abs(float(expected) - float(without_adapters)) > 1e-3 * float(without_adapters)
    merged = lora.merge(join(trained, frozen))
    assert jax.tree.structure(merged) == jax.tree.structure(tiny.params())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        merged,
        dense(trained, frozen, lora),
    )


def test_gradients_are_the_chain_rule_through_the_merged_kernel():
    trained, frozen = adapters(LORA)
    gradients = jax.grad(loss)(trained, frozen, batch(), lora=LORA)
    kernels = jax.tree.map(jnp.asarray, dense(trained, frozen, LORA))
    full = jax.grad(plain_loss)(kernels, batch())
    for block, linears in gradients["segments"]["0"].items():
        for name, gradient in linears.items():
            # x^T dy
            G = np.float64(full["segments"]["0"][block][name]["kernel"])
            leaves = trained["segments"]["0"][block][name]
            A = np.float64(leaves["lora_a"])
            B = np.float64(leaves["lora_b"])
            s = 5.0 / 3
            np.testing.assert_allclose(
                gradient["lora_a"], s * G @ B.swapaxes(1, 2), atol=2e-5 * np.abs(G).max()
            )
            np.testing.assert_allclose(
                gradient["lora_b"], s * A.swapaxes(1, 2) @ G, atol=2e-5 * np.abs(G).max()
            )


def test_new_adapters_change_nothing_and_are_drawn_as_peft_draws_them():
    params = LoRA(rank=4).init(tiny.params(), 0)
    trained, frozen = split(params, LoRA().pattern(tiny.CONFIG))
    assert bits(frozen) == bits(tiny.params())
    tokens = tiny.tokens(1, 20)
    with_adapters = LM(tiny.CONFIG, params, None)  # pyright: ignore
    np.testing.assert_array_equal(tiny.lm().logits(tokens), with_adapters.logits(tokens))
    A = np.asarray(trained["segments"]["0"]["self_attn"]["o_proj"]["lora_a"])
    assert np.abs(A).max() <= 64**-0.5
    assert A.std() == pytest.approx(64**-0.5 / 3**0.5, rel=0.1)
    one_target = LoRA(rank=4, targets=("o_proj",)).init(tiny.params(), 0)
    attention = one_target["segments"]["0"]["self_attn"]
    np.testing.assert_array_equal(attention["o_proj"]["lora_a"], A)
    reseeded, _ = split(LoRA(rank=4).init(tiny.params(), 1), LoRA().pattern(tiny.CONFIG))
    assert not np.array_equal(reseeded["segments"]["0"]["self_attn"]["o_proj"]["lora_a"], A)


@pytest.mark.check
def test_frozen_parameters_in_bfloat16_give_the_same_bits():
    lora = dataclasses.replace(LORA, modules_to_save=("norm",))
    trained, frozen = adapters(lora)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen)
    gradients = [
        jax.value_and_grad(loss)(trained, p, batch(), lora=lora, dtype="bfloat16")
        for p in (frozen, narrow)
    ]
    assert bits(gradients[0]) == bits(gradients[1])


def test_dropout_is_inverted_dropout_of_only_the_adapter_input():
    """The loss is linear in small adapters: its mean over draws is that without dropout."""
    lora = dataclasses.replace(LORA, dropout=0.3, targets=("v_proj",))
    trained, frozen = adapters(lora)
    trained = jax.tree.map(lambda x: 0.1 * x, trained)

    def dropped(micro: int) -> float:
        seeds = {"dropout": lora.dropout_seeds(0, 3, 64)["dropout"][micro]}
        return float(loss(trained, frozen, batch() | seeds, lora=lora))

    without_dropout = float(loss(trained, frozen, batch(), lora=lora))
    without_adapters = float(
        loss(jax.tree.map(jnp.zeros_like, trained), frozen, batch(), lora=lora)
    )
    losses = np.array([dropped(i) for i in range(64)])
    assert len(set(losses.tolist())) == 64, "every microbatch has its own draw"
    standard_error = losses.std() / 8
    assert abs(losses.mean() - without_dropout) < 4 * standard_error
    assert abs(without_dropout - without_adapters) > 8 * standard_error
    assert dropped(5) == losses[5]


def after_dropout(x: jax.Array, token_indices: jax.Array, tokens: int) -> list[np.ndarray]:
    """x after a dropout of 0.3: each layer's gate_proj with W = 0 and A = B = 1, in chunks."""
    lora = LoRA(rank=64, alpha=64.0, dropout=0.3, targets=("gate_proj",))
    tree = lora.init(tiny.params(), 0)
    linear = tree["segments"]["0"]["mlp"]["gate_proj"]
    widths = (64, tiny.CONFIG.intermediate_size)
    eyes = [jnp.broadcast_to(jnp.eye(64, width)[None], (2, 64, width)) for width in widths]
    linear |= {"kernel": 0 * linear["kernel"], "lora_a": eyes[0], "lora_b": eyes[1]}
    seeds = {"dropout": lora.dropout_seeds(0, 0, 1)["dropout"][0]}
    model = bind(tiny.CONFIG, lora.materialize(tree, seeds))
    layers = [jax.tree.map(lambda x, i=i: x[i], model.segments["0"].mlp.gate_proj) for i in (0, 1)]
    outputs = [over_chunks(layer, Mesh(), tokens, x, token_indices) for layer in layers]
    return [np.asarray(output)[..., :64] for output in outputs]


def test_every_token_of_every_layer_draws_its_own_mask_in_any_chunk():
    token_indices = jnp.arange(2 * 512).reshape(2, 512)
    ones = jnp.ones((2, 512, 64))
    unchunked, chunked = (after_dropout(ones, token_indices, tokens) for tokens in (2**20, 128))
    np.testing.assert_array_equal(chunked, unchunked)
    np.testing.assert_allclose(np.unique(unchunked), [0, 1 / 0.7], rtol=1e-6)
    mask = np.array(unchunked) != 0
    assert mask.mean() == pytest.approx(0.7, abs=0.006)  # 131,072 draws: 4.7 standard deviations
    assert np.mean(unchunked) == pytest.approx(1, abs=0.009)
    chunks = mask.reshape(2, 2, 8, 64, 64)
    neighbours = {
        "layers": (mask[0], mask[1]),
        "rows": (mask[:, 0], mask[:, 1]),
        "chunks": (chunks[:, :, 0], chunks[:, :, 1]),
        "tokens": (mask[:, :, :-1], mask[:, :, 1:]),
        "inputs": (mask[..., :-1], mask[..., 1:]),
    }
    for name, (one, next_one) in neighbours.items():
        assert (one != next_one).mean() == pytest.approx(2 * 0.7 * 0.3, abs=0.03), name


@pytest.mark.check
def test_chunks_and_devices_change_no_draw(monkeypatch):
    lora = dataclasses.replace(LORA, dropout=0.5, targets=("q_proj", "down_proj"))
    trained, frozen = adapters(lora)
    micro = batch(2, 32) | {"dropout": lora.dropout_seeds(0, 3, 1)["dropout"][0]}

    def loss_on(mesh: Mesh, chunk: int) -> float:
        monkeypatch.setattr(loss_module, "MLP_TOKENS", chunk)
        static = STATIC | {"kernel": "blocked", "remat": "full", "mesh": mesh}

        @jax.jit
        def total(trained, frozen, micro):
            fields = {name: micro[name] for name in Batch._fields}
            return batch_loss(
                lora.materialize(join(trained, frozen), micro),
                fields,
                ROTATION,
                dtype="float32",
                **static,
            )[0]

        trees = [jax.device_put(tree, shardings(mesh.shard(tree))) for tree in (trained, frozen)]
        return float(total(*trees, micro))

    expected = loss_on(Mesh(), 2**20)
    for mesh in (Mesh(), Mesh(seq=2)):
        assert loss_on(mesh, 8) == pytest.approx(expected, rel=2e-6), mesh
    without = {name: x for name, x in micro.items() if name != "dropout"}
    assert abs(float(loss(trained, frozen, without, lora=lora)) - expected) > 1e-3 * expected


def training(texts, trainable, **changes):
    return dataclasses.replace(tiny_experiment(texts, steps=10, **changes), trainable=trainable)


def two_steps(experiment):
    """The experiment with two training steps."""
    train_settings = dataclasses.replace(experiment.train, steps=2)
    return dataclasses.replace(experiment, train=train_settings)


SUBSETS = [
    LoRA(rank=4, dropout=0.2, modules_to_save=("norm", "embed_tokens")),
    LastLayers(1),
]


@pytest.mark.parametrize(
    "trainable",
    SUBSETS,
    ids=["lora", "last-layers"],
)
@pytest.mark.check
def test_a_run_of_a_subset_resumes_to_the_bit_and_opens_as_a_whole_model(
    texts, tmp_path, trainable
):
    experiment = training(texts, trainable, accumulate=2, batch_size=2)
    stop = threading.Event()
    uninterrupted = start(experiment, tmp_path / "whole")
    start(experiment, tmp_path / "run", At(4, stop.set), stop=stop)
    assert bits(start(experiment, tmp_path / "run")) == bits(uninterrupted)
    assert measured(tmp_path / "run") == measured(tmp_path / "whole")
    losses = [row[1] for row in measured(tmp_path / "whole")]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05
    # The checkpoint holds what was trained, and no more.
    stored, _ = load_params(tmp_path / "run" / "checkpoints")
    assert bits(stored) == bits(uninterrupted)
    assert jax.tree.structure(stored) == jax.tree.structure(trainable.shapes(CONFIG)[0])
    merged = loading.load_run_params(RunDir(tmp_path / "run"), CONFIG, experiment.mesh, trust=False)
    prepared = trainable.init(tiny_base().params, experiment.seed)
    expected = trainable.merge(join(uninterrupted, split(prepared, trainable.pattern(CONFIG))[1]))
    assert bits(merged) == bits(expected)
    untouched = "gate_proj" if isinstance(trainable, LoRA) else "embed"
    for (path, now), before in zip(
        jax.tree_util.tree_leaves_with_path(merged),
        jax.tree.leaves(tiny_base().params),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        same = np.asarray(now) == np.asarray(before)
        assert not same.all() or untouched in name or "mlp" in name, f"{name} was not trained"
        assert same.all() or untouched not in name, f"{name} was trained"
        if isinstance(trainable, LastLayers) and "segments" in name:
            assert same[0].all()
            assert not same[1].all()


def test_a_run_refuses_a_base_that_changed_or_is_gone(texts, tmp_path):
    from ctxext.pipeline import train_only
    from support.llamas import TINY, random_params, tokenizer

    def write(seed: int) -> None:
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        write_hf(
            tmp_path / "base",
            TINY,
            random_params(seed=seed),
            Unscaled(),
            tokenizer(),
            dtype="float32",
        )

    write(0)
    experiment = two_steps(
        dataclasses.replace(training(texts, LoRA(rank=2)), init=str(tmp_path / "base"), model=None)
    )
    run = train_only(experiment, tmp_path / "run", track=())
    tokens = np.arange(40)[None]
    logits = np.asarray(loading.load(run).logits(tokens))
    assert np.abs(logits - np.asarray(loading.load(tmp_path / "base").logits(tokens))).max() > 1e-3
    write(1)
    with pytest.raises(ValueError, match="does not hold the parameters that .*run was trained on"):
        loading.load(run)
    with pytest.raises(ValueError, match="was started with other base"):
        train_only(experiment, tmp_path / "run", track=())
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(
        ValueError, match="holds only what it trained, and its base .*base cannot be opened"
    ):
        loading.load(run)
    write(0)
    np.testing.assert_array_equal(loading.load(run).logits(tokens), logits)


@pytest.mark.check
def test_the_base_is_read_in_the_dtype_that_training_keeps_it_in(texts, tmp_path):
    from support.llamas import TINY, random_params, tokenizer

    write_hf(tmp_path / "base", TINY, random_params(), Unscaled(), tokenizer(), dtype="float32")
    for number, trainable in enumerate((LoRA(rank=2, modules_to_save=("norm",)), LastLayers(1))):
        experiment = two_steps(
            dataclasses.replace(
                training(texts, trainable, dtype="bfloat16"),
                init=str(tmp_path / "base"),
                model=None,
            )
        )
        narrow = loading.load_base(experiment, for_training=True)
        wide = loading.load_base(experiment)
        leaves = jax.tree_util.tree_leaves_with_path(narrow.params)
        kinds = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in leaves}
        in_bfloat16 = {name for name, kind in kinds.items() if kind == jnp.bfloat16}
        if isinstance(trainable, LoRA):
            expected = {name for name in kinds if not name.endswith("['weight']")}
        else:
            expected = {name for name in kinds if "embed_tokens" in name}
        assert in_bfloat16 == expected
        runs = [RunDir(tmp_path / f"{number} {i}").open(experiment) for i in (0, 1)]
        states = [
            train(experiment, run, base, progress=False)
            for run, base in zip(runs, (narrow, wide), strict=True)
        ]
        assert bits(states[0]) == bits(states[1])


def test_full_trains_everything_as_it_is():
    assert split(tiny.params(), Full().pattern(tiny.CONFIG)) == (tiny.params(), {})
