"""Two models on the same documents of the harness: paired differences from its logged samples."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ctxext.evals.stats import (
    Interval,
    holm,
    mcnemar,
    mean_difference,
    rate_difference,
    ratio_interval,
)

Sample = Mapping[str, Any]
NATS = {"word_perplexity": "nats per word", "byte_perplexity": "nats per byte"}


@dataclass(frozen=True)
class Difference:
    """One metric of one task, model minus base, over `n` documents.

    Right or wrong answers: percentage points, with the exact McNemar `p` and Holm's `adjusted` over
    all tasks and metrics together. Perplexities: nats per `unit`, negative where the model predicts
    better. Others: the difference of the means.
    """

    task: str
    filter: str
    metric: str
    unit: str
    n: int
    base: float
    model: float
    difference: Interval
    only_base: int | None = None
    only_model: int | None = None
    p: float | None = None
    adjusted: float | None = None


def differences(
    model: Mapping[str, Sequence[Sample]], base: Mapping[str, Sequence[Sample]]
) -> list[Difference]:
    """The differences in all metrics that are numbers per document.

    `model`, `base`: task -> logged samples. Raises ValueError if their documents differ.
    """
    unadjusted = []
    for task, samples in model.items():
        for metric, name, pairs in _pairs(task, samples, base[task]):
            difference = _difference(task, name, metric, pairs)
            if difference is not None:
                unadjusted.append(difference)
    adjusted = iter(holm([d.p for d in unadjusted if d.p is not None]))
    return [d if d.p is None else replace(d, adjusted=next(adjusted)) for d in unadjusted]


def _pairs(
    task: str, model: Sequence[Sample], base: Sequence[Sample]
) -> Iterable[tuple[str, str, list[tuple[Any, Any]]]]:
    """(metric, filter, (base, model) of each document) in the order of the samples."""
    base_samples = {_key(sample): sample for sample in base}
    if [_key(sample) for sample in model] != list(base_samples):
        raise ValueError(
            f"{task}: the two models were not asked the same questions, so their answers are not "
            "pairs"
        )
    for name in dict.fromkeys(sample["filter"] for sample in model):
        filtered = [sample for sample in model if sample["filter"] == name]
        for metric in filtered[0]["metrics"]:
            pairs = [
                (plain(base_samples[_key(sample)][metric]), plain(sample[metric]))
                for sample in filtered
            ]
            yield metric, name, pairs


def _key(sample: Sample) -> tuple[Any, ...]:
    return (
        sample["filter"],
        sample["doc_id"],
        sample["doc_hash"],
        sample["prompt_hash"],
        sample["target_hash"],
    )


def _difference(
    task: str, filter: str, metric: str, pairs: Sequence[tuple[Any, Any]]
) -> Difference | None:
    base, model = zip(*pairs, strict=True)
    if metric in NATS:
        weights = [weight for _, weight in base]
        a = [-log_likelihood for log_likelihood, _ in base]
        b = [-log_likelihood for log_likelihood, _ in model]
        total = sum(weights)
        interval = ratio_interval([y - x for x, y in zip(a, b, strict=True)], weights)
        return Difference(
            task, filter, metric, NATS[metric], len(pairs), sum(a) / total, sum(b) / total, interval
        )
    if not all(isinstance(x, int | float) for pair in pairs for x in pair):
        return None  # parts of a metric over all documents, such as an F1
    a = sum(base) / len(base)
    b = sum(model) / len(model)
    if not set(base) | set(model) <= {0, 1}:
        return Difference(task, filter, metric, "", len(pairs), a, b, mean_difference(base, model))
    only_base = sum(x > y for x, y in pairs)
    only_model = sum(y > x for x, y in pairs)
    interval = rate_difference(only_base, only_model, len(pairs)).scaled(100)
    p = mcnemar(only_base, only_model)
    return Difference(
        task,
        filter,
        metric,
        "points",
        len(pairs),
        100 * a,
        100 * b,
        interval,
        only_base,
        only_model,
        p,
    )


def plain(value: Any) -> Any:
    """A value as strict JSON values.

    numpy's numbers become Python's, numbers that are not finite null, everything else text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(x) for x in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
