"""Whether kernels, block tests and the decode cache compute what the pieces of a method say."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ctxext.attention import Kernel, kernels, make_attention
from ctxext.attention.cache import caches_rotated, empty_cache, prefill
from ctxext.attention.decode import decode
from ctxext.attention.heads import head_sets
from ctxext.attention.layers import Layers
from ctxext.attention.length import rotation_for
from ctxext.attention.pieces import Mask
from ctxext.attention.request import requests_of
from ctxext.attention.ring import zigzag
from ctxext.audit.subject import Subject

TOKENS = 2048
"""The longest text on which outputs are compared."""
FEWEST_HEADS = (2, 4, 8)
"""Heads of the trial: the first of these numbers that gives as many sets as the model has."""
TOLERANCE = 1e-4
"""Outputs of about 1 that differ by more are different."""
TOLERANCE_16_BIT = 3e-2
BLOCK = 128
"""Tokens of a block in the test of `Mask.block`, and what longer texts are a multiple of."""
RING = 2
"""Devices of the ring, if there are as many."""

Result = Literal["same", "different", "refused", "not run"]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Whether a kernel, or the decode cache, computes the attention that `dense` does."""

    name: str
    result: Result
    detail: str = ""
    """How it was compared, or why not."""


@dataclasses.dataclass(frozen=True)
class WrongBlock:
    """A block of pairs for which `Mask.block` contradicts `Mask.visible`."""

    mask: str
    """The class of the mask."""
    queries: tuple[int, int]
    keys: tuple[int, int]
    says: str
    """"that no pair is visible" or "that all pairs are visible"."""


def wrong_block(subject: Subject, longest: int) -> WrongBlock | None:
    """The first wrong block among the first `longest` tokens; None if there is none."""
    T = min(subject.seq_len, longest)
    blocks = [range(first, min(first + BLOCK, T)) for first in range(0, T, BLOCK)]
    masks = dict.fromkeys(
        mask for kind in subject.kinds for view in subject.views(kind) for mask in view.masks
    )
    for mask in masks:
        for queries in blocks:
            for keys in blocks:
                says = _wrong(mask, queries, keys)
                if says:
                    ends = (queries[0], queries[-1]), (keys[0], keys[-1])
                    return WrongBlock(type(mask).__name__, *ends, says)
    return None


def _wrong(mask: Mask, queries: range, keys: range) -> str:
    """A wrong claim of `mask.block`, as in `WrongBlock.says`; empty if it makes none."""
    any_visible, all_visible = mask.block(queries, keys)
    if any_visible and not all_visible:
        return ""  # it makes no claim
    visible = np.asarray(mask.visible(np.array(queries)[:, None], np.array(keys)[None, :]))
    if not any_visible and visible.any():
        return "that no pair is visible"
    if all_visible and not visible.all():
        return "that all pairs are visible"
    return ""


def compare_kernels(subject: Subject) -> list[Agreement]:
    """Every kernel of the table against `dense`, on random queries, keys and values.

    Equal outputs mean the same visible keys, at the same rotary distances, counted as often. A
    kernel for other devices is only asked whether it can evaluate the method.
    """
    trial = _Trial(subject)
    return [trial.compare(name) for name in kernels.TABLE if name != "dense"]


def compare_cache(subject: Subject) -> Agreement:
    """One token decoded over the cache of a prompt, against the same token of a whole text."""
    return _Trial(subject).compare_cache()


def _fewest_heads(subject: Subject) -> int:
    """Enough heads to show what each set of heads does."""
    pieces = subject.pieces
    wanted = len(head_sets(pieces, *subject.heads))
    for count in FEWEST_HEADS:
        try:
            if len(head_sets(pieces, count, count)) == wanted:
                return count
        except ValueError:  # so few heads leave a share without one
            continue
    return subject.heads[0]


