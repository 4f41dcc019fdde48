"""The curve of a run's evaluations during training: its best step, and where it stops growing."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ctxext.experiment import Train
from ctxext.training.stopping import Request


class Evaluated(NamedTuple):
    """The values of all measures after a step, by their names such as "passkey@8192"."""

    step: int
    values: Mapping[str, float]


def is_loss(measure: str) -> bool:
    """Whether lower values are better."""
    return measure.startswith("loss@")


def gain(measure: str, value: float, reference: float) -> float:
    """How much better `value` is than `reference`."""
    return reference - value if is_loss(measure) else value - reference


class Best(NamedTuple):
    """The first step with the best value."""

    step: int
    value: float


def best(curve: Sequence[Evaluated], measure: str) -> Best | None:
    """The best of a curve. Step 0, which is the base and no checkpoint, does not count."""
    found: Best | None = None
    for step, values in curve:
        value = values[measure]
        if step and (found is None or gain(measure, value, found.value) > 0):
            found = Best(step, value)
    return found


def over_at(
    curve: Sequence[Evaluated], measure: str, *, patience: int, min_difference: float
) -> int | None:
    """The step at which a run stops, None if it does not.

    That is the first after which `patience` evaluations in a row are not better than the last that
    was, by more than `min_difference`. Step 0 does not count.
    """
    reference: float | None = None
    since = 0
    for step, values in curve:
        if not step:
            continue
        value = values[measure]
        if reference is None or gain(measure, value, reference) > min_difference:
            reference = value
            since = 0
            continue
        since += 1
        if since >= patience:
            return step
    return None


@dataclasses.dataclass
class Watch:
    """What the evaluations of a run so far ask of it: to keep a checkpoint, or to stop."""

    settings: Train
    curve: list[Evaluated]

    @property
    def request(self) -> Request:
        """The request after the newest evaluation; nothing is remembered besides the curve."""
        if self.over_at is not None:
            return Request.STOP
        measure = self.settings.keep_best_measure
        newest = self.curve[-1].step if self.curve else 0
        if measure is None or not newest:
            return Request.NOTHING
        found = best(self.curve, measure)
        return Request.SAVE if found and found.step == newest else Request.NOTHING

    @property
    def over_at(self) -> int | None:
        """The step at which `train.stop_by` stopped the run, None if it did not."""
        settings = self.settings
        if settings.stop_by is None:
            return None
        return over_at(
            self.curve,
            settings.stop_by,
            patience=settings.stop_patience,
            min_difference=settings.stop_min_difference,
        )

    @property
    def reason(self) -> str:
        """Why the run stopped early, for people."""
        settings = self.settings
        assert settings.stop_by is not None
        found = best(self.curve, settings.stop_by)
        by = f" by more than {settings.stop_min_difference:g}" * bool(settings.stop_min_difference)
        after = f"; best {found.value:.4g} after step {found.step}" if found else ""
        return (
            f"{settings.stop_by} has not become better{by} in {settings.stop_patience} "
            f"evaluations (train.stop_by){after}"
        )
