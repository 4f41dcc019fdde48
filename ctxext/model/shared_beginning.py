"""The first tokens that several continuations of a prompt have in common, written only once.

A question with nine answers is nine continuations that begin alike. Their common tokens go through
the model as one continuation, whose slots in the cache are then copied for all nine.

Shapes: B prompts, K continuations of each, Q different beginnings, M tokens of each, N new tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ctxext.attention.cache import Cache

WORTH_SHARING = 2
"""Continuations per beginning, on average, from which copying takes less time than it saves."""


class SharedBeginning(NamedTuple):
    """The different beginnings of the continuations of each prompt."""

    tokens: Int[np.ndarray, "b q m"]
    beginning_of: Int[np.ndarray, "b k"]
    """The number of each continuation's beginning."""


def shared_beginning(forced_tokens: Int[np.ndarray, "b k n"]) -> SharedBeginning | None:
    """What the continuations begin with, None if too few of them begin alike.

    forced_tokens: -1 where the model chooses. All beginnings have the same length, as many tokens
    as are forced in every continuation; two at least, as the first takes no step.
    """
    is_chosen = forced_tokens < 0
    num_forced = np.where(is_chosen.any(-1), is_chosen.argmax(-1), forced_tokens.shape[-1])
    length = int(num_forced.min())
    if length < 2:
        return None
    of_prompts = [np.unique(row[:, :length], axis=0, return_inverse=True) for row in forced_tokens]
    most = max(len(different) for different, _ in of_prompts)
    if forced_tokens.shape[1] < WORTH_SHARING * most:
        return None
    return SharedBeginning(
        np.stack([np.resize(different, (most, length)) for different, _ in of_prompts]),
        np.stack([numbers.reshape(-1) for _, numbers in of_prompts]).astype(np.int32),
    )


def copied_slots(
    cache: Cache, beginning_of: Int[Array, "b k"], *, first: int, num_beginnings: int, tokens: int
) -> Cache:
    """The cache with the slots of each continuation's beginning, in the order of continuations.

    From slot `first` on, it holds `tokens` tokens of each of `num_beginnings`.
    """
    B, K = beginning_of.shape

    def copy(cached: Array, axis: int) -> Array:
        """axis: that of the slots, from 0."""
        stop = first + tokens * num_beginnings
        old = jax.lax.slice_in_dim(cached, first, stop, axis=axis)
        before, after = old.shape[:axis], old.shape[axis + 1 :]
        by_token = old.reshape(*before, tokens, num_beginnings, *after)
        # The batch is the axis before the heads, and missing if it is one.
        rows = [1] * len(before)
        if B > 1:
            rows[-2 if after and axis == cached.ndim - 2 else -3] = B
        index = beginning_of.reshape(*rows, 1, K, *(1 for _ in after))
        new = jnp.take_along_axis(by_token, index, axis=axis + 1)
        new = new.reshape(*before, tokens * K, *after)
        return jax.lax.dynamic_update_slice_in_dim(cached, new, first, axis=axis)

    keys_axis, values_axis = cache.keys.ndim - 2, cache.values.ndim - 1
    return Cache(copy(cache.keys, keys_axis), copy(cache.values, values_axis))
