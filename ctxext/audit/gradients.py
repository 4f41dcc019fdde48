"""Leaks into the future, by derivatives of the attention that models compute.

The masks say what a query should see. Here is measured what its output depends on: the gradients of
`dense` over the method's pieces, with respect to keys and values. Each is exactly zero where a
weight of the softmax is.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.attention.dense import dense
from ctxext.attention.documents import rotary_tables
from ctxext.attention.layers import Layers
from ctxext.audit.subject import Subject, View
from ctxext.rope import Rope

HEAD_DIM = 4
PAIRS = 2**20
"""About how many pairs of a text get a gradient; all of a text of 1,024 tokens."""
PAIRS_TOGETHER = 2**18
"""Of which so many are computed at once."""


@dataclasses.dataclass(frozen=True)
class Leak:
    """An output that depends on a later token."""

    query: int
    key: int
    """The first later token that it depends on."""
    by: str
    """"values", "keys" or "keys and values"."""
    sign: int
    """That of the gradient of the sum of the outputs with respect to the values."""


def queries_with_gradients(queries: np.ndarray, seq_len: int) -> np.ndarray:
    """Those of the queries whose gradients are computed, evenly spaced, the last one among them."""
    count = max(16, PAIRS // seq_len)
    step = max(1, -(-len(queries) // count))
    return queries[::-1][::step][::-1]


def leaks(subject: Subject, view: View, queries: Sequence[int]) -> list[Leak]:
    """Those of these queries whose outputs depend on later tokens."""
    T = subject.seq_len
    gradients = _gradients(subject, view)
    found = []
    rows = np.asarray(queries)
    together = min(len(rows), max(1, PAIRS_TOGETHER // T))
    for first in range(0, len(rows), together):
        some = rows[first : first + together]
        padded = np.pad(some, (0, together - len(some)), mode="edge")  # one program for all
        by_key, by_value, signs = (np.asarray(x) for x in gradients(jnp.asarray(padded)))
        later = np.arange(T)[None, :] > padded[:, None]
        for row in range(len(some)):
            of_key = by_key[row] & later[row]
            of_value = by_value[row] & later[row]
            either = of_key | of_value
            if not either.any():
                continue
            key = int(either.argmax())
            names = [name for name, x in (("keys", of_key), ("values", of_value)) if x.any()]
            leak = Leak(int(some[row]), key, " and ".join(names), int(signs[row, key]))
            found.append(leak)
    return found


def _gradients(subject: Subject, view: View) -> Any:
    """queries [Q] -> (output depends on key, on value, sign of the latter), [Q, T] each."""
    T = subject.seq_len
    rope, _ = subject.rope(view.kind)
    # Masks hide the same pairs whatever the frequencies: the fastest and the slowest pair will do.
    rotation = Rope(rope.inv_freq[[0, -1]], rope.attention_factor).rotation()
    index = jnp.arange(T)[None]
    pieces = [dataclasses.replace(piece, stretched=False) for piece in view.pieces]
    query_tables, key_tables = rotary_tables(pieces, rotation, index, None)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, T, 1, HEAD_DIM)), jnp.float32) for _ in range(3))
    turn = Layers((view.kind,)).rotation(0)
    turned_queries = [turn(q, tables) for tables in query_tables]

    def total(k: Any, v: Any, rows: Any) -> Any:
        """The sum of the outputs of the queries `rows`, each over its copy of keys and values."""
        out = dense(
            [x[0, rows][:, None] for x in turned_queries],
            [turn(k, tables) for tables in key_tables],
            v,
            view.masks,
            query_index=rows[:, None],
            key_index=index,
        )
        return out.sum()

    @jax.jit
    def of_rows(rows: Any) -> tuple[Any, Any, Any]:
        copies = (len(rows), T, 1, HEAD_DIM)
        by_key, by_value = jax.grad(total, (0, 1))(
            jnp.broadcast_to(k, copies), jnp.broadcast_to(v, copies), rows
        )
        used = (by_key != 0).any((2, 3)), (by_value != 0).any((2, 3))
        return *used, jnp.sign(by_value.sum((2, 3)))

    return of_rows
