"""What things cost: each part measures one, warm, and says so as data."""

from collections.abc import Callable, Sequence
from typing import Any

from ctxext.lm import LM


def measure(lm: LM, parts: Sequence[str]) -> dict[str, Any]:
    """The figures of the named parts. Raises ValueError for an unknown name."""
    from ctxext.bench.evaluation import overhead

    known: dict[str, Callable[[LM], dict[str, Any]]] = {"eval": overhead}
    for part in parts:
        if part not in known:
            raise ValueError(f"there is no bench {part!r}; known: {', '.join(known)}")
    return {part: known[part](lm) for part in parts}


def describe(figures: dict[str, Any]) -> str:
    """The figures as lines to read."""
    return "\n".join(
        f"eval, {name}: {x['items']:,} items in {x['seconds']:.1f} s, {x['items_per_second']:.1f} items/s; "
        f"{x['outside']:.1%} of the time outside the model, {x['padding']:.1%} on padding"
        for name, x in figures.get("eval", {}).items()
    )
