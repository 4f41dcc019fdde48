"""The inputs of training steps: drawn on the host ahead of time, then put on the devices."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ctxext.data import Batch, Rows, make_batch, prefetch
from ctxext.experiment import Experiment
from ctxext.losses import step_rotations
from ctxext.model.lm import LM
from ctxext.rope import rotation_at
from ctxext.rope_by_length import SequenceRotation
from ctxext.training.rotation import training_rotation


class Batches:
    """The batches of a run; each is a function of the experiment's seed and the step alone.

    Raises ValueError if the rows of a batch cannot be divided among the devices.
    """

    def __init__(self, experiment: Experiment, base: LM, rows: Rows) -> None:
        settings = experiment.train
        experiment.mesh.check_rows(settings.batch_size, what="train.batch_size")
        self._experiment = experiment
        self._rows = rows
        self._own = {
            micro * settings.batch_size + row
            for micro in range(settings.accumulate)
            for row in experiment.mesh.own_rows(settings.batch_size)
        }
        self._base_scaling = base.scaling
        self._rope_base = base.config.rope_base()
        self._lengths = experiment.lengths(base.config.max_position_embeddings)
        scaling = experiment.effective_scaling(base.scaling)
        by_document = settings.rope_length == "document"
        follows_length = scaling.depends_on_length or experiment.attention.depends_on_length
        self._is_fixed = by_document or not follows_length
        self._longest = 0

    def prefetch(
        self, start: int, stop: int
    ) -> contextlib.AbstractContextManager[Iterator[tuple[int, Batch]]]:
        """(step, batch) of the steps from `start` to before `stop`, drawn ahead in a thread."""
        return contextlib.closing(prefetch(self.draw, start, stop))

    def draw(self, step: int) -> Batch:
        """The A B rows of a step; this process builds those of its own devices."""
        settings = self._experiment.train
        return make_batch(
            self._rows,
            self._experiment.positions,
            seed=self._experiment.seed,
            step=step,
            batch_size=settings.accumulate * settings.batch_size,
            seq_len=settings.seq_len,
            own=self._own,
        )

    def on_devices(self, step: int, batch: Batch) -> dict[str, jax.Array | np.ndarray]:
        """Arrays [A, B, ...] for the step, and the dropout seeds of its microbatches."""
        experiment = self._experiment
        settings = experiment.train
        shape = (settings.accumulate, settings.batch_size, settings.seq_len)
        arrays: dict[str, Any] = {
            name: experiment.mesh.rows(x.reshape(shape), dim=1)
            for name, x in batch._asdict().items()
        }
        for name, x in self._inputs_of_loss(step).items():
            of_rows = x.reshape(*shape[:2], *x.shape[1:])
            arrays[name] = experiment.mesh.rows(of_rows, dim=1)
        seeds = experiment.trainable.dropout_seeds(experiment.seed, step, settings.accumulate)
        return {**arrays, **seeds}

    def _inputs_of_loss(self, step: int) -> dict[str, np.ndarray]:
        """`Loss.row_inputs` of the A B rows of a step; row i depends on (seed, step, i) only."""
        experiment = self._experiment
        num_rows = experiment.train.accumulate * experiment.train.batch_size
        of_rows = []
        for row in range(num_rows):
            # The third generator of the row: `make_batch` draws from the other two.
            rng = np.random.default_rng([experiment.seed, step, row, 2])
            of_rows.append(experiment.loss.row_inputs(rng, self._lengths))
        return {name: np.stack([inputs[name] for inputs in of_rows]) for name in of_rows[0]}

    def rotations(self, batch: Batch) -> dict[str, SequenceRotation]:
        """The frequencies of a step by name, as `losses.step_rotations` gives them."""
        return step_rotations(
            self._experiment.loss,
            batch.positions,
            self._rotation_at,
            lengths=self._lengths,
            base_rotation_at=functools.partial(rotation_at, self._base_scaling, self._rope_base),
        )

    def _rotation_at(self, seq_len: int) -> SequenceRotation:
        if self._is_fixed:
            # The same at every length: asked again only where positions reach further than before.
            self._longest = max(self._longest, seq_len)
            seq_len = self._longest
        return training_rotation(self._experiment, self._base_scaling, self._rope_base, seq_len)
