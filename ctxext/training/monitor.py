"""What a run is watched for beside its loss: measured on fixed rows, outside the training step, which stays as it is.

On rows of the run's own data that no step trains on: the loss by tokens seen, and the largest attention logit of every
layer. On held-out text of the base's window: the loss, and how far it has risen since step 0.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ctxext.attention import Attend, Attention, Kernel
from ctxext.attention.largest import largest_logit
from ctxext.data import Batch, Rows, Stdlib, make_batch
from ctxext.experiment import Experiment
from ctxext.files import read_jsonl
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, bind
from ctxext.model.lm import LM
from ctxext.model.loss import chunked_mlp, token_losses
from ctxext.model.segments import segment_sizes
from ctxext.model.trainable import Trainable, join
from ctxext.parallel.attention import make_sharded_attention, ring_order, token_order
from ctxext.parallel.distributed import broadcast_from_primary, gather
from ctxext.parallel.mesh import Mesh
from ctxext.positions import Contiguous
from ctxext.rope import Float32Rotation, Rotation, rotate, rotation_at
from ctxext.rundir import RunDir

NEVER = 2**32 - 1
"""The step whose rows are asked: no run trains that long."""
BANDS = 7


def bands(seq_len: int) -> list[int]:
    """Edges of the bands of tokens seen: doublings that end at `seq_len`, the first band from 0."""
    return sorted({0, *(-(-seq_len // 2**i) for i in range(BANDS))})


def tokens_seen(segment_ids: Int[np.ndarray, "b t"]) -> Int[np.ndarray, "b t"]:
    """How many earlier tokens of its own document each token has."""
    index = np.broadcast_to(np.arange(segment_ids.shape[1]), segment_ids.shape)
    begins = np.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    return index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)


def band_sums(
    losses: Float[np.ndarray, "b t"],
    weights: Float[np.ndarray, "b t"],
    seen: Int[np.ndarray, "b t"],
    edges: Sequence[int],
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """(nats, weight) of every band edges[i] <= seen < edges[i + 1], summed in float64."""
    band, n = np.digitize(seen.reshape(-1), edges[1:-1]), len(edges) - 1
    weight = weights.reshape(-1).astype(np.float64)
    return np.bincount(band, losses.reshape(-1) * weight, n), np.bincount(band, weight, n)


class Monitor:
    """Measures every `train.monitor_every` steps; see `of`."""

    def __init__(
        self, experiment: Experiment, base: LM, rows: Rows, reference: float | None
    ) -> None:
        settings = experiment.train
        self._train, self._mesh, self._reference = settings, experiment.mesh, reference
        self._static = {
            "config": base.config,
            "attention": experiment.attention,
            "kernel": settings.kernel,
            "dtype": settings.dtype,
            "remat": settings.remat,
            "mesh": experiment.mesh,
            "trainable": experiment.trainable,
        }
        scaling = experiment.effective_scaling(base.scaling)
        rope_base = base.config.rope_base()
        original = rope_base.original_max_position_embeddings
        self._window = original - original % (2 * self._mesh.build().shape["seq"])

        size, T = settings.batch_size, settings.seq_len
        self._long = make_batch(
            rows, Contiguous(), seed=experiment.seed, step=NEVER, batch_size=size, seq_len=T
        )
        self._short = make_batch(
            Stdlib("heldout").open(base.tokenizer),
            Contiguous(),
            seed=0,
            step=0,
            batch_size=size,
            seq_len=self._window,
        )
        self._rotations = tuple(
            rotation_at(scaling, rope_base, seq_len) for seq_len in (T, self._window)
        )

    @classmethod
    def of(cls, experiment: Experiment, base: LM, rows: Rows, run: RunDir) -> "Monitor | None":
        """None where `train.monitor_every` is 0 or beyond the last step. The loss at step 0 is read from the run's
        metrics if it has one."""
        if not 0 < experiment.train.monitor_every <= experiment.train.steps:
            return None
        found = broadcast_from_primary(
            lambda: [row["short_loss"] for row in read_jsonl(run.metrics_file) if row["step"] == 0]
        )
        return cls(experiment, base, rows, found[0] if found else None)

    def due(self, step: int) -> bool:
        """After this step, 0 being before the first; step 0 only if it has not been measured."""
        if step == 0:
            return self._reference is None
        return step % self._train.monitor_every == 0 or step == self._train.steps

    def row(self, step: int, params: Params, frozen: Params) -> dict[str, Any]:
        """A row of metrics; `alarm` is text where the loss on short text has risen by over `train.drift_alarm` nats.

        What is not finite is left out and named in the alarm: the loss of a training step decides whether a run stops.
        """
        whole = join(params, frozen)
        losses, peaks = self._ask(whole, self._long, self._rotations[0], watch=True)
        nats, weight = band_sums(
            losses,
            self._long.weights,
            tokens_seen(self._long.segment_ids),
            edges := bands(self._train.seq_len),
        )
        named = zip(edges, edges[1:], nats, weight, strict=False)
        by_position = {f"loss_by_position/{a}-{b - 1}": float(n / w) for a, b, n, w in named if w}
        by_layer = {
            f"attention_logit/layer_{layer:02}": float(peak) for layer, peak in enumerate(peaks)
        }
        losses, _ = self._ask(whole, self._short, self._rotations[1], watch=False)
        short = float(
            (losses.astype(np.float64) * self._short.weights).sum() / self._short.weights.sum()
        )
        by_layer["attention_logit_max"] = float(peaks.max())
        found = {"step": step, "short_loss": short, **by_layer, **by_position}
        if step == 0:
            self._reference = short
        if (
            self._reference is not None
        ):  # there is none in a run that became longer than was planned
            found["short_drift"] = short - self._reference
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        row: dict[str, Any] = {name: value for name, value in found.items() if name not in wrong}
        if wrong:
            row["alarm"] = (
                f"step {step}: not finite on the rows that are watched: {', '.join(wrong)}"
            )
        elif found.get("short_drift", 0) > self._train.drift_alarm:
            row["alarm"] = (
                f"step {step}: the loss on held-out text of {self._window:,} tokens is {short:.3f} nats, "
                f"{found['short_drift']:.3f} above step 0"
            )
        return row

    def _ask(
        self, params: Params, batch: Batch, rotation: Any, *, watch: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        arrays = {
            name: self._mesh.rows(x) for name, x in batch._asdict().items() if name != "weights"
        }
        losses, peaks = _losses(params, arrays, rotation, watch=watch, **self._static)
        return gather(losses), gather(peaks)


@functools.partial(
    jax.jit,
    static_argnames=(
        "watch",
        "config",
        "attention",
        "kernel",
        "dtype",
        "remat",
        "mesh",
        "trainable",
    ),
)
def _losses(
    params: Params,
    batch: Mapping[str, Array],
    rotation: Rotation | Float32Rotation,
    *,
    watch: bool,
    config: LlamaConfig,
    attention: Attention,
    kernel: Kernel,
    dtype: str,
    remat: str,
    mesh: Mesh,
    trainable: Trainable,
) -> tuple[Float[Array, "b t"], Float[Array, "l"]]:
    """(nats of every token, largest attention logit of every layer), the latter only if `watch`."""
    params = trainable.materialize(params, {})
    model = bind(config, mesh.reshard_embedding(params))
    index = jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1])[None], batch["tokens"].shape)
    batch = {name: ring_order(x, mesh) for name, x in {**batch, "index": index}.items()}
    attend = make_sharded_attention(
        mesh, attention, kernel, rotation, batch["positions"], batch["segment_ids"]
    )
    if watch:
        attend = _watched(attend, attention, rotation, batch)
    run_mlp = functools.partial(chunked_mlp, mesh=mesh) if remat != "none" else None
    zeros = tuple(jnp.zeros(size, jnp.float32) for size in segment_sizes(params))
    hidden, peaks = model.hidden(batch["tokens"], attend, zeros, dtype=dtype, run_mlp=run_mlp)
    return token_order(
        token_losses(hidden, model.output_kernel(), batch["targets"], mesh), mesh
    ), jnp.concatenate(peaks)


def _watched(
    attend: Attend,
    attention: Attention,
    rotation: Rotation | Float32Rotation,
    batch: Mapping[str, Array],
) -> Attend:
    """`attend` whose cache is the largest logit of every layer of a segment so far [L]; padding asks nothing."""
    pieces, segments = attention.pieces(), batch["segment_ids"]
    query_tables = [rotation.tables(piece.query_positions(batch["positions"])) for piece in pieces]
    key_tables = [rotation.tables(piece.key_positions(batch["positions"])) for piece in pieces]
    asking = jnp.where(segments == 0, -1, batch["index"])

    def watching(q: Array, k: Array, v: Array, peaks: Any, layer: Any) -> tuple[Array, Any]:
        peak = largest_logit(
            [rotate(q, *tables) for tables in query_tables],
            [rotate(k, *tables) for tables in key_tables],
            [piece.mask for piece in pieces],
            query_index=asking,
            key_index=batch["index"],
            query_segments=segments,
            key_segments=segments,
        )
        return attend(q, k, v, None, layer)[0], peaks.at[0 if layer is None else layer].set(peak)

    return watching
