"""The divisors that the authors of LongRoPE published (arXiv 2402.13753, 2502.20082), by name."""

import dataclasses
import functools

from ctxext.assets import LONGROPE_DIVISORS
from ctxext.files import read_json
from ctxext.nearest import hint
from ctxext.rope import RopeBase

PLAIN = "plain"
"""The name of divisors that are 1 for every pair of any model."""


@dataclasses.dataclass(frozen=True)
class PublishedDivisors:
    """One list, and the model for which it was searched.

    Lists need not grow from pair to pair (9 of Mistral's do not), and may exceed 1 + factor.
    """

    model: str
    head_dim: int
    rope_theta: float
    original_max_position_embeddings: int
    factor: float
    """The length for which it was searched, over the window of pre-training."""
    divisors: tuple[float, ...]

    def check_base(self, name: str, base: RopeBase) -> None:
        """Raise ValueError, naming the list, unless `base` is that of the model."""
        for field in ("head_dim", "rope_theta", "original_max_position_embeddings"):
            theirs = getattr(self, field)
            ours = base.theta if field == "rope_theta" else getattr(base, field)
            if ours != theirs:
                raise ValueError(
                    f"the divisors {name} were searched for {self.model}, with {field} "
                    f"{theirs:,g}; this model has {ours:,g}. Give a list for it, or correct its "
                    "config.json if that is what is wrong"
                )


@functools.cache
def published_divisors() -> dict[str, PublishedDivisors]:
    """Every list by its name, such as ft_la2_128k."""
    lists = read_json(LONGROPE_DIVISORS)["lists"]
    return {
        name: PublishedDivisors(**row | {"divisors": tuple(row["divisors"])})
        for name, row in lists.items()
    }


def check_published(field: str, name: str) -> None:
    """Raise ValueError, with a suggestion, unless `name` is that of a list, or `PLAIN`."""
    known = [*published_divisors(), PLAIN]
    if name in known:
        return
    raise ValueError(
        f"{field}: there are no published divisors {name!r}; {hint(name, known, close=0.5)}"
    )


def named_divisors(name: str, base: RopeBase) -> tuple[float, ...]:
    """The divisors of a published list, or ones for `PLAIN`.

    Raises ValueError if they are for another model.
    """
    if name == PLAIN:
        return (1.0,) * (base.head_dim // 2)
    published = published_divisors()[name]
    published.check_base(name, base)
    return published.divisors
