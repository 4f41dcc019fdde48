"""PEFT directories that others wrote: what an adapter adds to the base, and what it replaces.

W + s B A for every adapter (arXiv 2106.09685), with DoRA scaled to a trained norm (arXiv
2402.09353), and tensors that were trained whole; next to LongLoRA's adapters (arXiv 2309.12307)
those are in a file of their own.
"""

import dataclasses
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.interop import family_tensors
from ctxext.interop.families import family_of
from ctxext.interop.hf_weights import slots
from ctxext.interop.lazy_tensor import STORAGE_DTYPES, LazyTensor
from ctxext.interop.low_rank import LowRank, from_stored
from ctxext.interop.peft_settings import WAY_OUT, AdapterSettings, read_settings
from ctxext.interop.stored_names import without_wrappers
from ctxext.interop.unread_weights import AS_AN_ADAPTER, warn_of_unread
from ctxext.interop.weight_comparison import describe_difference, same_numbers
from ctxext.interop.weight_files import ADAPTER_FILES, TRAINABLE_PARAMS, find_sets, open_set
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import param_shapes

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
LORA_KEY = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(\.(?P<adapter>(?!bias$)[^.]+?))??(\.weight)?"
)
SAVED_KEY = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<leaf>\w+)")
COPIED_KEY = re.compile(r"(?P<saved>.+)\.(original_module|modules_to_save)\.(?P<leaf>weight|bias)")
"""A name that PEFT stores besides `saved` where the vocabulary was grown, and does not read."""
SAVED_BASE = re.compile(r"(?P<module>.+)\.base_layer\.(?P<leaf>\w+)")


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """The changes of a PEFT directory to its base, by Llama's names of tensors."""

    low_rank: dict[str, LowRank]
    replaced: dict[str, LazyTensor]
    """Tensors in place of the base's, to which an adapter may be added too."""


class _Part(NamedTuple):
    """A tensor of an adapter: of which module, and its part of the product or its leaf."""

    module: str
    part: str
    adapter: str | None
    key: str


class _Base(NamedTuple):
    """The tensors of the base by the names of its family, with their shapes."""

    shapes: dict[str, tuple[int, ...]]
    embedding: str
    """The module of the embedding."""
    lm_head: str
    """The module of the output projection."""
    layers: str
    """The prefix of all layers."""

    @classmethod
    def of(cls, config: LlamaConfig) -> "_Base":
        family = family_of(config)
        named = slots(param_shapes(config))
        tensors = {name: LazyTensor(slot.shape, "", _not_read) for name, slot in named.items()}
        stored = family_tensors.to_stored(tensors, config)
        return cls(
            {name: tensor.shape for name, tensor in stored.items()},
            family.embedding.removesuffix(".weight"),
            family.lm_head.removesuffix(".weight"),
            f"{family.layers}.",
        )

    @property
    def matrices(self) -> list[str]:
        """The modules of the layers that multiply."""
        return [
            name.removesuffix(".weight")
            for name, shape in self.shapes.items()
            if name.startswith(self.layers) and len(shape) == 2
        ]

    def is_of_vocabulary(self, name: str) -> bool:
        """Whether a name has that of the embedding or of the output projection in it."""
        return any(module.rpartition(".")[2] in name for module in (self.embedding, self.lm_head))


def _not_read(index: Any = None) -> Any:
    raise AssertionError("only its shape is known")


def is_adapter(path: Path) -> bool:
    """True for a PEFT directory."""
    return (path / CONFIG).is_file()


def read(directory: str | Path, config: LlamaConfig) -> Adapter:
    """The adapter of a PEFT directory, checked against the shape of its base.

    Numbers stay on disk until a tensor is read, but for products of fused matrices.
    Raises ValueError naming the key or tensor for what PEFT would not load on this base, or ctxext
    cannot merge exactly.
    """
    directory = Path(directory)
    if not is_adapter(directory):
        raise ValueError(_no_adapter(directory))
    base = _Base.of(config)
    settings = read_settings(directory / CONFIG).of_base(base.matrices, _default_targets(config))
    stored = _open(directory)
    try:
        parts = [_parse(key) for key in stored]
        _check_tied(config, base, [part.module for part in parts])
        low_rank, replaced = _sort(stored, parts, settings, base)
        _check_complete(settings, base, low_rank, replaced)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None
    for name, tensor in _trainable_params(directory, config, base).items():
        if name in replaced and not same_numbers(name, tensor, replaced[name]):
            raise ValueError(
                f"{directory}: {name} differs between the adapter and {TRAINABLE_PARAMS}; keep one "
                "of the two"
            )
        replaced[name] = tensor
    names = list(slots(param_shapes(config)))
    kept = [name for name in names if family_tensors.stored_name(name, config) in replaced]
    return Adapter(
        from_stored(low_rank, names, config), family_tensors.from_stored(replaced, kept, config)
    )


