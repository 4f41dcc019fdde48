"""LongReD: the authors' numbers, the gradient of its formula, and a teacher that is never saved."""

import dataclasses
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Causal, make_attention
from ctxext.experiment import Experiment
from ctxext.losses import BATCH, CrossEntropy, Lengths, LongRed
from ctxext.losses.long_red import POSITIONS, cosine_distance
from ctxext.methods import Linear
from ctxext.model.decoder import LayerPlace, bind
from ctxext.model.lm import LM
from ctxext.model.loss import Forward
from ctxext.model.operations import layer_matrices
from ctxext.model.setup import ModelSetup
from ctxext.model.trainable import Full, LastLayers, LoRA
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.plan.flops import step_flops
from ctxext.plan.job import Job, count
from ctxext.plan.memory import memory
from ctxext.requirements import check_context
from ctxext.rope import Unscaled
from ctxext.rundir import RunDir
from ctxext.training.batches import Batches
from ctxext.training.checkpoint import load_params
from ctxext.training.loop import train
from ctxext.training.state import split_params, state_shapes
from ctxext.training.step import compiled_step
from support import tiny
from support.families import lcg
from support.quantized_by_definition import with_plain_values
from support.tiny_train import CONFIG, ByteTokenizer, tiny_base, tiny_experiment, write_texts

FILE = Path(__file__).parents[1] / "golden" / "losses.json"
(DISTANCES,) = [
    case
    for case in json.loads(FILE.read_text())["cases"]
    if case["method"] == "longred_distillation"
]


def test_distances_are_those_of_the_authors():
    p = DISTANCES["params"]
    shape = (p["batch"], p["tokens"], p["width"])
    size = int(np.prod(shape))
    is_text = jnp.ones(shape[:2], bool)
    of_layers = []
    for seeds in zip(p["student_seeds"], p["teacher_seeds"], strict=True):
        student, teacher = (jnp.asarray(lcg(seed, size).reshape(shape)) for seed in seeds)
        of_layers.append(cosine_distance(student, teacher, is_text).mean())
    np.testing.assert_allclose(of_layers, DISTANCES["per_layer"], rtol=2e-6)
    loss = LongRed()
    short = loss.short_weight * sum(of_layers)
    assert float(short) == pytest.approx(DISTANCES["short_loss"], rel=2e-6)
    last = loss.short_to_long_weight * of_layers[-1]
    assert float(last) == pytest.approx(DISTANCES["short_to_long_loss_last_layer"], rel=2e-6)
    assert LongRed().numbers(32) == (1, 9, 12, 14, 15, 32)


NUMBERS = (1, 2)
WINDOW = tiny.CONFIG.max_position_embeddings
ROWS, T = 2, 2 * WINDOW
LOSS = LongRed(short_weight=0.7, short_to_long_weight=1.3, layers=NUMBERS)
LENGTHS = Lengths(row=T, window=WINDOW, target=T)
STUDENT, BASE = Linear(2.0), Unscaled()


def rotation_of(scaling, length: int):
    return scaling.rope(tiny.CONFIG.rope_base(), length).rotation()


ROTATIONS = {
    BATCH: rotation_of(STUDENT, T),
    **LOSS.fixed_rotations(
        LENGTHS,
        lambda length: rotation_of(STUDENT, length),
        lambda length: rotation_of(BASE, length),
    ),
}


