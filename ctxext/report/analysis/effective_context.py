"""Effective context length under several thresholds, and by NoLiMa's rule."""

from dataclasses import dataclass
from typing import Any

from ctxext.evals.stats import EffectiveLength
from ctxext.report.analysis.records import Variant, num_correct
from ctxext.report.analysis.study import THRESHOLD, Study

THRESHOLDS = (0.2, 0.8, THRESHOLD, 0.9)
"""PI (arXiv 2306.15595) uses 0.2, YaRN (arXiv 2309.00071) 0.8, PoSE (arXiv 2309.10400) 0.9."""


@dataclass(frozen=True, eq=False)
class EffectiveContext:
    """How much context a variant can use on one task, in tokens."""

    study: Study
    variant: Variant
    length: EffectiveLength
    """Under the usual threshold."""

    @property
    def windows(self) -> EffectiveLength:
        """The same in windows of pre-training."""
        return self.length.in_units_of(self.variant.window)

    @property
    def by_threshold(self) -> dict[float, EffectiveLength | None]:
        return {t: self.study.effective_context(self.variant, t) for t in THRESHOLDS}

    @property
    def by_own_baseline(self) -> int | None:
        """Tokens by NoLiMa's rule, see `nolima_length`."""
        return nolima_length(self.study, self.variant)

    @property
    def longest(self) -> int:
        """The longest length that the variant was asked at."""
        return max(record.seq_len for record in self.study.task.select(self.variant))

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.study.task.task,
            "settings": self.study.task.settings,
            "checkpoint": self.variant.model.checkpoint,
            "method": self.variant.model.label,
            "window": self.variant.window,
            **self.length._asdict(),
            "by_threshold": {
                f"{threshold:g}": length and length._asdict()
                for threshold, length in self.by_threshold.items()
            },
            "nolima": self.by_own_baseline,
        }


def effective_contexts(study: Study) -> list[EffectiveContext]:
    """Of every variant that has one, the longest first."""
    contexts = [EffectiveContext(study, v, length) for v, length in study.effective.items()]
    return sorted(contexts, key=lambda context: -context.length.value)


def nolima_length(
    study: Study, variant: Variant, *, short: int | None = None, threshold: float = THRESHOLD
) -> int | None:
    """NoLiMa's effective length (arXiv 2502.05167), in tokens.

    The longest length with at least `threshold` of the base score: the variant's own mean accuracy
    at lengths up to `short` tokens, by default the window. Lengths in between may fail. 0 if no
    length passes; None without short lengths, or without right answers there.
    """
    rates: dict[int, float] = {}
    for seq_len in study.task.seq_lens:
        if records := study.task.select(variant, seq_len):
            rates[seq_len] = num_correct(records) / len(records)
    base = [rate for n, rate in rates.items() if n <= (short or variant.window)]
    if not any(base):
        return None
    passing = threshold * sum(base) / len(base)
    return max((n for n, rate in rates.items() if rate >= passing), default=0)
