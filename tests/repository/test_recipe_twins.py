"""Every recipe, scaled down to the bundled base: the same method, positions, adapter, schedule and
factor."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ctxext.data import Stdlib
from ctxext.evals import Perplexity
from ctxext.experiment import BUNDLED, Experiment, Train, load_experiment
from ctxext.methods import PoSE, Yarn
from ctxext.parallel.mesh import ONE_DEVICE
from ctxext.pipeline import run
from ctxext.rope import Unscaled

FOLDER = Path(__file__).parents[2] / "experiments"
RECIPES = sorted(path.stem for path in FOLDER.glob("llama*.py"))
WINDOW, STEPS = 256, 16


def twin(recipe: Experiment) -> Experiment:
    """Lengths in the recipe's proportions, with the beta_fast that suits the bundled base's
    window."""
    assert recipe.model is not None
    scale = WINDOW / recipe.model.max_position_embeddings
    positions, rope, seq_len = recipe.positions, recipe.rope, int(recipe.train.seq_len * scale)
    if isinstance(rope, Yarn):
        rope = dataclasses.replace(rope, beta_fast=8.0)
    if isinstance(positions, PoSE):
        reach = int(positions.max_position_embeddings * scale)
        positions = dataclasses.replace(positions, max_position_embeddings=reach)
    longest = max(seq_len, getattr(positions, "max_position_embeddings", 0))
    warmup = max(1, recipe.optim.warmup_steps * STEPS // recipe.train.steps)
    return dataclasses.replace(
        recipe,
        init=BUNDLED,
        model=None,
        data=Stdlib("train"),
        rope=rope,
        positions=positions,
        mesh=ONE_DEVICE,
        optim=dataclasses.replace(recipe.optim, learning_rate=7e-4, warmup_steps=warmup),
        zero_shot=(Unscaled(),),
        train=Train(
            steps=STEPS,
            seq_len=seq_len,
            batch_size=max(1, 4096 // seq_len),
            remat=recipe.train.remat,
            kernel=recipe.train.kernel,
            checkpoint_every=STEPS,
        ),
        evals=(Perplexity(seq_lens=(longest,), target_tokens=WINDOW // 2, num_documents=4),),
        expect=(),
        export=None,
    )


@pytest.mark.check
@pytest.mark.parametrize("name", RECIPES)
def test_a_twin_lowers_the_loss_far_beyond_the_window(name: str, tmp_path: Path):
    """On held-out documents far beyond the window, 16 steps lower the loss of the base."""
    small = twin(load_experiment(FOLDER / f"{name}.py"))
    rows = run(small, run_dir=tmp_path / "run", track=()).rows
    nats = {
        steps: {row["item"]: row["nll"] / row["count"] for row in rows if row["steps"] == steps}
        for steps in (0, STEPS)
    }
    assert nats[0].keys() == nats[STEPS].keys() and len(nats[0]) == 4
    gains = np.array([nats[0][item] - nats[STEPS][item] for item in nats[0]])
    assert gains.min() > 0 and gains.mean() > 0.2, gains