def _default_targets(config: LlamaConfig) -> tuple[str, ...]:
    """PEFT's choice for an adapter that does not name its targets."""
    fused = family_of(config).fused
    return ("q_proj", "v_proj") if fused is None else (fused.name.rpartition(".")[2],)


def _no_adapter(directory: Path) -> str:
    inner = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
    if inner:
        return f"{directory} has no {CONFIG}; give one of its directories: {', '.join(inner)[:200]}"
    return f"{directory} has no {CONFIG}; give a PEFT directory"


def _open(directory: Path) -> dict[str, LazyTensor]:
    first, *others = find_sets(directory, ADAPTER_FILES)
    stored = open_set(directory, first)
    for other in others:
        difference = describe_difference(stored, open_set(directory, other), (first, other))
        if difference:
            raise ValueError(
                f"{directory} has two adapters that are not the same, {first}, which PEFT takes, "
                f"and {other} ({difference}); keep one of the two"
            )
    others.append(TRAINABLE_PARAMS)
    warn_of_unread(directory, first, others, as_in="PEFT", usable=AS_AN_ADAPTER)
    return stored


def names_unknown_to_peft(directory: Path) -> list[str]:
    """The names in an adapter's file that PEFT passes over, because of what is before them."""
    stored = open_set(directory, find_sets(directory, ADAPTER_FILES)[0])
    return sorted(key for key in stored if key != PREFIX + _plain(key))


def _plain(key: str) -> str:
    """A key without what training tools and PEFT put before it."""
    return without_wrappers(key).removeprefix(PREFIX)


def _parse(key: str) -> _Part:
    plain = _plain(key)
    match = LORA_KEY.fullmatch(plain)
    if match:
        return _Part(match["module"], match["part"], match["adapter"], key)
    match = SAVED_KEY.fullmatch(plain)
    if match:
        return _Part(match["module"], match["leaf"], match["adapter"], key)
    match = SAVED_BASE.fullmatch(plain)
    if match:
        return _Part(match["module"], f"base_layer.{match['leaf']}", None, key)
    module, _, leaf = plain.rpartition(".")
    return _Part(module, leaf, None, key)


def _sort(
    stored: dict[str, LazyTensor],
    parts: list[_Part],
    settings: AdapterSettings,
    base: _Base,
) -> tuple[dict[str, LowRank], dict[str, LazyTensor]]:
    """(adapters, tensors in place of the base's), by the names of the family."""
    adapters = sorted({part.adapter for part in parts if part.adapter is not None})
    if len(adapters) > 1:
        raise ValueError(
            f"it holds several adapters, {', '.join(adapters)[:200]}; save one of them: "
            "save_pretrained(DIR, selected_adapters=[NAME])"
        )
    products: dict[str, dict[str, LazyTensor]] = {}
    replaced: dict[str, LazyTensor] = {}
    for part in parts:
        tensor = stored[part.key]
        copied = COPIED_KEY.fullmatch(part.key)
        if copied and f"{copied['saved']}.{copied['leaf']}" in stored:
            continue
        if tensor.dtype not in STORAGE_DTYPES:
            tensor.read()  # raises the reader's own error
        if part.part in ("A", "B", "embedding_A", "embedding_B", "magnitude_vector"):
            found = products.setdefault(part.module, {})
            if part.part in found:
                raise ValueError(f"it holds lora_{part.part} of {part.module} twice; keep one")
            found[part.part] = tensor
            continue
        leaf = part.part.removeprefix("base_layer.")
        name = f"{part.module}.{leaf}"
        # PEFT stores the base's own layer too where an embedding has an adapter.
        is_embedding = part.module in (base.embedding, base.lm_head)
        is_base_layer = leaf != part.part
        fits = is_base_layer == settings.has_adapter(part.module)
        if name not in base.shapes or not fits or (is_base_layer and not is_embedding):
            raise ValueError(
                f"it holds {part.key:.150}, which is not part of a LoRA of this model; save the "
                "adapter with PEFT's save_pretrained"
            )
        _check_shape(part.key, tensor, base.shapes[name], base)
        if name in replaced:
            raise ValueError(f"it holds {name} twice; keep one")
        replaced[name] = tensor
    low_rank = {
        f"{module}.weight": _product(module, found, settings, base)
        for module, found in products.items()
    }
    return low_rank, replaced


