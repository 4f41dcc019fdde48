"""Every recipe, scaled down to the bundled base: the same method, positions, adapter, schedule and
factor."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ctxext.data import Stdlib
from ctxext.evals import Perplexity
from ctxext.evals.record import LossRecord
from ctxext.experiment import BUNDLED, Experiment, Train, load_experiment
from ctxext.methods import PoSE, Yarn
from ctxext.parallel.mesh import ONE_DEVICE
from ctxext.pipeline import run
from ctxext.rope import Unscaled

FOLDER = Path(__file__).parents[2] / "experiments"
RECIPES = sorted(path.stem for path in FOLDER.glob("llama*.py"))
OF_THE_SAME_METHODS = (
    "llama1_7b_pi_8k",
    "llama2_13b_yarn_8k",
    "llama2_70b_yarn_8k",
    "llama2_7b_pi_32k",
    "llama2_7b_yarn_16k",
    "llama3_8b_prolong_64k",
)
"""Recipes whose method another recipe has, with shorter texts: for `make slow`."""
WINDOW, STEPS = 256, 8


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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name in OF_THE_SAME_METHODS else pytest.mark.check
        )
        for name in RECIPES
    ],
)
def test_a_twin_lowers_the_loss_far_beyond_the_window(name: str, tmp_path: Path):
    """On held-out documents far beyond the window, 8 steps lower the loss of the base."""
    small = twin(load_experiment(FOLDER / f"{name}.py"))
    losses: dict[int, dict[str, float]] = {0: {}, STEPS: {}}
    for record in run(small, run_dir=tmp_path / "run", track=()).records:
        assert isinstance(record, LossRecord)
        mean = record.scores.nll / record.scores.count
        losses[record.model.steps][record.item] = mean
    before = losses[0]
    after = losses[STEPS]
    assert before.keys() == after.keys()
    assert len(before) == 4
    gains = np.array([before[item] - after[item] for item in before])
    assert gains.min() > 0, gains
    assert gains.mean() > 0.2, gains
