"""A checkpoint is what it was, to the last bit, or it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.checkpoint import Checkpoints, latest_step, load_params
from ctxext.optim import Optim


def state(seed: int):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embed_tokens": {"embedding": jax.random.normal(keys[0], (50, 64))},
        "segments": {"0": {"q_proj": {"kernel": jax.random.normal(keys[1], (2, 64, 64))}}},
    }
    transformation = Optim(learning_rate=0.1, warmup_steps=3).build(10)
    opt_state = transformation.init(params)
    gradient = jax.tree.map(jnp.cos, params)
    return params, transformation.update(gradient, opt_state, params)[1]


def equal(a, b) -> bool:
    def same(x, y):
        return x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()

    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(jax.tree.map(same, a, b)))


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def test_round_trip_keeps_every_bit_and_the_newest_two(tmp_path):
    with Checkpoints(tmp_path / "c") as saved:
        assert saved.restore(*shapes(state(0))) is None
        for step in (10, 20, 30):
            saved.save(step, *state(step))
        saved.save(30, *state(99))  # resumed at 30 and stopped at once: nothing to write
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["20", "30"]
    with Checkpoints(tmp_path / "c") as saved:
        step, *restored = saved.restore(*shapes(state(0)))
    assert step == saved.latest == latest_step(tmp_path / "c") == 30
    assert equal(tuple(restored), state(30))
    params, step = load_params(tmp_path / "c")
    assert step == 30 and equal(params, state(30)[0])


def test_donating_the_state_does_not_touch_what_is_being_written(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 + 7, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as saved:
        now = state(1)
        saved.save(1, *now)
        overwrite(now)
    assert equal(load_params(tmp_path)[0], state(1)[0])


def test_names_on_disk_are_ours(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, *state(1))
    metadata = (tmp_path / "1" / "opt_state" / "_METADATA").read_text()
    assert "1.0.mu.embed_tokens.embedding" in metadata and "Adam" not in metadata


def test_a_checkpoint_that_was_cut_off_does_not_count(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, *state(1))
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert load_params(tmp_path)[1] == 1
    with Checkpoints(tmp_path) as saved:
        assert saved.latest == 1
        saved.save(3, *state(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    with Checkpoints(tmp_path) as saved:
        saved.save(3, *state(1))
    largest = max((tmp_path / "3" / "params").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    if damage == "truncated":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    else:
        largest.unlink()
    with pytest.raises(ValueError, match="3 cannot be read .*: remove that directory") as caught:
        load_params(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_model_is_refused(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(3, *state(1))
        params, opt_state = shapes(state(1))
        params["embed_tokens"]["embedding"] = jax.ShapeDtypeStruct((51, 64), jnp.float32)
        with pytest.raises(
            ValueError, match=r"another model: embed_tokens.embedding is shape \(50, 64\) there, shape \(51, 64\) here"
        ):
            saved.restore(params, opt_state)


def test_no_checkpoint(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="train this run first"):
            load_params(directory)


def test_no_space_left_is_one_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError(
            "RESOURCE_EXHAUSTED: Error writing \"a\": Failed: No space left on device [os_error_code='28']"
        )

    with Checkpoints(tmp_path) as saved:
        saved.save(1, *state(1))
        saved.wait()
        monkeypatch.setattr(saved._manager, "save", fail)
        with pytest.raises(
            OSError, match=r"cannot be written under .* \(no space left\); the one before it is complete"
        ):
            saved.save(2, *state(2))
    assert latest_step(tmp_path) == 1