def _product(
    module: str, found: dict[str, LazyTensor], settings: AdapterSettings, base: _Base
) -> LowRank:
    """The adapter of one module."""
    of_matrix = base.shapes.get(f"{module}.weight", ())
    if len(of_matrix) != 2:
        raise ValueError(f"it has an adapter for {module:.150}, which this model does not have")
    if not settings.has_adapter(module):
        raise ValueError(
            f"it has an adapter for {module}, which {CONFIG} does not name, so that PEFT ignores "
            "it; correct target_modules or layers_to_transform"
        )
    outputs, inputs = of_matrix
    prefix = ""
    if module == base.embedding:
        prefix = "embedding_"
        outputs, inputs = inputs, outputs
    rank = settings.rank_of(module)
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}A": (rank, inputs),
        f"{prefix}B": (outputs, rank),
    }
    if settings.dora:
        shapes["magnitude_vector"] = (outputs,)
    for part, shape in shapes.items():
        if part not in found:
            raise ValueError(f"it lacks lora_{part} of {module}")
        _check_shape(f"{module}.lora_{part}", found[part], shape, base)
    unknown = sorted(found.keys() - shapes.keys())
    if unknown:
        raise ValueError(f"it holds lora_{unknown[0]} of {module}, which {CONFIG} does not expect")
    return LowRank(
        found[f"{prefix}A"],
        found[f"{prefix}B"],
        settings.scale_of(module),
        found.get("magnitude_vector"),
    )


def _check_shape(key: str, tensor: LazyTensor, shape: tuple[int, ...], base: _Base) -> None:
    if tensor.shape == shape:
        return
    text = f"{key} has shape {list(tensor.shape)}, this base needs {list(shape)}"
    is_vocabulary = base.is_of_vocabulary(key)
    grown = [new - old for new, old in zip(tensor.shape, shape, strict=False) if new != old]
    if is_vocabulary and len(tensor.shape) == len(shape) and len(grown) == 1 and grown[0] > 0:
        raise ValueError(
            f"{text}: the vocabulary was grown by {grown[0]} tokens; resize the base's embeddings, "
            f"{WAY_OUT}"
        )
    raise ValueError(f"{text}; is it of another base or rank?")


def _check_complete(
    settings: AdapterSettings,
    base: _Base,
    low_rank: dict[str, LowRank],
    replaced: dict[str, LazyTensor],
) -> None:
    """Raise ValueError for a module that PEFT would look for in the adapter, and not find."""
    for name, shape in base.shapes.items():
        module = name.rpartition(".")[0]
        is_matrix = len(shape) == 2
        if is_matrix and settings.has_adapter(module) and name not in low_rank:
            raise ValueError(f"it lacks the adapter of {module}, which {CONFIG} names")
        if settings.is_saved_whole(module) and name not in replaced:
            raise ValueError(f"it lacks {name}, which {CONFIG} names in modules_to_save")


def _check_tied(config: LlamaConfig, base: _Base, modules: Iterable[str]) -> None:
    if not config.tie_word_embeddings:
        return
    leaves = tuple(module.rpartition(".")[2] for module in (base.embedding, base.lm_head))
    for module in modules:
        if module.endswith(leaves):
            raise ValueError(
                f"it changes {module}.weight, but the embedding of this model is its output "
                "projection too, which PEFT separates; merge the adapter with PEFT, set "
                "tie_word_embeddings to false, then import the result"
            )


def _trainable_params(directory: Path, config: LlamaConfig, base: _Base) -> dict[str, LazyTensor]:
    """The tensors that LongLoRA's own file puts in place of the base's."""
    if not (directory / TRAINABLE_PARAMS).is_file():
        return {}
    path = directory / TRAINABLE_PARAMS
    derived = family_of(config).derived_tensors
    tensors: dict[str, LazyTensor] = {}
    try:
        for key, tensor in open_set(directory, TRAINABLE_PARAMS).items():
            name = _plain(key)
            if derived.fullmatch(name):
                continue
            if name not in base.shapes:
                raise ValueError(f"{key:.150} is not a tensor of this base")
            _check_shape(key, tensor, base.shapes[name], base)
            tensors[name] = tensor
        _check_tied(config, base, [name.rpartition(".")[0] for name in tensors])
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    logging.getLogger("ctxext").warning(
        "%s is merged too, as LongLoRA does; PEFT by itself passes over it. An adapter carries no "
        "frequencies: give those it was trained with, such as --method linear --factor 4",
        path,
    )
    return tensors