class _Trial:
    """Attention of one random text in each kind of layer."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        T = min(subject.seq_len, TOKENS)
        self.T = T - T % BLOCK if T > BLOCK else T
        self.layers = Layers(subject.kinds)
        base = dataclasses.replace(subject.base, head_dim=min(subject.base.head_dim, 16))
        self.rotation = rotation_for(subject.scaling, subject.attention, base, self.T)
        rng = np.random.default_rng(1)
        heads = _fewest_heads(subject)
        self.num_heads = heads, heads
        shape = (1, self.T, heads, base.head_dim)
        self.qkv = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3)]

    def compare(self, name: Kernel) -> Agreement:
        """A kernel against `dense`, in every kind of layer."""
        spec = kernels.TABLE[name]
        here = jax.default_backend()
        platform = spec.platforms[0] if spec.platforms else here
        kind = 0 if len(self.subject.kinds) == 1 else jnp.int32(0)
        requests = requests_of(
            self.subject.attention,
            self.layers,
            kind,
            self.num_heads,
            platform=platform,
            seq_len=self.subject.seq_len,
            dtype=jnp.bfloat16 if spec.platforms else jnp.float32,
            packed=False,
            cut=spec.cut,
        )
        for request in requests:
            if reason := kernels.refusal(name, request):
                return Agreement(name, "refused", reason)
        if spec.platforms and here not in spec.platforms:
            return Agreement(name, "not run", f"it can do this method, on {platform}")
        if spec.cut:
            return self._compare_ring(name)
        dtype = jnp.bfloat16 if spec.platforms else jnp.float32
        outputs = (self._run(name, kind, dtype) for kind in range(len(self.subject.kinds)))
        return self._verdict(name, outputs, 0.0 if dtype == jnp.float32 else TOLERANCE_16_BIT)

    def _compare_ring(self, name: Kernel) -> Agreement:
        """The kernel for sequences that are cut over devices, on `RING` of them."""
        if len(jax.devices()) < RING:
            return Agreement(name, "not run", "it needs several devices, and there is one")
        if self.T % (2 * RING):
            return Agreement(name, "not run", f"{self.T} tokens do not divide into its chunks")
        mesh = Mesh(np.array(jax.devices()[:RING]), ("seq",))
        sharding = NamedSharding(mesh, PartitionSpec(None, "seq", None, None))
        order = zigzag(self.T, RING)
        back = np.argsort(order)

        def on_ring(kind: int) -> np.ndarray:
            q, k, v = (x[:, order] for x in self.qkv)
            attend = make_attention(
                self.subject.attention,
                name,
                self.rotation,
                jnp.asarray(order, jnp.int32)[None],
                sharding_of=lambda _: sharding,
                cut=True,
                layers=self.layers,
            )
            out = jax.jit(lambda q, k, v: attend(q, k, v, None, None, kind)[0])(q, k, v)
            return np.asarray(out)[:, back]

        return self._verdict(name, (on_ring(kind) for kind in range(len(self.subject.kinds))))

    def compare_cache(self) -> Agreement:
        """Some tokens, decoded one at a time over a cache, against `dense` over the whole text."""
        attention, T = self.subject.attention, self.T
        rotated = caches_rotated(attention, re_rotated=False)
        shared = {"rotated": rotated, "layers": self.layers}
        positions = jnp.arange(T)[None]
        _, _, heads, dim = self.qkv[0].shape

        def decoded(length: Any, q: Any, k: Any, v: Any, kind: int) -> Any:
            cache = empty_cache(1, (1, heads, T + 1, dim), "float32")
            fill = prefill(attention, "dense", self.rotation, positions, **shared)
            _, cache = fill(q, k, v, cache, None, kind)
            step = decode(
                attention,
                self.rotation,
                length[None],
                0,
                prompt_slots=T,
                continuations=1,
                new_tokens=1,
                **shared,
            )
            token_q, token_k, token_v = (
                jax.lax.dynamic_slice_in_dim(x, length, 1, 1) for x in (q, k, v)
            )
            return step(token_q, token_k, token_v, cache, None, kind)[0][:, 0]

        run = jax.jit(decoded, static_argnums=4)
        lengths = sorted({min(T - 1, length) for length in (T - 1, T // 2, T // 4 + 1, 3, 1)})
        worst = (0.0, 0)
        for kind in range(len(self.subject.kinds)):
            expected = self._run("dense", kind)
            for length in lengths:
                out = np.asarray(run(jnp.int32(length), *self.qkv, kind))
                worst = max(worst, (float(abs(out - expected[:, length]).max()), length))
        difference, length = worst
        if difference > TOLERANCE:
            detail = f"query {length:,} of {T:,} tokens differs by {difference:.2g}"
            return Agreement("cache", "different", detail)
        return Agreement("cache", "same", f"{len(lengths)} queries of {T:,} tokens")

    def _run(self, name: Kernel, kind: int, dtype: Any = jnp.float32) -> np.ndarray:
        """The output [1, T, N, H] of a kernel in layers of one kind."""
        attend = make_attention(
            self.subject.attention,
            name,
            self.rotation,
            jnp.arange(self.T)[None],
            layers=self.layers,
        )

        def output(q: Any, k: Any, v: Any) -> Any:
            return attend(q, k, v, None, None, kind)[0]

        return np.asarray(jax.jit(output)(*(x.astype(dtype) for x in self.qkv)), np.float32)

    def _verdict(
        self, name: str, outputs: Iterator[np.ndarray], tolerance: float = 0.0
    ) -> Agreement:
        """Compare outputs, one per kind of layer, with those of `dense`."""
        for kind, out in enumerate(outputs):
            difference = abs(out - self._run("dense", kind)).max((0, 2, 3))
            wrong = np.flatnonzero(~(difference <= max(tolerance, TOLERANCE)))
            if len(wrong):
                detail = (
                    f"{len(wrong):,} of {self.T:,} queries differ from dense, the first is "
                    f"{wrong[0]:,}, by up to {difference.max():.2g}"
                )
                return Agreement(name, "different", detail)
        return Agreement(name, "same", f"{self.T:,} tokens")
