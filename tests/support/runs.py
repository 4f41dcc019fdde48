"""Run directories with given checkpoints, written without training."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ctxext.data import Stdlib
from ctxext.experiment import Experiment, Train
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.optim import Optim
from ctxext.rope import RopeScaling, Unscaled, target_length
from ctxext.rundir import RunDir
from ctxext.tokenization.tokenizer import Tokenizer
from ctxext.training.checkpoint import Checkpoints


def write_run(
    path: Path,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    checkpoints: Mapping[int, Params],
    *,
    rope: RopeScaling,
    seq_len: int = 64,
) -> RunDir:
    """A run that trained under `rope` up to the last of `checkpoints`."""
    experiment = Experiment(
        name="written",
        data=Stdlib("train"),
        model=config,
        rope=rope,
        optim=Optim(learning_rate=1e-3),
        train=Train(steps=max(checkpoints), seq_len=seq_len, batch_size=1, keep=len(checkpoints)),
    )
    run = RunDir(path).open(experiment)
    window = config.max_position_embeddings
    declared = target_length(rope, window) or window
    run.write_base(config, rope, tokenizer.files, declared=declared, base_scaling=Unscaled())
    with Checkpoints(run.checkpoints, keep=len(checkpoints)) as saved:
        for step, params in checkpoints.items():
            saved.save(step, params, {"count": np.int32(step)})
    return run
