"""The kernels: what each can do, why it refuses, and how it is called. Nothing else chooses one.

A kernel evaluates the pieces of a method and equals `dense` wherever it does not refuse. To add
one, write its function and its `refusal` in a file of this folder, add its name to `Kernel` and
its `KernelSpec` to `TABLE`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext.attention import cudnn, splash
from ctxext.attention.bias import PositionBias
from ctxext.attention.blocked import blocked
from ctxext.attention.dense import dense
from ctxext.attention.devices import GPU, platform_of
from ctxext.attention.documents import first_tokens
from ctxext.attention.layers import LayerMask, PerKind
from ctxext.attention.request import Request
from ctxext.attention.ring import ring

Kernel = Literal["dense", "blocked", "ring", "splash", "cudnn", "auto"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
"""The names to choose from: the keys of `TABLE`, or "auto", the first automatic one that can."""


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """One kernel."""

    attend: Callable[..., Array]
    """(queries, keys, values, masks, *, segment_ids, sharding) -> [B, T, N, H]; see `evaluate`."""
    refusal: Callable[[Request], str] | None = None
    """Why it cannot do a request exactly, empty if it can; None: it can do every request."""
    platforms: tuple[str, ...] = ()
    """Where it runs; empty: everywhere."""
    cut: bool = False
    """It evaluates sequences that mesh.seq cuts over devices; the others evaluate whole ones."""
    automatic: bool = True
    """The kernel "auto" may become this one."""
    holds_scores: bool = False
    """It holds the scores [T, S] of all heads at once and recomputes none."""
    names_output: Callable[[Sequence[LayerMask]], bool] = lambda masks: True
    """Rematerialisation can keep the output of these masks, because what the gradient needs of it
    has a name (`tiles.SAVED_NAME`)."""
    takes_layers: bool = True
    """It takes what differs between layers and models: one mask per kind of layer (`PerKind`) and a
    bias; see `evaluate`."""
    reads_ahead: bool = False
    """It evaluates masks that show tokens after the query; the others visit none of those."""
    reads_chunks: bool = False
    """It can read a sequence chunk by chunk with the same result, see `cache.prefill_chunk`; the
    others take whole sequences only."""


def _dense(
    queries: Sequence[Array],
    keys: Sequence[Array],
    values: Array,
    masks: Sequence[LayerMask],
    *,
    segment_ids: Array | None,
    sharding: NamedSharding | None,
    kind: Any = None,
    bias: PositionBias | None = None,
) -> Array:
    """`dense` of a sequence with itself; the partitioner needs no help with it."""
    index = jnp.arange(values.shape[1])[None]
    first = first_tokens(masks, index, segment_ids)
    if first is not None:
        index = index - first
    return dense(
        queries,
        keys,
        values,
        masks,
        query_index=index,
        key_index=index,
        query_segments=segment_ids,
        key_segments=segment_ids,
        kind=kind,
        bias=bias,
    )


TABLE: dict[Kernel, KernelSpec] = {
    "splash": KernelSpec(splash.splash, splash.refusal, platforms=("tpu",), takes_layers=False),
    "cudnn": KernelSpec(
        cudnn.cudnn,
        cudnn.refusal,
        platforms=GPU,
        # Of a single call, the library keeps what its own gradient needs, without a name.
        names_output=lambda masks: not cudnn.is_single_call(masks),
        takes_layers=False,
    ),
    "ring": KernelSpec(ring, cut=True),
    "blocked": KernelSpec(blocked, reads_chunks=True),
    "dense": KernelSpec(
        _dense,
        automatic=False,
        holds_scores=True,
        names_output=lambda masks: False,
        reads_ahead=True,
    ),
}
"""Every kernel, in the order in which "auto" tries them."""

HOLDS_SCORES = {name for name, spec in TABLE.items() if spec.holds_scores}


def refusal(kernel: Kernel, request: Request) -> str:
    """Why a kernel cannot do a request exactly; empty if it can."""
    spec = TABLE[kernel]
    if spec.platforms and request.platform not in spec.platforms:
        return f"it does not run on {request.platform}"
    if request.cut and not spec.cut:
        return "it needs whole sequences, but mesh.seq cuts them over devices"
    if spec.cut and not request.cut:
        return "it is for sequences that mesh.seq cuts over devices"
    if not spec.reads_ahead and not _is_causal(request):
        return "it visits no token after the query, and this method shows such tokens"
    if request.bias and not spec.takes_layers:
        return "it adds no bias to scores, as ALiBi does"
    if not spec.takes_layers and any(isinstance(mask, PerKind) for mask in request.masks):
        return "the layers of this model do not all see the same tokens"
    return spec.refusal(request) if spec.refusal else ""


def _is_causal(request: Request) -> bool:
    return all(mask.causal for mask in request.masks)


def choose(kernel: Kernel, request: Request) -> Kernel:
    """The kernel that evaluates a request; never "auto".

    "auto" is the first automatic one that does not refuse, or else "dense". "blocked" and "ring"
    are one algorithm, over whole and over cut sequences: either becomes the one that fits. Raises
    ValueError for an unknown kernel and for one that refuses.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel {kernel!r} is not known; choose one of {', '.join(KERNELS)}")
    if kernel == "auto":
        automatic: list[Kernel] = [name for name, spec in TABLE.items() if spec.automatic]
        able: list[Kernel] = [name for name in automatic if not refusal(name, request)]
        kernel = able[0] if able else "dense"
    elif kernel in ("blocked", "ring"):
        kernel = "ring" if request.cut else "blocked"
    reason = refusal(kernel, request)
    if reason:
        other = "blocked or auto" if _is_causal(request) else "dense, without mesh.seq"
        raise ValueError(f"kernel {kernel!r} cannot be used: {reason}; choose {other}")
    return kernel


def explain(kernel: Kernel, request: Request) -> str:
    """The choice as a line: "blocked (auto; not cudnn: it computes in bfloat16, not float32)".

    Names what "auto" passed over among the kernels of the platform. Raises ValueError as `choose`.
    """
    chosen = choose(kernel, request)
    if chosen == kernel:
        return chosen
    reasons = [kernel]
    if kernel == "auto":
        for name, spec in TABLE.items():
            if name == chosen:
                break
            if request.platform in spec.platforms:
                reasons.append(f"not {name}: {refusal(name, request)}")
    return f"{chosen} ({'; '.join(reasons)})"


def evaluate(
    kernel: Kernel,
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b t k h"]],
    values: Float[Array, "b t k h"],
    masks: Sequence[LayerMask],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    sharding: NamedSharding | None = None,
    cut: bool = False,
    kind: Any = None,
    bias: PositionBias | None = None,
) -> Float[Array, "b t n h"]:
    """Attention of sequences with themselves, by the kernel that `choose` names.

    One rotated query and key and one mask per piece. Tokens of different segments never see each
    other, and masks count the tokens of each segment from its first. sharding: that of `values`, if
    they are on several devices. cut: it cuts sequences, whose tokens come in `ring.zigzag` order.
    kind: that of the layer, for masks that are one per kind. bias: added to the scores. Raises
    ValueError if the kernel refuses.
    """
    request = Request(
        masks=tuple(masks),
        platform=platform_of(sharding),
        seq_len=values.shape[1],
        dtype=queries[0].dtype,
        packed=segment_ids is not None,
        cut=cut,
        bias=bias is not None,
    )
    spec = TABLE[choose(kernel, request)]
    of_layer = {"kind": kind, "bias": bias} if spec.takes_layers else {}
    return spec.attend(
        queries, keys, values, masks, segment_ids=segment_ids, sharding=sharding, **of_layer
    )
