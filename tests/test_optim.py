"""The optimiser against AdamW in plain numpy, and the schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctxext.optim import Optim, apply_updates


def tree(rng: np.random.Generator) -> dict:
    """Random parameters, or gradients, of an embedding and a stack of two layers."""
    return {
        "embed_tokens": {"embedding": rng.normal(size=(5, 4))},
        "segments": {
            "0": {
                "norm": {"weight": rng.normal(size=(2, 4))},
                "q_proj": {"kernel": rng.normal(size=(2, 4, 4))},
            }
        },
    }


def by_path(tree: dict) -> dict[str, np.ndarray]:
    """The leaves of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def adamw(params: dict, gradients: list[dict], rates: list[float], o: Optim) -> dict:
    """AdamW (arXiv:1711.05101, algorithm 2) in float64.

    Norms have no weight decay, although they are matrices when stacked.
    """
    leaves = by_path(params)
    m = {name: np.zeros_like(leaf) for name, leaf in leaves.items()}
    v = {name: np.zeros_like(leaf) for name, leaf in leaves.items()}
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        g = by_path(gradient)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in g.values()))
        for name, leaf in leaves.items():
            clipped = g[name] * min(1.0, o.clip_norm / norm)
            m[name] = o.b1 * m[name] + (1 - o.b1) * clipped
            v[name] = o.b2 * v[name] + (1 - o.b2) * clipped**2
            update = m[name] / (1 - o.b1**t) / (np.sqrt(v[name] / (1 - o.b2**t)) + o.eps)
            decay = 0.0 if "norm" in name else o.weight_decay
            leaves[name] = leaf - rate * (update + decay * leaf)
    return leaves


def test_steps_equal_plain_adamw():
    rng = np.random.default_rng(0)
    optim = Optim(
        learning_rate=0.1, warmup_steps=2, schedule="linear", weight_decay=0.1, clip_norm=3.0
    )
    params = tree(rng)
    gradients = [tree(rng) for _ in range(5)]
    gradients[2] = jax.tree.map(lambda g: g / 100, gradients[2])  # too small to be clipped
    # Two steps of warm-up, then down to 0 at the last of five.
    rates = [0.1 / 3, 0.2 / 3, 0.1, 0.05, 0.0]
    actual = jax.tree.map(jnp.float32, params)
    transformation = optim.build(5)
    state = transformation.init(actual)
    for gradient in gradients:
        updates, state = transformation.update(jax.tree.map(jnp.float32, gradient), state, actual)
        actual = apply_updates(actual, updates)
    expected = adamw(params, gradients, rates, optim)
    for name, leaf in by_path(actual).items():
        np.testing.assert_allclose(leaf, expected[name], atol=2e-6)


def test_a_group_with_another_rate_equals_its_own_optimiser():
    rng = np.random.default_rng(1)
    # The first match counts.
    rates = ((r"\bnorm\b", 4.0), (r"^segments\.", 0.5), (r"norm|embedding", 9.0))
    optim = Optim(
        learning_rate=0.1,
        warmup_steps=2,
        schedule="cosine",
        weight_decay=0.1,
        clip_norm=2.0,
        rates=rates,
    )
    params = jax.tree.map(jnp.float32, tree(rng))
    multiples = {"embedding": 9.0, "weight": 4.0, "kernel": 0.5}
    transformation = optim.build(5)
    actual = params
    state = transformation.init(params)
    clip = optax.clip_by_global_norm(2.0)
    optimisers = {
        name: optax.adamw(
            lambda step, multiple=multiple: multiple * optim.learning_rates(5)(step),
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.0 if name == "weight" else 0.1,
        )
        for name, multiple in multiples.items()
    }
    expected = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    states = {name: optimisers[name].init(expected[name]) for name in optimisers}
    for _ in range(5):
        gradient = jax.tree.map(jnp.float32, tree(rng))
        updates, state = transformation.update(gradient, state, actual)
        actual = apply_updates(actual, updates)
        clipped, _ = clip.update(gradient, clip.init(params))
        for path, g in jax.tree_util.tree_leaves_with_path(clipped):
            name = path[-1].key
            update, states[name] = optimisers[name].update(g, states[name], expected[name])
            expected[name] = optax.apply_updates(expected[name], update)
    for path, leaf in jax.tree_util.tree_leaves_with_path(actual):
        np.testing.assert_allclose(leaf, expected[path[-1].key], rtol=2e-5, atol=1e-6)


def test_a_rate_for_nothing_is_refused():
    params = jax.tree.map(jnp.float32, tree(np.random.default_rng(0)))
    with pytest.raises(
        ValueError,
        match=r"optim.rates: 'nrom' matches nothing that is trained, such as embed_tokens",
    ):
        Optim(1e-3, rates=(("nrom", 2.0),)).build(5).init(params)
    plain = Optim(1e-3).build(5).init(params)
    with_rates = Optim(1e-3, rates=(("norm", 2.0),)).build(5).init(params)
    assert len(jax.tree.leaves(plain)) == len(jax.tree.leaves(with_rates))
    assert len(plain) == 2


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules(schedule):
    optim = Optim(learning_rate=2.0, warmup_steps=4, schedule=schedule, final_fraction=0.1)
    rate = optim.learning_rates(101)
    assert [float(rate(s)) for s in range(5)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    t = np.arange(97) / 96
    expected = {
        "constant": 2.0 + 0 * t,
        "cosine": 0.2 + 0.9 * (1 + np.cos(np.pi * t)),
        "linear": 2.0 - 1.8 * t,
    }[schedule]
    assert [float(rate(s)) for s in range(4, 101)] == pytest.approx(expected.tolist(), rel=1e-5)


def test_no_warmup_starts_at_the_peak():
    assert float(Optim(learning_rate=0.5, schedule="cosine").learning_rates(10)(0)) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"schedule": "step"}, "choose constant, cosine or linear"),
        ({"b2": 1.5}, "b2 must be between"),
        ({"weight_decay": -1.0}, "must not be negative"),
        ({"clip_norm": float("nan")}, "clip_norm must be positive"),
        ({"rates": (("(", 1.0),)}, "is not a regular expression"),
        ({"rates": (("norm", -1.0),)}, "must not be negative, got -1.0"),
    ],
)
def test_impossible_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Optim(**{"learning_rate": 1e-3, **change})
