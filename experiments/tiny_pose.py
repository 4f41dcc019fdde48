"""PoSE (arXiv 2309.10400) on the bundled base: rows of one window trained for 4x, against rows of
all four windows.

    ctxext run experiments/tiny_pose.py    minutes on two cores
    ctxext run experiments/tiny_pose.py --seed 1    another training seed, the same questions
    ctxext report RUN... --seeds    together with runs of tiny_trained.py (full-length rows)

As many tokens, steps and questions as tiny_trained.py: 48 steps of 16 rows of one window instead of
4 rows of four. Results: experiments/LOG.md.
"""

import dataclasses

from ctxext.experiment import Experiment
from ctxext.methods import NTK, Linear, PoSE
from ctxext.model.config import LlamaConfig
from ctxext.rope import Unscaled
from tiny_trained import experiment as trained


def experiment(config: LlamaConfig) -> Experiment:
    """The comparison on a base with this window."""
    window, full = config.max_position_embeddings, trained(config)
    train = dataclasses.replace(
        full.train, seq_len=window, batch_size=full.train.seq_len // window * full.train.batch_size
    )
    return dataclasses.replace(
        full,
        name="tiny-pose",
        train=train,
        positions=PoSE(4 * window),
        baselines=(Unscaled(), Linear(4.0), NTK(4.0)),
    )
