"""A checkpoint is restored to the last bit, or it is refused."""

import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.optim import Optim
from ctxext.training.checkpoint import Checkpoints, find_step, load_params
from ctxext.training.checksums import find_corruption, recorded_facts, write_checksums


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
    """Whether two trees have the same structure, dtypes and bits."""

    def same(x, y):
        return x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()

    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return jax.tree.all(jax.tree.map(same, a, b))


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def test_round_trip_keeps_every_bit_and_the_newest_two(tmp_path):
    with Checkpoints(tmp_path / "c") as saved:
        assert saved.restore(*shapes(state(0))) is None
        for step in (10, 20, 30):
            saved.save(step, *state(step))
        # Resumed at 30 and stopped at once: nothing to write.
        saved.save(30, *state(99))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["20", "30"]
    with Checkpoints(tmp_path / "c") as saved:
        step, *restored = saved.restore(*shapes(state(0)))
    assert step == saved.latest == find_step(tmp_path / "c") == 30
    assert equal(tuple(restored), state(30))
    params, step = load_params(tmp_path / "c")
    assert step == 30
    assert equal(params, state(30)[0])


def test_donating_the_state_does_not_change_the_checkpoint_being_written(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 + 7, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as saved:
        saved_state = state(1)
        saved.save(1, *saved_state)
        overwrite(saved_state)
    assert equal(load_params(tmp_path)[0], state(1)[0])


def test_names_on_disk_are_not_those_of_optax(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, *state(1))
    metadata = (tmp_path / "1" / "opt_state" / "_METADATA").read_text()
    assert "1.0.mu.embed_tokens.embedding" in metadata
    assert "Adam" not in metadata


def test_a_checkpoint_that_was_cut_off_does_not_count(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, *state(1))
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert load_params(tmp_path)[1] == 1
    with Checkpoints(tmp_path) as saved:
        assert saved.latest == 1
        saved.save(3, *state(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def files(checkpoint):
    return sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())


def damaged(intact, kind, rng):
    """The bytes with a random bit flipped, or cut off at a random index."""
    data = bytearray(intact)
    if kind == "truncated":
        return bytes(data[: rng.integers(len(data))])
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(data)


@pytest.mark.parametrize("kind", [pytest.param("truncated", marks=pytest.mark.check), "flipped"])
def test_damage_in_any_file_is_named_and_the_checkpoint_before_is_used(tmp_path, capsys, kind):
    with Checkpoints(tmp_path) as saved:
        saved.save(10, *state(10))
        saved.save(20, *state(20))
    names = files(tmp_path / "20")
    rng = np.random.default_rng(len(kind))
    assert len(names) > 10
    assert {Path("sha256.json"), Path("_CHECKPOINT_METADATA")} < set(names)
    for name in names:
        file = tmp_path / "20" / name
        intact = file.read_bytes()
        file.write_bytes(damaged(intact, kind, rng))
        # A reader of the parameters does not look at the optimiser state.
        if name.parts[0] != "opt_state":
            with pytest.raises(
                ValueError, match=rf"20 is damaged \({name} is not what was written\)"
            ) as caught:
                load_params(tmp_path)
            assert "\n" not in str(caught.value)
        with Checkpoints(tmp_path) as saved:
            step, *restored = saved.restore(*shapes(state(0)))
        assert step == 10
        assert equal(tuple(restored), state(10))
        (line,) = capsys.readouterr().err.splitlines()
        assert f"20 is damaged ({name} is not what was written): renamed to 20.damaged" in line
        (tmp_path / "20.damaged").rename(tmp_path / "20")
        file.write_bytes(intact)
    (tmp_path / "20" / names[-2]).unlink()
    with Checkpoints(tmp_path) as saved:
        assert saved.restore(*shapes(state(0)))[0] == 10
        saved.save(20, *state(21))
    with Checkpoints(tmp_path) as saved:
        step, *restored = saved.restore(*shapes(state(0)))
    assert step == 20
    assert equal(tuple(restored), state(21))
    assert (tmp_path / "20.damaged").is_dir()


def test_every_bit_of_the_checksums_matters(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    write_checksums(tmp_path, {"loss": 1.5})
    intact = (tmp_path / "sha256.json").read_bytes()
    assert find_corruption(tmp_path) is None
    assert recorded_facts(tmp_path) == {"loss": 1.5}
    for bit in range(8 * len(intact)):
        flipped = bytearray(intact)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "sha256.json").write_bytes(flipped)
        assert find_corruption(tmp_path) == "sha256.json is not what was written", bit


def test_a_checkpoint_whose_process_was_killed_before_its_checksums_gets_them_on_resuming(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(3, *state(1))
    (tmp_path / "3" / "sha256.json").unlink()
    assert equal(load_params(tmp_path)[0], state(1)[0])
    with Checkpoints(tmp_path) as saved:
        assert saved.restore(*shapes(state(0)))[0] == 3
    assert find_corruption(tmp_path / "3") is None


def test_the_best_and_the_newest_are_kept_also_after_a_restart(tmp_path):
    for losses in ({10: 3.0, 20: 1.0, 30: 2.0}, {40: 1.5, 50: 1.7}):
        with Checkpoints(tmp_path, keep=1, best="train_loss") as saved:
            for step, loss in losses.items():
                saved.save(step, *state(step), loss=loss)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "50"]
    assert find_step(tmp_path) == 50
    assert recorded_facts(tmp_path / "20") == {"loss": 1.0}
    for which, step in (("latest", 50), ("best", 20), (20, 20), ("50", 50)):
        params, loaded_step = load_params(tmp_path, which=which)
        assert loaded_step == find_step(tmp_path, which) == step
        assert equal(params, state(step)[0])
    for which in (30, "010", "newest", -1):
        with pytest.raises(ValueError, match=rf"no checkpoint {which} under .*; there are 20, 50$"):
            load_params(tmp_path, which=which)
    checksums = tmp_path / "50" / "sha256.json"
    checksums.write_text(checksums.read_text().replace("1.7", "0.7"))
    with pytest.raises(
        ValueError, match="is not known, because 50 has no loss recorded; choose one of 20, 50"
    ):
        find_step(tmp_path, "best")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = [*"mount -t tmpfs -o size=500k tmpfs".split(), str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(
            OSError, match=r"under .* \(no space left: it has [\d,]+ bytes, and [\d,]+ are free\);"
        ):
            with Checkpoints(disk / "c") as saved:
                for step in range(10, 100, 10):
                    saved.save(step, *state(step))
        last = find_step(disk / "c")
        assert 10 <= last < 90
        assert equal(load_params(disk / "c")[0], state(last)[0])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_another_model_is_refused(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(3, *state(1))
        params, opt_state = shapes(state(1))
        params["embed_tokens"]["embedding"] = jax.ShapeDtypeStruct((51, 64), jnp.float32)
        with pytest.raises(
            ValueError,
            match=r"another model: embed_tokens.embedding is shape \(50, 64\) there, "
            r"shape \(51, 64\) here",
        ):
            saved.restore(params, opt_state)


def test_no_checkpoint(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="train this run first"):
            load_params(directory)


def test_no_space_left_is_one_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError(
            'RESOURCE_EXHAUSTED: Error writing "a": Failed: No space left on device '
            "[os_error_code='28']"
        )

    with Checkpoints(tmp_path) as saved:
        saved.save(1, *state(1))
        saved.wait()
        monkeypatch.setattr(saved._manager, "save", fail)
        with pytest.raises(
            OSError,
            match=r"under .* \(no space left: it has .* free\); the one before it is complete",
        ):
            saved.save(2, *state(2))
    assert find_step(tmp_path) == 1