def test_only_answers_count_in_the_loss_and_all_text_in_the_distances():
    """By the formula on arrays: rows with questions, answers and padding, a window of 4 tokens."""
    rng = np.random.default_rng(0)
    states = {name: rng.normal(size=(2, 6, 3)).astype(np.float32) for name in "ab"}
    nll = rng.random((2, 6)).astype(np.float32)
    weights = np.float32([[0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0]])
    segment_ids = np.int32([[1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]])

    config = dataclasses.replace(tiny.CONFIG, max_position_embeddings=4, num_hidden_layers=1)
    setup = ModelSetup(config, Causal(), "blocked", "float32", ONE_DEVICE)
    names = dict.fromkeys(("tokens", "targets", POSITIONS), jnp.zeros((2, 6), jnp.int32))
    batch = {**names, "weights": jnp.asarray(weights), "segment_ids": jnp.asarray(segment_ids)}
    loss = LongRed(short_weight=0.5, short_to_long_weight=2.0, layers=(1,))

    def computed(states: dict, nll: np.ndarray) -> tuple[float, dict]:
        class Recorded(Forward):
            """A model whose parameters are its hidden states."""

            def hidden(self, batch, **_) -> jax.Array:
                return self.params[:, : batch["tokens"].shape[1]]  # pyright: ignore

            def hidden_of_layers(self, batch, numbers, **_) -> tuple[jax.Array, ...]:
                return tuple(self.hidden(batch) for _ in numbers)

            def weighted_loss(self, hidden, targets, weights) -> jax.Array:
                return (jnp.asarray(nll) * weights).sum()

        of_model, of_base = (jnp.asarray(states[name]) for name in "ab")
        rotations = dict.fromkeys(("base", "short", "skipped"), ROTATIONS[BATCH])
        forward = Recorded(of_model, ROTATIONS[BATCH], setup, "none", of_base)  # pyright: ignore
        total, sums = loss(forward, batch, rotations)
        return float(total), {name: float(value) for name, value in sums.items()}

    total, sums = computed(states, nll)
    a, b = (states[name][:, :4] for name in "ab")
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    distances = np.array([1 - cosine[0].mean(), 1 - cosine[1, :3].mean()])
    of_rows = float((weights.sum(1) * distances).sum())
    assert sums["weight"] == 4
    assert sums["next_token_loss"] == pytest.approx(float((nll * weights).sum()), rel=1e-6)
    assert sums["short_distance"] == pytest.approx(of_rows, rel=1e-6)
    assert total == pytest.approx(sums["next_token_loss"] + 2.5 * of_rows, rel=1e-6)
    # Losses of questions and padding, and what is behind padding, change nothing.
    changed = {name: np.where((segment_ids == 0)[..., None], 7, x) for name, x in states.items()}
    assert computed(changed, np.where(weights > 0, nll, 9)) == (total, sums)
    states["a"][0, 0] *= -1  # of a question
    assert computed(states, nll)[1]["short_distance"] != sums["short_distance"]


def microbatch() -> dict[str, jax.Array]:
    """Two rows of two documents, with unequal weights; the first ends within the window."""
    batch = tiny.next_token_batch(tiny.tokens(ROWS, T))
    ids = np.repeat([[1, 2], [1, 2]], T // 2, 1)
    ids[0, 20:] = 2
    rngs = [np.random.default_rng(row) for row in range(ROWS)]
    inputs = [LOSS.row_inputs(rng, LENGTHS)[POSITIONS] for rng in rngs]
    weights = batch["weights"] * np.random.default_rng(0).random((ROWS, T), np.float32)
    return {
        **batch,
        "segment_ids": jnp.asarray(ids, jnp.int32),
        "weights": weights,
        POSITIONS: jnp.asarray(np.stack(inputs)),
    }


def whole_loss(params, teacher, batch, mesh=ONE_DEVICE):
    setup = ModelSetup(tiny.CONFIG, Causal(), "blocked", "float32", mesh)
    forward = Forward(params, ROTATIONS[BATCH], setup, "none", teacher)
    total, sums = LOSS(forward, batch, ROTATIONS)
    return total, sums


def plain_states(params, batch, positions, scaling) -> list[jax.Array]:
    """The output of every layer, one after the other, by the reference kernel."""
    model = bind(tiny.CONFIG, params)
    tokens = batch["tokens"][:, : positions.shape[1]]
    ids = batch["segment_ids"][:, : positions.shape[1]]
    rotation = rotation_of(scaling, T)
    attend = make_attention(Causal(), "dense", rotation, positions, ids)
    states = [model.embed_tokens(tokens, "float32")]
    for layer in range(tiny.CONFIG.num_hidden_layers):
        place = LayerPlace(None, 0, layer)
        states.append(model.run_layer(states[-1], attend, None, jnp.int32(layer), place)[0])
    states[-1] = model.norm(states[-1])
    return states


def plain_loss(params, teacher, batch):
    """The formula, written down row by row and token by token."""
    window = jnp.broadcast_to(jnp.arange(WINDOW)[None], (ROWS, WINDOW))
    long = plain_states(params, batch, batch["positions"], STUDENT)[-1]
    log_p = jax.nn.log_softmax(long @ params["lm_head"]["kernel"])
    nll = -jnp.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    targets = plain_states(teacher, batch, window, BASE)
    short = plain_states(params, batch, window, STUDENT)
    skipped = plain_states(params, batch, batch[POSITIONS], STUDENT)

    def distance(one, other):
        cos = (one * other).sum(-1) / jnp.linalg.norm(one, axis=-1)
        return 1 - (cos / jnp.linalg.norm(other, axis=-1)).mean(1)

    of_rows = 0.7 * sum(distance(short[n], targets[n]) for n in NUMBERS)
    of_rows += 1.3 * distance(skipped[-1], targets[-1])
    weights = batch["weights"]
    return (weights * nll).sum() + (weights.sum(1) * of_rows).sum()


@pytest.fixture(scope="module")
def gradient():
    """The loss, its sums, and the gradient of parameters and teacher."""
    function = jax.jit(jax.value_and_grad(whole_loss, (0, 1), has_aux=True))
    return function(tiny.params(), tiny.params(seed=1), microbatch())


def test_value_and_gradient_are_those_of_the_plain_formula(gradient):
    (value, sums), (of_params, of_teacher) = gradient
    plain = jax.jit(jax.value_and_grad(plain_loss))
    expected, expected_gradient = plain(tiny.params(), tiny.params(seed=1), microbatch())
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    parts = sums["next_token_loss"] + 0.7 * sums["short_distance"]
    assert float(parts + 1.3 * sums["short_to_long_distance"]) == pytest.approx(float(value))
    for actual, exact in zip(*map(jax.tree.leaves, (of_params, expected_gradient)), strict=True):
        np.testing.assert_allclose(actual, exact, atol=2e-5 * max(1, abs(exact).max()))
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_teacher))


