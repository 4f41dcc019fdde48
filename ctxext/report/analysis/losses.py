"""Numbers of perplexity rows: which estimator, the mean it takes, and the loss by position."""

import math

from ctxext.evals.stats import ratio_bootstrap
from ctxext.report.analysis.records import Row, document


def is_perplexity(row: Row) -> bool:
    """Rows of text: "ppl" (same targets), "ppl:<estimator>" and "longppl"."""
    return row["eval"].partition(":")[0] in ("ppl", "longppl")


def estimator(row: Row) -> str:
    """What is measured, in words; numbers of different estimators are never put together."""
    if row["eval"] == "longppl":
        return f"LongPPL: perplexity of key tokens, found by {row['keys_from']}"
    if row.get("estimator", "same-target") == "same-target":
        return "perplexity of the same tokens with more context"
    stride = f", stride {row['stride']:,}" if row["stride"] else ""
    return f"perplexity, estimator {row['estimator']} (mean over {row['mean']}s{stride})"


def by_estimator(row: Row) -> str:
    """For titles: which estimator's windows, where they are not the usual ones."""
    name = row.get("estimator", "same-target")
    return "" if name == "same-target" else f", estimator {name}"


def perplexity(found: list[Row]) -> Row:
    """exp of the mean loss, over tokens or over windows as the estimator has it, and its interval over documents.

    Bits per byte: the same mean in bits x tokens per byte of text. None where no document has a token to score.
    """
    scored = [row for row in found if row["count"]]
    count, documents = sum(row["count"] for row in scored), [document(row) for row in scored]
    if not scored:
        nothing = dict.fromkeys(("perplexity", "low", "high", "nats_per_token", "bits_per_byte"))
        return {**nothing, "count": 0, "documents": 0}
    pairs = [(row["nll"], row["count"]) for row in scored]
    if scored[0].get("mean") == "window":
        windows = [
            list(zip(row["windows"]["nll"], row["windows"]["count"], strict=True)) for row in scored
        ]
        pairs = [(sum(nll / n for nll, n in each), len(each)) for each in windows]
    bounds = ratio_bootstrap([nll for nll, _ in pairs], [n for _, n in pairs], documents)
    value, low, high = (None if x is None else math.exp(x) for x in bounds)
    bits = bounds.value / math.log(2) * count / sum(row["bytes"] for row in scored)
    return {
        "perplexity": value,
        "low": low,
        "high": high,
        "nats_per_token": bounds.value,
        "bits_per_byte": bits,
        "count": count,
        "documents": len(set(documents)),
    }


def position(found: list[Row]) -> Row:
    """Nats per token in bins of the number of tokens seen before, with their intervals over documents."""
    bins, documents = [row["by_position"] for row in found], [document(row) for row in found]
    counts = list(zip(*(b["count"] for b in bins), strict=True))
    found_nll = list(zip(*(b["nll"] for b in bins), strict=True))
    each = [
        ratio_bootstrap(nll, count, documents) for nll, count in zip(found_nll, counts, strict=True)
    ]
    return {
        "edges": bins[0]["edges"],
        "nll": [x.value for x in each],
        "count": [sum(n) for n in counts],
        "low": [x.low for x in each],
        "high": [x.high for x in each],
    }
