"""The optimiser against AdamW written out in numpy, and the schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctxext.optim import Optim, apply_updates


def tree(rng: np.random.Generator) -> dict:
    return {
        "embed_tokens": {"embedding": rng.normal(size=(5, 4))},
        "segments": {
            "0": {
                "norm": {"weight": rng.normal(size=(2, 4))},
                "q_proj": {"kernel": rng.normal(size=(2, 4, 4))},
            }
        },
    }


def adamw(params: dict, gradients: list[dict], rates: list[float], o: Optim) -> dict:
    """arXiv 1711.05101, algorithm 2, in float64; stacked norms are matrices, but not decayed."""
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    m, v = ({name: np.zeros_like(leaf) for name, leaf in leaves.items()} for _ in range(2))
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        g = {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        }
        norm = np.sqrt(sum((leaf**2).sum() for leaf in g.values()))
        for name, leaf in leaves.items():
            clipped = g[name] * min(1.0, o.clip_norm / norm)
            m[name] = o.b1 * m[name] + (1 - o.b1) * clipped
            v[name] = o.b2 * v[name] + (1 - o.b2) * clipped**2
            update = m[name] / (1 - o.b1**t) / (np.sqrt(v[name] / (1 - o.b2**t)) + o.eps)
            decay = 0.0 if "norm" in name else o.weight_decay
            leaves[name] = leaf - rate * (update + decay * leaf)
    return leaves


def test_steps_equal_adamw_written_out():
    rng = np.random.default_rng(0)
    optim = Optim(
        learning_rate=0.1, warmup_steps=2, schedule="linear", weight_decay=0.1, clip_norm=3.0
    )
    params = tree(rng)
    gradients = [tree(rng) for _ in range(5)]
    gradients[2] = jax.tree.map(lambda g: g / 100, gradients[2])  # one that is not clipped
    # Two steps of warm-up, then down to 0 at the last of five.
    rates = [0.1 / 3, 0.2 / 3, 0.1, 0.05, 0.0]
    got = jax.tree.map(jnp.float32, params)
    transformation = optim.build(5)
    state = transformation.init(got)
    for gradient in gradients:
        updates, state = transformation.update(jax.tree.map(jnp.float32, gradient), state, got)
        got = apply_updates(got, updates)
    for path, leaf in jax.tree_util.tree_leaves_with_path(got):
        np.testing.assert_allclose(
            leaf, adamw(params, gradients, rates, optim)[jax.tree_util.keystr(path)], atol=2e-6
        )


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
    got = params
    state = transformation.init(params)
    clip = optax.clip_by_global_norm(2.0)
    alone = {
        name: optax.adamw(
            lambda t, m=m: m * optim.learning_rates(5)(t),
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.0 if name == "weight" else 0.1,
        )
        for name, m in multiples.items()
    }
    expected = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    states = {name: alone[name].init(expected[name]) for name in alone}
    for _ in range(5):
        gradient = jax.tree.map(jnp.float32, tree(rng))
        updates, state = transformation.update(gradient, state, got)
        got = apply_updates(got, updates)
        clipped, _ = clip.update(gradient, clip.init(params))
        for path, g in jax.tree_util.tree_leaves_with_path(clipped):
            name = path[-1].key
            update, states[name] = alone[name].update(g, states[name], expected[name])
            expected[name] = optax.apply_updates(expected[name], update)
    for path, leaf in jax.tree_util.tree_leaves_with_path(got):
        np.testing.assert_allclose(leaf, expected[path[-1].key], rtol=2e-5, atol=1e-6)


def test_a_rate_for_nothing_is_refused():
    params = jax.tree.map(jnp.float32, tree(np.random.default_rng(0)))
    with pytest.raises(
        ValueError,
        match=r"optim.rates: 'nrom' matches nothing that is trained, such as embed_tokens",
    ):
        Optim(1e-3, rates=(("nrom", 2.0),)).build(5).init(params)
    states = [Optim(1e-3, rates=rates).build(5).init(params) for rates in ((), (("norm", 2.0),))]
    assert len(jax.tree.leaves(states[0])) == len(jax.tree.leaves(states[1]))
    assert len(states[0]) == 2


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules(schedule):
    optim = Optim(learning_rate=2.0, warmup_steps=4, schedule=schedule, final_fraction=0.1)
    rate = optim.learning_rates(101)
    assert [float(rate(s)) for s in range(5)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    t = np.arange(97) / 96
    body = {
        "constant": 2.0 + 0 * t,
        "cosine": 0.2 + 0.9 * (1 + np.cos(np.pi * t)),
        "linear": 2.0 - 1.8 * t,
    }[schedule]
    assert [float(rate(s)) for s in range(4, 101)] == pytest.approx(body.tolist(), rel=1e-5)


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
