"""What a run trains: a pattern over the paths of the parameters splits their tree in two.

Gradients, optimiser state and checkpoints see the trained part alone; the rest is kept in the compute dtype, which
gives the same forward pass, because every product casts its parameters to it.
"""

import abc
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.model import lora
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, param_shapes

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEARS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
WHOLE = {"norm": r"norm\.weight$", "embed_tokens": r"^embed_tokens\.", "lm_head": r"^lm_head\."}
"""What may be trained whole beside adapters, and the paths it means."""


@dataclasses.dataclass(frozen=True)
class Trainable(abc.ABC):
    """A choice of parameters, and the form that they are trained in."""

    type_tag: ClassVar[str] = "trainable/"

    @abc.abstractmethod
    def pattern(self, config: LlamaConfig) -> str:
        """Regular expression over dotted paths of `init`ialised parameters. Raises ValueError if the model lacks them."""

    def init(self, params: Params, seed: int) -> Params:
        """A plain tree as it is trained: adapters added, or the stack of layers cut."""
        return params

    def dropout_seeds(self, seed: int, step: int, accumulate: int) -> dict[str, np.ndarray]:
        """What a step's microbatches need beside the data: arrays [accumulate, ...], a function of the arguments."""
        return {}

    def materialize(self, params: Params, micro: Mapping[str, Any]) -> Params:
        """All parameters as one microbatch runs them; `micro` holds its part of `dropout_seeds`."""
        return params

    def merge(self, params: Params) -> Params:
        """All parameters as a plain tree again, float32 where it had to be computed."""
        return params

    def shapes(self, config: LlamaConfig) -> tuple[Params, Params]:
        """(trained, rest) as `jax.ShapeDtypeStruct`, float32. Raises ValueError like `pattern`."""
        pattern = self.pattern(config)
        return split(
            jax.eval_shape(functools.partial(self.init, seed=0), param_shapes(config)), pattern
        )

    def base_shapes(self, config: LlamaConfig, dtype: str) -> Params:
        """The plain tree as `jax.ShapeDtypeStruct`: in `dtype` what is frozen whole, float32 what is trained."""
        plain, (_, rest) = param_shapes(config), self.shapes(config)
        frozen = {str(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(rest)}

        def narrow(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            kept = frozen.get(str(path)) == leaf.shape  # a stack that is cut is trained in part
            return jax.ShapeDtypeStruct(leaf.shape, dtype if kept else leaf.dtype)

        return jax.tree_util.tree_map_with_path(narrow, plain)


@dataclasses.dataclass(frozen=True)
class Full(Trainable):
    """Every parameter."""

    def pattern(self, config: LlamaConfig) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class LoRA(Trainable):
    """Adapters s A B beside the `targets` of every layer (arXiv 2106.09685); the rest stays as it is, but for `modules_to_save`.

    s = alpha / rank, or alpha / sqrt(rank) with `rslora` (arXiv 2312.03732). modules_to_save: any of "norm", "embed_tokens",
    "lm_head", trained whole; LongLoRA's recipe is ("norm", "embed_tokens") (arXiv 2309.12307). Raises ValueError for
    values that cannot train.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ATTENTION
    rslora: bool = False
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
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
        for name, given, known in (
            ("targets", self.targets, LINEARS),
            ("modules_to_save", self.modules_to_save, tuple(WHOLE)),
        ):
            if unknown := [x for x in given if x not in known]:
                raise ValueError(
                    f"trainable.{name}: {unknown[0]!r} is not one of {', '.join(known)}"
                )
            if len(set(given)) < len(given):
                raise ValueError(f"trainable.{name} names something twice: {', '.join(given)}")

    @property
    def scale(self) -> float:
        """s, which is never trained."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def pattern(self, config: LlamaConfig) -> str:
        if "lm_head" in self.modules_to_save and config.tie_word_embeddings:
            raise ValueError(
                "trainable.modules_to_save: this model's lm_head is its embedding; name embed_tokens instead"
            )
        return "|".join([r"\.lora_[ab]$", *(WHOLE[name] for name in self.modules_to_save)])

    def init(self, params: Params, seed: int) -> Params:
        return lora.add_adapters(params, self.targets, self.rank, seed)

    def dropout_seeds(self, seed: int, step: int, accumulate: int) -> dict[str, np.ndarray]:
        if not self.dropout:
            return {}
        draws = [(seed % 2**32, step, micro) for micro in range(accumulate)]
        return {"dropout": np.array(draws, np.uint32)}

    def materialize(self, params: Params, micro: Mapping[str, Any]) -> Params:
        key = None
        if "dropout" in micro:
            seed, step, index = micro["dropout"]
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), index)
        return lora.materialize(params, self.targets, self.scale, self.dropout, key)

    def merge(self, params: Params) -> Params:
        return lora.merge(params, self.targets, self.scale)


@dataclasses.dataclass(frozen=True)
class LastLayers(Trainable):
    """The last `n` layers, the final norm and the output projection; a tied projection stays, it is the embedding.

    The layers before them are a segment of their own, which has no backward pass.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"trainable.n must be at least 1, got {self.n}")

    def pattern(self, config: LlamaConfig) -> str:
        if self.n > config.num_hidden_layers:
            raise ValueError(
                f"trainable.n {self.n} is more than the {config.num_hidden_layers} layers of the model"
            )
        last = 1 if self.n < config.num_hidden_layers else 0
        return rf"^segments\.{last}\.|^norm\.|^lm_head\."

    def init(self, params: Params, seed: int) -> Params:
        stack = params["segments"]["0"]
        first = jax.tree.leaves(stack)[0].shape[0] - self.n
        parts = [(0, first), (first, None)] if first else [(0, None)]
        cut = {
            str(i): jax.tree.map(lambda x, a=a, b=b: x[a:b], stack)
            for i, (a, b) in enumerate(parts)
        }
        return {**params, "segments": cut}

    def merge(self, params: Params) -> Params:
        parts = [params["segments"][str(i)] for i in range(len(params["segments"]))]
        return {**params, "segments": {"0": jax.tree.map(lambda *x: jnp.concatenate(x), *parts)}}


TRAINABLE: dict[str, type[Trainable]] = {"full": Full, "lora": LoRA, "last-layers": LastLayers}
"""By the name that the command line uses."""


def split(params: Params, pattern: str) -> tuple[Params, Params]:
    """(leaves whose path holds a match, the others), two trees for `join`."""
    found = re.compile(pattern).search
    return _part(params, lambda path: bool(found(path))), _part(
        params, lambda path: not found(path)
    )


def _part(tree: Params, keep: Callable[[str], bool], path: tuple[str, ...] = ()) -> Params:
    out: Params = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            if inside := _part(value, keep, (*path, key)):
                out[key] = inside
        elif keep(".".join((*path, key))):
            out[key] = value
    return out


def join(one: Params, other: Params) -> Params:
    """The tree with the leaves of both."""
    out = dict(other)
    for key, value in one.items():
        out[key] = join(value, other[key]) if isinstance(value, dict) and key in other else value
    return out
