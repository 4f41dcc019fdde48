"""One reader's values beside ours.

transformers multiplies positions and frequencies in float32, we do not: its logits are compared with ours under its own
frequencies and rounding (which must agree to float32), and once more under our exact angles, where the difference is
its rounding and is only reported.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ctxext.lm import LM
from ctxext.prove.readers import Probe, Reading
from ctxext.rope import Rope, RopeBase, RopeScaling
from ctxext.tokenizer import PROBES

FREQUENCY_TOLERANCE = 2e-6  # relative; two float32 powers differ by a place or two
TABLE_TOLERANCE = 2e-6
LOGIT_TOLERANCE = 2e-5  # for logits up to 1, in proportion above


@dataclasses.dataclass(frozen=True)
class AsRead(RopeScaling):
    """The very frequencies another reader holds."""

    inv_freq: tuple[float, ...]
    attention_factor: float

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(np.asarray(self.inv_freq), self.attention_factor)


def compare(ours: LM, reading: Reading, probe: Probe, continued: Probe | None = None) -> dict[str, Any]:
    """Differences of a reading from our own, and whether it is "equal"; `continued` is our greedy continuation."""
    length = int(probe.positions[-1]) + 1
    rope = ours.scaling.rope(ours.config.rope_base(), length)
    marks = probe.positions[probe.rows]
    as_read = ours.scaling
    if reading.angles == "float32":
        as_read = AsRead(tuple(reading.inv_freq.tolist()), reading.attention_factor)
    with_its_angles = dataclasses.replace(ours, scaling=as_read, angles=reading.angles)
    tables = with_its_angles.rotation(length).tables(jax.numpy.asarray(marks, jax.numpy.int32))
    wanted = _logits(with_its_angles, probe)
    result: dict[str, Any] = {
        "reader": reading.name, "version": reading.version, "angles": reading.angles,
        # Below a millionth of a radian per token nothing turns.
        "inv_freq": float((np.abs(reading.inv_freq - rope.inv_freq) / np.maximum(rope.inv_freq, 1e-6)).max()),
        "attention_factor": abs(reading.attention_factor - rope.attention_factor),
        "tables": np.maximum(*(errors(a, b) for a, b in zip(reading.tables, tables, strict=True))).tolist(),
        "logits": errors(reading.logits[0], wanted).tolist(),
        "token_ids_equal": None,
    }  # fmt: skip
    if reading.angles == "float32":
        result["logits_exact_angles"] = errors(reading.logits[0], _logits(ours, probe)).tolist()
    if reading.token_ids is not None:
        bos = ours.tokenizer.bos_id is not None
        result["token_ids_equal"] = reading.token_ids == [ours.tokenizer.encode(text, bos=bos) for text in PROBES]
    tolerance = LOGIT_TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    if continued is not None:
        # By induction its own greedy continuation is ours if each of our tokens is its likeliest, but for a draw.
        given, rows = reading.logits[1], range(len(continued.rows))
        result["greedy"] = float((given.max(-1) - given[rows, continued.tokens[continued.rows + 1]]).max())
    result["equal"] = bool(
        result["inv_freq"] <= FREQUENCY_TOLERANCE
        and result["attention_factor"] <= FREQUENCY_TOLERANCE
        and max(result["tables"]) <= TABLE_TOLERANCE
        and max(result["logits"]) <= tolerance
        and result.get("greedy", 0) <= tolerance
        and result["token_ids_equal"] is not False
    )
    return result


def _logits(lm: LM, probe: Probe) -> np.ndarray:
    return np.asarray(lm.logits(probe.tokens[None], positions=probe.positions[None])[0, probe.rows])


def errors(a: Any, b: Any) -> np.ndarray:
    """Largest difference in each row. Raises ValueError for NaN, which would pass every comparison."""
    errors = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(-1)
    if not np.isfinite(errors).all():
        raise ValueError("a reader of the export gave values that are not finite; its weights or scaling are broken")
    return errors
