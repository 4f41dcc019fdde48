"""The parameters that a run trains: a pattern over their paths splits the tree in two.

Gradients, optimiser state and checkpoints hold the trained part alone. The rest is kept in the
compute dtype; the forward pass is the same, because every product casts its parameters to it. Under
adapters its kernels may be quantized instead (`model.quantized`).
"""

import abc
import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.model import lora
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, param_shapes
from ctxext.model.quantized import Quantize, quantized_shapes

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEARS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
MODULE_PATTERNS = {
    "norm": r"norm\.(weight|bias)$",
    "embed_tokens": r"^embed_tokens\.",
    "lm_head": r"^lm_head\.",
}
"""Modules that may be trained whole next to adapters, with the pattern of their paths."""


@dataclasses.dataclass(frozen=True)
class Trainable(abc.ABC):
    """A choice of parameters, and the form in which they are trained."""

    type_tag: ClassVar[str] = "trainable/"

    @abc.abstractmethod
    def pattern(self, config: LlamaConfig) -> str:
        """Regular expression for the dotted paths, after `init`, of the trained parameters.

        Raises ValueError if the model lacks them.
        """

    def init(self, params: Params, seed: int) -> Params:
        """The tree in the form that is trained: with adapters, or with the layers cut in two."""
        return params

    def held_shapes(self, params: Params) -> Params:
        """A tree of float shapes as training holds it: with the frozen kernels quantized.

        Raises ValueError for sizes that cannot be quantized.
        """
        return params

    def dropout_seeds(self, seed: int, step: int, accumulate: int) -> dict[str, np.ndarray]:
        """The inputs of a step's microbatches in addition to data: arrays [accumulate, ...].

        A function of the arguments alone.
        """
        return {}

    def materialize(self, params: Params, micro: Mapping[str, Any]) -> Params:
        """All parameters as a microbatch runs them; `micro` holds its part of `dropout_seeds`."""
        return params

    def merge(self, params: Params) -> Params:
        """All parameters as a plain tree again; those that had to be computed are float32."""
        return params

    def hold(self, params: Params) -> Params:
        """All parameters in the form in which a trained model on a quantized base is opened.

        Its kernels stay quantized, and `model.lora.merge_layers` makes a plain tree of it.
        """
        return params

    def shapes(self, config: LlamaConfig) -> tuple[Params, Params]:
        """(trained, frozen) as `jax.ShapeDtypeStruct`: float32, but for quantized kernels.

        Raises ValueError as `pattern` and `held_shapes`.
        """
        trained, frozen = self._float_shapes(config)
        return trained, self.held_shapes(frozen)

    def _float_shapes(self, config: LlamaConfig) -> tuple[Params, Params]:
        pattern = self.pattern(config)
        init = functools.partial(self.init, seed=0)
        return split(jax.eval_shape(init, param_shapes(config)), pattern)

    def base_shapes(self, config: LlamaConfig, dtype: str) -> Params:
        """The base's tree as `jax.ShapeDtypeStruct`: what is frozen as `held_shapes` or in `dtype`.

        The rest is float32.
        """
        _, frozen = self._float_shapes(config)
        frozen_shapes = {
            str(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(frozen)
        }

        def narrow(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            # A stack that `init` cuts has another shape: only a part of it is frozen.
            is_frozen = frozen_shapes.get(str(path)) == leaf.shape
            return jax.ShapeDtypeStruct(leaf.shape, dtype if is_frozen else leaf.dtype)

        narrowed = jax.tree_util.tree_map_with_path(narrow, param_shapes(config))
        return self.held_shapes(narrowed)


@dataclasses.dataclass(frozen=True)
class Full(Trainable):
    """Every parameter."""

    def pattern(self, config: LlamaConfig) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class LoRA(Trainable):
    """Adapters s A B next to the `targets` of every layer (arXiv 2106.09685).

    s = alpha / rank, or alpha / sqrt(rank) with `rslora` (arXiv 2312.03732). Of the other
    parameters only `modules_to_save` are trained, any of "norm", "embed_tokens" and "lm_head";
    LongLoRA's recipe is ("norm", "embed_tokens") (arXiv 2309.12307). Raises ValueError for values
    that cannot train.
    """

    rank: int = 8
    """The rank R of an adapter."""
    alpha: float = 16.0
    """The numerator of the scale s."""
    dropout: float = 0.0
    """The dropout rate of adapter inputs."""
    targets: tuple[str, ...] = ATTENTION
    """The projections that get adapters."""
    rslora: bool = False
    """Divide by sqrt(rank) instead of rank (arXiv 2312.03732)."""
    modules_to_save: tuple[str, ...] = ()
    """Other parameters that are trained in full: any of "norm", "embed_tokens", "lm_head"."""
    quantize: Quantize = "none"
    """How the frozen kernels of the layers are held: in the compute dtype, as int8 with a scale per
    output channel, as NF4 in blocks of 64 (QLoRA, arXiv 2305.14314), or that with its scales
    quantized too (nf4-double)."""

    def __post_init__(self) -> None:
        known = typing.get_args(Quantize)
        if self.quantize not in known:
            raise ValueError(
                f"trainable.quantize {self.quantize!r} is not known; choose one of "
                f"{', '.join(known)}"
            )
        if self.rank < 1:
            raise ValueError(f"trainable.rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"trainable.alpha must be positive, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"trainable.dropout must be at least 0 and below 1, got {self.dropout}"
            )
        if not self.targets:
            raise ValueError(f"trainable.targets is empty; choose from {', '.join(LINEARS)}")
        self._check_names("targets", LINEARS)
        self._check_names("modules_to_save", tuple(MODULE_PATTERNS))

    def _check_names(self, field: str, known: tuple[str, ...]) -> None:
        names = getattr(self, field)
        for name in names:
            if name not in known:
                raise ValueError(f"trainable.{field}: {name!r} is not one of {', '.join(known)}")
        if len(set(names)) < len(names):
            raise ValueError(f"trainable.{field} names something twice: {', '.join(names)}")

    @property
    def scale(self) -> float:
        """The factor s, which is not trained."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def pattern(self, config: LlamaConfig) -> str:
        if "gate_proj" in self.targets and not config.parts.gated:
            raise ValueError(
                f"trainable.targets: the MLP of {config.family} has no gate_proj; leave it out"
            )
        if "lm_head" in self.modules_to_save and config.tie_word_embeddings:
            raise ValueError(
                "trainable.modules_to_save: this model's lm_head is its embedding; "
                "name embed_tokens instead"
            )
        return "|".join(
            [r"\.lora_[ab]$", *(MODULE_PATTERNS[name] for name in self.modules_to_save)]
        )

    def init(self, params: Params, seed: int) -> Params:
        return lora.add_adapters(params, self.targets, self.rank, seed)

    def held_shapes(self, params: Params) -> Params:
        return quantized_shapes(params, self.quantize)

    def dropout_seeds(self, seed: int, step: int, accumulate: int) -> dict[str, np.ndarray]:
        if not self.dropout:
            return {}
        seeds = [(seed % 2**32, step, micro) for micro in range(accumulate)]
        return {"dropout": np.array(seeds, np.uint32)}

    def materialize(self, params: Params, micro: Mapping[str, Any]) -> Params:
        key = None
        if "dropout" in micro:
            seed, step, index = micro["dropout"]
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), index)
        return lora.materialize(params, self.targets, self.scale, self.dropout, key)

    def merge(self, params: Params) -> Params:
        return lora.merge(params, self.targets, self.scale)

    def hold(self, params: Params) -> Params:
        return lora.hold(params, self.targets, self.scale)


@dataclasses.dataclass(frozen=True)
class LastLayers(Trainable):
    """The last `n` layers, the final norm and the output projection, unless that is the embedding.

    The layers before them are a separate segment, which has no backward pass. Raises ValueError for
    `n` below 1.
    """

    n: int
    """How many of the last layers are trained."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"trainable.n must be at least 1, got {self.n}")

    def pattern(self, config: LlamaConfig) -> str:
        if self.n > config.num_hidden_layers:
            raise ValueError(
                f"trainable.n {self.n} is more than the {config.num_hidden_layers} layers "
                "of the model"
            )
        last_segment = 1 if self.n < config.num_hidden_layers else 0
        return rf"^segments\.{last_segment}\.|^norm\.|^lm_head\."

    def init(self, params: Params, seed: int) -> Params:
        stack = params["segments"]["0"]
        num_frozen = jax.tree.leaves(stack)[0].shape[0] - self.n
        if not num_frozen:
            return params
        frozen = jax.tree.map(lambda x: x[:num_frozen], stack)
        trained = jax.tree.map(lambda x: x[num_frozen:], stack)
        return {**params, "segments": {"0": frozen, "1": trained}}

    def merge(self, params: Params) -> Params:
        segments = [params["segments"][str(i)] for i in range(len(params["segments"]))]
        stack = jax.tree.map(lambda *x: jnp.concatenate(x), *segments)
        return {**params, "segments": {"0": stack}}


TRAINABLE: dict[str, type[Trainable]] = {"full": Full, "lora": LoRA, "last-layers": LastLayers}
"""Subsets of the parameters by their names on the command line."""


def split(params: Params, pattern: str) -> tuple[Params, Params]:
    """(leaves whose path matches the pattern somewhere, the others), two trees for `join`."""
    matches = re.compile(pattern).search
    matching = _filter_leaves(params, lambda path: bool(matches(path)))
    others = _filter_leaves(params, lambda path: not matches(path))
    return matching, others


def without_adapters(params: Params) -> Params:
    """The tree without the leaves of adapters: what it has of the base."""
    return split(params, r"\.lora_[ab]$")[1]


def _filter_leaves(tree: Params, keep: Callable[[str], bool], path: tuple[str, ...] = ()) -> Params:
    """The tree of the leaves whose dotted path is to be kept, without empty branches."""
    kept: Params = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            branch = _filter_leaves(value, keep, (*path, key))
            if branch:
                kept[key] = branch
        elif keep(".".join((*path, key))):
            kept[key] = value
    return kept


def join(one: Params, other: Params) -> Params:
    """The tree with the leaves of both."""
    joined = dict(other)
    for key, value in one.items():
        in_both = isinstance(value, dict) and key in other
        joined[key] = join(value, other[key]) if in_both else value
    return joined
