"""Three ways of stretching the bundled base four times, from two seeds each: a sweep in minutes on
two cores.

    ctxext sweep experiments/tiny_sweep.py --out runs/tiny-sweep

Expected: YaRN ahead of PI on passkeys at four windows; between NTK-aware and YaRN, two seeds of 24
steps tell little, and the report says so.
"""

import dataclasses
from collections.abc import Iterator

from ctxext.data import Mix, Stdlib, Synthetic
from ctxext.demo import PAIRS, PASSKEY
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import BUNDLED, Experiment, Train
from ctxext.methods.linear import Linear
from ctxext.methods.ntk import NTK
from ctxext.methods.yarn import Yarn
from ctxext.optim import Optim

WINDOW = 256
METHODS = {"pi": Linear(4.0), "ntk": NTK(4.0), "yarn": Yarn(4.0, beta_fast=8.0)}

experiment = Experiment(
    name="yarn-0",
    init=BUNDLED,
    rope=METHODS["yarn"],
    data=Mix(((0.5, Stdlib("train")), (0.5, Synthetic(PAIRS)))),
    optim=Optim(learning_rate=7e-4, warmup_steps=3, schedule="linear"),
    train=Train(steps=24, seq_len=4 * WINDOW, batch_size=4, checkpoint_every=24),
    evals=(
        Retrieval(task=PASSKEY, seq_lens=(WINDOW, 4 * WINDOW), n=12),
        Perplexity(seq_lens=(WINDOW, 4 * WINDOW), target_tokens=WINDOW // 2),
    ),
    export=None,
)


def sweep() -> Iterator[Experiment]:
    """Every method with every seed."""
    for name, rope in METHODS.items():
        for seed in (0, 1):
            yield dataclasses.replace(experiment, name=f"{name}-{seed}", rope=rope, seed=seed)