@pytest.mark.parametrize(
    "trainable", [Full(), LoRA(), LoRA(modules_to_save=("norm",)), LastLayers(1)], ids=str
)
def test_the_teacher_is_the_base_and_belongs_to_nothing_that_is_trained_or_saved(trainable):
    """The step holds the base's values of what is trained alone; of adapters there are none."""
    experiment = dataclasses.replace(
        tiny_experiment(Path("texts"), dtype="bfloat16"), loss=LongRed(), trainable=trainable
    )
    plain = dataclasses.replace(experiment, loss=CrossEntropy())
    params, opt_state, frozen = state_shapes(experiment, CONFIG)
    for own, without in zip((params, opt_state), state_shapes(plain, CONFIG), strict=False):
        assert jax.tree.structure(own) == jax.tree.structure(without)
    base = tiny_base()
    trained, held = split_params(experiment, base, (params, opt_state, frozen))
    teacher = held["teacher"]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(trained)]
    of_base = [path for path in paths if not path[-1].key.startswith("lora_")]
    leaves = jax.tree_util.tree_leaves_with_path(teacher)
    assert [path for path, _ in leaves] == of_base
    assert all(leaf.dtype == jnp.bfloat16 for _, leaf in leaves)
    if trainable == LoRA():
        assert not leaves


def experiment_of(texts: Path, **changes) -> Experiment:
    """Two microbatches of two rows of two windows, in full training unless `changes` say other."""
    experiment = tiny_experiment(texts, steps=4, batch_size=2, accumulate=2, checkpoint_every=1000)
    return dataclasses.replace(experiment, **{"loss": LongRed(), "rope": None, **changes})


def sharp_base(config=CONFIG) -> LM:
    """A base whose attention, and so its hidden states, depend much on positions."""
    return LM(config, tiny.params(config), ByteTokenizer())  # pyright: ignore[reportArgumentType]


