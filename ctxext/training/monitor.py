"""Diagnostics during training, measured on fixed rows and outside the training step.

On rows of the run's own data that no step trains on: the loss by the number of tokens seen, and the
largest attention logit of every layer. On held-out text as long as the base's window: the loss with
the attention of evaluations, and how far it has risen since step 0.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ctxext.attention import Attend, Attention
from ctxext.attention.bias import position_bias
from ctxext.attention.documents import first_tokens, mapped_positions, rotary_tables
from ctxext.attention.heads import head_sets
from ctxext.attention.largest_logit import largest_logit
from ctxext.attention.layers import Kind, Layers
from ctxext.attention.length import pieces_at
from ctxext.data import Batch, Rows, Stdlib, make_batch
from ctxext.experiment import Experiment
from ctxext.files import read_jsonl
from ctxext.model.decoder import Params, bind
from ctxext.model.lm import LM
from ctxext.model.loss import chunked_mlp, token_losses
from ctxext.model.segments import segment_sizes
from ctxext.model.setup import ModelSetup
from ctxext.model.trainable import Trainable, join
from ctxext.parallel.attention import make_sharded_attention, ring_order, token_order
from ctxext.parallel.distributed import broadcast_from_primary, gather
from ctxext.positions import Contiguous
from ctxext.rope_by_length import SequenceRotation
from ctxext.rundir import RunDir
from ctxext.training.rotation import training_rotation

NEVER = 2**32 - 1
"""The step whose rows the monitor uses: no run trains that long."""
BANDS = 7
"""Bands of tokens seen that the loss is reported by."""


def bands(seq_len: int) -> list[int]:
    """Edges of the bands of tokens seen: doublings that end at `seq_len`, the first one from 0."""
    return sorted({0, *(-(-seq_len // 2**i) for i in range(BANDS))})


def tokens_seen(segment_ids: Int[np.ndarray, "b t"]) -> Int[np.ndarray, "b t"]:
    """How many earlier tokens of its own document each token has."""
    index = np.broadcast_to(np.arange(segment_ids.shape[1]), segment_ids.shape)
    is_first = np.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    return index - np.maximum.accumulate(np.where(is_first, index, 0), axis=1)


def band_sums(
    losses: Float[np.ndarray, "b t"],
    weights: Float[np.ndarray, "b t"],
    seen: Int[np.ndarray, "b t"],
    edges: Sequence[int],
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """(weighted nll, weight) of every band edges[i] <= seen < edges[i + 1], summed in float64."""
    num_bands = len(edges) - 1
    band = np.digitize(seen.reshape(-1), edges[1:-1])
    weight = weights.reshape(-1).astype(np.float64)
    nll = losses.reshape(-1) * weight
    return np.bincount(band, nll, num_bands), np.bincount(band, weight, num_bands)


def first_short_loss(metrics: Path) -> float | None:
    """The loss on short text at step 0, None if it was not measured.

    Evaluations during training have a row at step 0 too.
    """
    rows = (row for row in read_jsonl(metrics) if row["step"] == 0)
    return next((row["short_loss"] for row in rows if "short_loss" in row), None)


class Monitor:
    """Measures a run every `train.monitor_every` steps; see `of`."""

    def __init__(
        self, experiment: Experiment, base: LM, rows: Rows, first_short_loss: float | None
    ) -> None:
        settings = experiment.train
        self._train = settings
        self._mesh = experiment.mesh
        self._first_short_loss = first_short_loss
        self._trainable = experiment.trainable
        self._long_setup = ModelSetup(
            base.config, experiment.attention, settings.kernel, settings.dtype, experiment.mesh
        )
        self._short_setup = dataclasses.replace(
            self._long_setup, attention=experiment.evaluated_attention
        )
        rope_base = base.config.rope_base()
        window = rope_base.original_max_position_embeddings
        # A ring needs two equal chunks per device.
        self._window = window - window % (2 * self._mesh.build().shape["seq"])
        self._long_batch = make_batch(
            rows,
            Contiguous(),
            seed=experiment.seed,
            step=NEVER,
            batch_size=settings.batch_size,
            seq_len=settings.seq_len,
        )
        self._short_batch = make_batch(
            Stdlib("heldout").open(base.tokenizer),
            Contiguous(),
            seed=0,
            step=0,
            batch_size=settings.batch_size,
            seq_len=self._window,
        )
        rotation = functools.partial(training_rotation, experiment, base.scaling, rope_base)
        self._long_rotation = rotation(settings.seq_len)
        self._short_rotation = rotation(self._window)

    @classmethod
    def of(cls, experiment: Experiment, base: LM, rows: Rows, run: RunDir) -> "Monitor | None":
        """The monitor of a run, None if `train.monitor_every` is 0 or beyond the last step.

        The loss at step 0 is read from the metrics of a resumed run.
        """
        if not 0 < experiment.train.monitor_every <= experiment.train.steps:
            return None
        first = broadcast_from_primary(lambda: first_short_loss(run.metrics_file))
        return cls(experiment, base, rows, first)

    def due(self, step: int) -> bool:
        """True if a row is due after `step`; after step 0 only if its loss is not known yet."""
        if step == 0:
            return self._first_short_loss is None
        return step % self._train.monitor_every == 0 or step == self._train.steps

    def row(self, step: int, params: Params, frozen: Params) -> dict[str, Any]:
        """Measure the parameters after `step`, as a row of metrics.

        `alarm` is a text, there if the loss on short text has risen by more than
        `train.drift_alarm` nats, or if a value is not finite. Such a value is left out: it is the
        loss of a training step that decides whether a run stops.
        """
        whole = join(params, frozen)
        long_losses, peaks = self._measure(
            whole, self._long_batch, self._long_setup, self._long_rotation, with_logits=True
        )
        short_losses, _ = self._measure(
            whole, self._short_batch, self._short_setup, self._short_rotation, with_logits=False
        )
        short_weights = self._short_batch.weights
        short_nll = (short_losses.astype(np.float64) * short_weights).sum()
        short_loss = float(short_nll / short_weights.sum())
        values: dict[str, Any] = {"step": step, "short_loss": short_loss}
        for layer, peak in enumerate(peaks):
            values[f"attention_logit/layer_{layer:02}"] = float(peak)
        values["attention_logit_max"] = float(peaks.max())
        values |= self._loss_by_position(long_losses)
        if step == 0:
            self._first_short_loss = short_loss
        # It is not known in a run that had no monitor until it was made longer.
        if self._first_short_loss is not None:
            values["short_drift"] = short_loss - self._first_short_loss
        return self._with_alarm(values)

    def _loss_by_position(self, losses: np.ndarray) -> dict[str, float]:
        edges = bands(self._train.seq_len)
        seen = tokens_seen(self._long_batch.segment_ids)
        nll, weight = band_sums(losses, self._long_batch.weights, seen, edges)
        return {
            f"loss_by_position/{first}-{end - 1}": float(band_nll / band_weight)
            for first, end, band_nll, band_weight in zip(
                edges[:-1], edges[1:], nll, weight, strict=True
            )
            if band_weight
        }

    def _with_alarm(self, values: dict[str, Any]) -> dict[str, Any]:
        step = values["step"]
        drift = values.get("short_drift", 0)
        not_finite = [name for name, value in values.items() if not math.isfinite(value)]
        row = {name: value for name, value in values.items() if name not in not_finite}
        if not_finite:
            row["alarm"] = f"step {step}: not finite on the monitored rows: {', '.join(not_finite)}"
        elif drift > self._train.drift_alarm:
            row["alarm"] = (
                f"step {step}: the loss on held-out text of {self._window:,} tokens is "
                f"{values['short_loss']:.3f} nats, {drift:.3f} above step 0"
            )
        return row

    def _measure(
        self,
        params: Params,
        batch: Batch,
        setup: ModelSetup,
        rotation: Any,
        *,
        with_logits: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        arrays = {
            name: self._mesh.rows(x) for name, x in batch._asdict().items() if name != "weights"
        }
        losses, peaks = _losses_and_peaks(
            params,
            arrays,
            rotation,
            with_logits=with_logits,
            setup=setup,
            remat=self._train.remat,
            trainable=self._trainable,
        )
        return gather(losses), gather(peaks)


@functools.partial(jax.jit, static_argnames=("with_logits", "setup", "remat", "trainable"))
def _losses_and_peaks(
    params: Params,
    batch: Mapping[str, Array],
    rotation: SequenceRotation,
    *,
    with_logits: bool,
    setup: ModelSetup,
    remat: str,
    trainable: Trainable,
) -> tuple[Float[Array, "b t"], Float[Array, "l"]]:
    """(loss of every token, largest attention logit of every layer); zeros unless `with_logits`."""
    params = trainable.materialize(params, {})
    attention, mesh = setup.attention, setup.mesh
    model = bind(setup.config, mesh.reshard_embedding(params))
    index = jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1])[None], batch["tokens"].shape)
    batch = {name: ring_order(x, mesh) for name, x in {**batch, "index": index}.items()}
    attend = make_sharded_attention(
        mesh,
        attention,
        setup.kernel,
        rotation,
        batch["positions"],
        batch["segment_ids"],
        layers=setup.config.layers,
    )
    if with_logits:
        attend = _recording_peaks(attend, setup.config.layers, attention, rotation, batch)
    run_mlp = functools.partial(chunked_mlp, mesh=mesh) if remat != "none" else None
    zeros = tuple(jnp.zeros(size, jnp.float32) for size in segment_sizes(params))
    hidden, peaks = model.hidden(batch["tokens"], attend, zeros, dtype=setup.dtype, run_mlp=run_mlp)
    losses = token_losses(hidden, model.output_kernel(), batch["targets"], mesh)
    return token_order(losses, mesh), jnp.concatenate(peaks)


def _recording_peaks(
    attend: Attend,
    layers: Layers,
    attention: Attention,
    rotation: SequenceRotation,
    batch: Mapping[str, Array],
) -> Attend:
    """`attend` with the largest logit of every layer of a segment, [L], in place of its cache.

    Queries of padding do not count.
    """
    pieces = layers.scaled(pieces_at(attention, rotation))
    masks = [piece.mask for piece in pieces]
    segment_ids = batch["segment_ids"]
    query_tables, key_tables = rotary_tables(pieces, rotation, batch["positions"], segment_ids)
    mapped = mapped_positions(pieces, batch["positions"], segment_ids)
    index = batch["index"]
    first = first_tokens(masks, index, segment_ids)
    if first is not None:
        index = index - first
    query_index = jnp.where(segment_ids == 0, -1, index)

    def attend_and_record(
        q: Array, k: Array, v: Array, peaks: Any, layer: Any, kind: Kind = 0, number: Any = 0
    ) -> tuple[Array, Any]:
        rotate = layers.rotation(kind, number)
        of_layer = layers.masks(pieces, kind)
        bias = position_bias(layers.bias, pieces, q.shape[2], *mapped)
        peak = jnp.float32(-jnp.inf)
        for heads in head_sets(pieces, q.shape[2], k.shape[2]):
            own_q, own_k = heads.queries(q), heads.keys(k)
            of_heads = largest_logit(
                [rotate(own_q, tables) for tables in heads.of_pieces(query_tables)],
                [rotate(own_k, tables) for tables in heads.of_pieces(key_tables)],
                heads.of_pieces(of_layer),
                query_index=query_index,
                key_index=index,
                query_segments=segment_ids,
                key_segments=segment_ids,
                kind=None if isinstance(kind, int) else kind,
                bias=None if bias is None else bias.of_heads(heads),
            )
            peak = jnp.maximum(peak, of_heads)
        out, _ = attend(q, k, v, None, layer, kind, number)
        return out, peaks.at[0 if layer is None else layer].set(peak)

    return attend_and_record
