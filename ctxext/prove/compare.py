"""One reader's values beside ours.

transformers multiplies positions and frequencies in float32, and GGUF stores frequencies in it; we do neither: logits
are compared with ours under the reader's own frequencies and rounding (which must agree to float32), and once more
under our exact angles, where the difference is its rounding and is only reported.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, bind
from ctxext.model.lm import LM
from ctxext.parallel.distributed import gather
from ctxext.parallel.mesh import Mesh
from ctxext.prove.reader_output import Probe, Reading
from ctxext.rope import Rope, RopeBase, RopeScaling, rotate
from ctxext.tokenization.tokenizer import PROBES

FREQUENCY_TOLERANCE = 2e-6  # relative; two float32 powers differ by a place or two
TABLE_TOLERANCE = 2e-6
LOGIT_TOLERANCE = 2e-5  # for values up to 1, in proportion above


@dataclasses.dataclass(frozen=True)
class AsRead(RopeScaling):
    """The very frequencies another reader holds."""

    inv_freq: tuple[float, ...]
    attention_factor: float

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(np.asarray(self.inv_freq), self.attention_factor)


def compare(ours: LM, reading: Reading, probes: list[Probe]) -> dict[str, Any]:
    """Differences of a reading from our own, and whether it is "equal"; the second probe is our own continuation."""
    probe, continued = probes
    length = int(probe.positions[-1]) + 1
    marks = probe.positions[probe.rows]
    as_read = ours
    if reading.rounded and reading.inv_freq is not None and reading.attention_factor is not None:
        frequencies = AsRead(tuple(reading.inv_freq.tolist()), reading.attention_factor)
        as_read = dataclasses.replace(ours, scaling=frequencies, angles=reading.angles)
    wanted = _logits(as_read, probe)
    largest = max(1.0, float(np.abs(wanted).max()))
    limit = max(LOGIT_TOLERANCE * largest, reading.coarse * float(wanted.std()))
    result: dict[str, Any] = {
        "reader": reading.name,
        "version": reading.version,
        "angles": reading.angles,
    }
    limits: dict[str, float] = {"logits": limit, "greedy": limit}
    if reading.inv_freq is not None and reading.attention_factor is not None:
        rope = ours.scaling.rope(ours.config.rope_base(), length)
        # Below a millionth of a radian per token nothing turns.
        off = np.abs(reading.inv_freq - rope.inv_freq) / np.maximum(rope.inv_freq, 1e-6)
        result |= {
            "inv_freq": float(off.max()),
            "attention_factor": abs(reading.attention_factor - rope.attention_factor),
        }
        limits |= {"inv_freq": FREQUENCY_TOLERANCE, "attention_factor": FREQUENCY_TOLERANCE}
    cos, sin = as_read.rotation(length).tables(jax.numpy.asarray(marks, jax.numpy.int32))
    if reading.tables is not None:
        result["tables"] = _both(reading.tables, (cos, sin)).tolist()
        limits["tables"] = TABLE_TOLERANCE
    if reading.rotated is not None:
        turned = _queries_keys(
            ours.params,
            probe.tokens[None, probe.rows],
            cos[None],
            sin[None],
            config=ours.config,
            mesh=ours.mesh,
        )
        flat = [gather(x)[0].reshape(len(marks), -1) for x in turned]
        result["rotated"] = _both(
            [x.reshape(len(marks), -1) for x in reading.rotated], flat
        ).tolist()
        limits["rotated"] = LOGIT_TOLERANCE * max(1.0, *(float(np.abs(x).max()) for x in flat))
    result["logits"] = errors(reading.logits[0], wanted).tolist()
    if reading.rounded:
        result["logits_exact_angles"] = errors(reading.logits[0], _logits(ours, probe)).tolist()
    result["token_ids_equal"] = None
    if reading.token_ids is not None:
        bos = ours.tokenizer.bos_id is not None
        result["token_ids_equal"] = reading.token_ids == [
            ours.tokenizer.encode(text, bos=bos) for text in PROBES
        ]
    given, rows = reading.logits[1], range(len(continued.rows))
    result["greedy"] = float(
        (given.max(-1) - given[rows, continued.tokens[continued.rows + 1]]).max()
    )
    within = all(np.max(result[name]) <= limit for name, limit in limits.items())
    return result | {"equal": bool(within and result["token_ids_equal"] is not False)}


def _logits(lm: LM, probe: Probe) -> np.ndarray:
    return np.asarray(lm.logits(probe.tokens[None], positions=probe.positions[None])[0, probe.rows])


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _queries_keys(
    params: Params, tokens: Any, cos: Any, sin: Any, *, config: LlamaConfig, mesh: Mesh
) -> list[Any]:
    """Of the first layer, rotated: [batch, tokens, heads, head_dim]."""
    model = bind(config, mesh.reshard_embedding(params))
    layer = jax.tree.map(lambda leaf: leaf[0], model.segments["0"])
    x = layer.input_layernorm(model.embed_tokens(tokens, "float32"))
    maps = (layer.self_attn.q_proj, layer.self_attn.k_proj)
    return [rotate(f(x).reshape(*x.shape[:2], -1, config.head_dim), cos, sin) for f in maps]


def _both(pair: Any, other: Any) -> np.ndarray:
    return np.maximum(*(errors(a, b) for a, b in zip(pair, other, strict=True)))


def errors(a: Any, b: Any) -> np.ndarray:
    """Largest difference in each row. Raises ValueError for NaN, which would pass every comparison."""
    errors = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(-1)
    if not np.isfinite(errors).all():
        raise ValueError(
            "a reader of the export gave values that are not finite; its weights or scaling are broken"
        )
    return errors