def first_steps(
    experiment: Experiment, count: int, base: LM | None = None
) -> list[dict[str, float]]:
    """The metrics of the first steps, as `training.loop` takes them."""
    base = base or sharp_base()
    shapes = state_shapes(experiment, base.config)
    params, frozen = split_params(experiment, base, shapes)
    params = jax.device_put(
        jax.tree.map(jnp.array, params), jax.tree.map(lambda leaf: leaf.sharding, shapes[0])
    )
    opt_state = experiment.optim.build(experiment.train.steps).init(params)
    rows = experiment.data.open(base.tokenizer)
    batches = Batches(experiment, base, rows)
    step_fn = compiled_step(experiment, base.config)
    metrics = []
    for step in range(count):
        batch = batches.draw(step)
        arrays, rotations = batches.on_devices(step, batch), batches.rotations(batch)
        params, opt_state, values = step_fn(params, opt_state, arrays, rotations, frozen)
        metrics.append({name: float(value) for name, value in values.items()})
    return metrics


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "texts")


@pytest.mark.parametrize(
    "trainable",
    [
        pytest.param(LoRA(quantize="int8"), id="lora-int8", marks=pytest.mark.check),
        pytest.param(Full(), id="full", marks=pytest.mark.slow),
        pytest.param(LoRA(dropout=0.1), id="lora-dropout", marks=pytest.mark.slow),
        pytest.param(LastLayers(1), id="last-layers", marks=pytest.mark.slow),
    ],
)
def test_a_run_begins_at_its_teacher_and_moves_away_from_it(texts: Path, trainable):
    """With the frequencies of the base, its first step is compared with itself."""
    first, second = first_steps(experiment_of(texts, trainable=trainable), 2)
    assert first["short_distance"] == pytest.approx(0, abs=1e-5)
    assert first["short_to_long_distance"] > 1e-4
    assert second["short_distance"] > 1e-5
    expected = first["next_token_loss"] + 5 * first["short_distance"]
    expected += 10 * first["short_to_long_distance"]
    assert first["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["nf4", "nf4-double"])
def test_over_a_base_in_four_bits_it_is_that_over_the_values_of_the_base(texts: Path, quantize):
    """Of the model and of its teacher, which are the same codes."""
    base = sharp_base(dataclasses.replace(CONFIG, intermediate_size=128))  # whole blocks
    experiment = experiment_of(
        texts, model=base.config, rope=Linear(2.0), trainable=LoRA(quantize=quantize)
    )
    steps = first_steps(experiment, 2, base)
    of_values = LM(base.config, with_plain_values(base.params, quantize), base.tokenizer)
    plain = dataclasses.replace(experiment, trainable=LoRA())
    expected = first_steps(plain, 2, of_values)
    for actual, of_plain in zip(steps, expected, strict=True):
        assert actual == pytest.approx(of_plain, rel=1e-4)
    (of_base,) = first_steps(plain, 1, base)
    assert of_base["short_distance"] != pytest.approx(steps[0]["short_distance"], rel=1e-3)


@pytest.mark.check
def test_the_teacher_keeps_the_frequencies_of_the_base(texts: Path):
    (metrics,) = first_steps(experiment_of(texts, rope=Linear(2.0)), 1)
    assert metrics["short_distance"] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [Mesh(data=2, seq=2), Mesh(fsdp=2, tensor=2)], ids=str)
def test_a_mesh_takes_the_steps_of_one_device(texts: Path, mesh: Mesh):
    experiment = experiment_of(texts, rope=Linear(2.0))
    alone = first_steps(experiment, 2)
    over_devices = first_steps(dataclasses.replace(experiment, mesh=mesh), 2)
    for actual, expected in zip(over_devices, alone, strict=True):
        assert actual == pytest.approx(expected, rel=1e-3)


@pytest.mark.check
def test_a_stopped_run_resumes_to_the_last_bit_with_the_same_teacher(texts: Path, tmp_path: Path):
    experiment = experiment_of(texts, rope=Linear(2.0))

    def start(name: str, *sinks, base=None, stop=None):
        run = RunDir(tmp_path / name).open(experiment)
        return train(experiment, run, base or tiny_base(), sinks=sinks, progress=False, stop=stop)

    undisturbed = start("undisturbed")
    stop = threading.Event()
    stopping = SimpleNamespace(log=lambda row: stop.set(), rows=len, finish=lambda failed: None)
    start("stopped", stopping, stop=stop)
    # Another base is another teacher, in full training too.
    with pytest.raises(ValueError, match="was started with"):
        start("stopped", base=tiny_base(seed=1))
    resumed = start("stopped")
    for actual, expected in zip(*map(jax.tree.leaves, (resumed, undisturbed)), strict=True):
        np.testing.assert_array_equal(actual, expected)
    saved, _ = load_params(tmp_path / "stopped" / "checkpoints")
    assert jax.tree.structure(saved) == jax.tree.structure(undisturbed)


@pytest.mark.parametrize("trainable", [Full(), LoRA()], ids=str)
def test_plan_counts_the_passes_and_the_parameters_of_the_base(trainable):
    experiment = dataclasses.replace(
        tiny_experiment(Path("texts"), dtype="bfloat16"), trainable=trainable
    )
    plain = Job.of(experiment, CONFIG, 1)
    job = Job.of(dataclasses.replace(experiment, loss=LongRed()), CONFIG, 1)
    is_full = trainable == Full()
    held = memory(job, "cpu").always["teacher"]
    assert held == (2 * CONFIG.num_parameters if is_full else 0)
    assert memory(job, "cpu").peak > memory(plain, "cpu").peak + held
    # By hand: one forward pass of the base and two passes of the model over one window of each row.
    rows, short, L = job.batch_size, CONFIG.max_position_embeddings, CONFIG.num_hidden_layers
    matrices = 2 * layer_matrices(CONFIG) * L * rows * short
    adapters = 2 * rows * short * (0 if is_full else count(plain.trees.trained))
    weights = matrices if is_full else adapters
    pairs = short * (short + 1) // 2
    attention = 4 * CONFIG.num_attention_heads * CONFIG.head_dim * rows * L * pairs
    expected = matrices + attention
    expected += 2 * (2 * (matrices + adapters) + weights + 3 * attention)
    assert step_flops(job).model - step_flops(plain).model == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"short_weight": -1.0}, "short_weight and loss.short_to_long_weight must be at least 0"),
        ({"short_weight": 0.0, "short_to_long_weight": 0.0}, "not both 0.*cross-entropy"),
        ({"depths": (0.5, 1.5)}, "loss.depths are shares above 0 and up to 1"),
        ({"layers": (0,)}, "loss.layers are numbers from 1"),
        ({"depths": ()}, "loss.depths is empty"),
        ({"skipping": "pose"}, "loss.skipping 'pose' is not known; choose cream or uniform"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LongRed(**change)


@pytest.mark.parametrize(
    ("loss", "init", "seq_len", "message"),
    [
        (LongRed(layers=(9,)), "tiny-llama", 1024, "names layer 9, but the model has"),
        (LongRed(), "tiny-llama", 500, "target of 500 tokens, which must be at least twice"),
        (LongRed(), None, 1024, "long-red compares with the base, and a model from scratch"),
    ],
)
def test_runs_that_it_cannot_train_are_refused_before_they_start(loss, init, seq_len, message):
    experiment = tiny_experiment(Path("texts"), seq_len=seq_len)
    experiment = dataclasses.replace(experiment, init=init, loss=loss, rope=None)
    with pytest.raises(ValueError, match=message):
        check_context(experiment)


@pytest.mark.parametrize(
    ("seq_len", "devices", "message"),
    [
        (1000, 3, "rows .train.seq_len. of 1,000 tokens .* mesh.seq 3 .* a multiple of 6"),
        (2 * 1031 * 4, 2, "rows .* of 8,248 tokens: chunks of 2062 .* a multiple of 64 x mesh.seq"),
        (1152, 3, "short texts of long-red of 256 tokens .* mesh.seq 3 .* choose another mesh.seq"),
    ],
)
def test_lengths_that_a_ring_cannot_cut_are_refused_before_they_start(seq_len, devices, message):
    experiment = tiny_experiment(Path("texts"), seq_len=seq_len)
    experiment = dataclasses.replace(
        experiment, init="tiny-llama", loss=LongRed(), rope=None, mesh=Mesh(seq=devices)
    )
    with pytest.raises(ValueError, match=message):
        check_context(experiment)
    rest = dataclasses.replace(experiment, mesh=Mesh(data=2, seq=-1))
    with pytest.raises(ValueError, match=message):
        check_context(rest, num_devices=2 * devices)
    check_context(rest)  # a sweep is submitted from elsewhere
    check_context(rest, num_devices=2)
