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
from typing import NamedTuple

from ctxext.interop.families import family_of
from ctxext.interop.hf_weights import Slot, slots
from ctxext.interop.lazy_tensor import STORAGE_DTYPES, LazyTensor
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
    r"(\.(?P<adapter>[^.]+?))??(\.weight)?"
)
SAVED_KEY = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<leaf>\w+)")
COPIED_KEY = re.compile(r"(?P<saved>.+)\.(original_module|modules_to_save)\.(?P<leaf>weight|bias)")
"""A name that PEFT stores besides `saved` where the vocabulary was grown, and does not read."""
SAVED_BASE = re.compile(r"(?P<module>.+)\.base_layer\.(?P<leaf>\w+)")


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """The product s B A that an adapter adds to a matrix W, [out, in] as it is stored.

    `a`: [R, in]. `b`: [out, R]. `magnitude`: with DoRA, the norm [out] that each row of the sum is
    scaled to. Of an embedding [vocabulary, D], `in` is the vocabulary and `out` D.
    """

    a: LazyTensor
    b: LazyTensor
    scale: float
    magnitude: LazyTensor | None


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """The changes of a PEFT directory to its base, by HF's names of tensors."""

    low_rank: dict[str, LowRank]
    replaced: dict[str, LazyTensor]
    """Tensors in place of the base's, to which an adapter may be added too."""


class _Part(NamedTuple):
    """A tensor of an adapter: of which module, and its part of the product or its leaf."""

    module: str
    part: str
    adapter: str | None
    key: str


def check_family(config: LlamaConfig) -> None:
    """Raise ValueError for a family whose adapters are not read or written in PEFT's form."""
    if family_of(config).modules_to_save is None:
        raise ValueError(
            f"PEFT adapters of model_type {config.family} are not supported: its files hold "
            "queries, keys and values as one matrix; export the merged model with --to hf"
        )


def is_adapter(path: Path) -> bool:
    """True for a PEFT directory."""
    return (path / CONFIG).is_file()


def read(directory: str | Path, config: LlamaConfig) -> Adapter:
    """The adapter of a PEFT directory, checked against the shape of its base; numbers stay on disk.

    Raises ValueError naming the key or tensor for what PEFT would not load on this base, or ctxext
    cannot merge exactly.
    """
    directory = Path(directory)
    if not is_adapter(directory):
        raise ValueError(_no_adapter(directory))
    settings = read_settings(directory / CONFIG)
    check_family(config)
    base = slots(param_shapes(config))
    stored = _open(directory)
    try:
        parts = [_parse(key) for key in stored]
        _check_tied(config, [f"{part.module}.weight" for part in parts])
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
    return Adapter(low_rank, replaced)


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
    base: dict[str, Slot],
) -> tuple[dict[str, LowRank], dict[str, LazyTensor]]:
    """(adapters, tensors in place of the base's), by HF's names."""
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
            products.setdefault(part.module, {})[part.part] = tensor
            continue
        leaf = part.part.removeprefix("base_layer.")
        name = f"{part.module}.{leaf}"
        # PEFT stores the base's own layer too where an embedding has an adapter.
        is_embedding = part.module.endswith(("embed_tokens", "lm_head"))
        is_base_layer = leaf != part.part
        fits = is_base_layer == settings.has_adapter(part.module)
        if name not in base or not fits or (is_base_layer and not is_embedding):
            raise ValueError(
                f"it holds {part.key:.150}, which is not part of a LoRA of this model; save the "
                "adapter with PEFT's save_pretrained"
            )
        _check_shape(part.key, tensor, base[name].shape)
        replaced[name] = tensor
    low_rank = {
        f"{module}.weight": _product(module, found, settings, base)
        for module, found in products.items()
    }
    return low_rank, replaced


def _product(
    module: str, found: dict[str, LazyTensor], settings: AdapterSettings, base: dict[str, Slot]
) -> LowRank:
    """The adapter of one module."""
    name = f"{module}.weight"
    slot = base.get(name)
    if slot is None or len(slot.shape) != 2:
        raise ValueError(f"it has an adapter for {module:.150}, which this model does not have")
    if not settings.has_adapter(module):
        raise ValueError(
            f"it has an adapter for {module}, which {CONFIG} does not name, so that PEFT ignores "
            "it; correct target_modules or layers_to_transform"
        )
    outputs, inputs = slot.shape
    prefix = ""
    if module.endswith("embed_tokens"):
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
        _check_shape(f"{module}.lora_{part}", found[part], shape)
    unknown = sorted(found.keys() - shapes.keys())
    if unknown:
        raise ValueError(f"it holds lora_{unknown[0]} of {module}, which {CONFIG} does not expect")
    return LowRank(
        found[f"{prefix}A"],
        found[f"{prefix}B"],
        settings.scale_of(module),
        found.get("magnitude_vector"),
    )


def _check_shape(key: str, tensor: LazyTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape == shape:
        return
    text = f"{key} has shape {list(tensor.shape)}, this base needs {list(shape)}"
    is_vocabulary = any(part in key for part in ("embed_tokens", "lm_head"))
    grown = [new - old for new, old in zip(tensor.shape, shape, strict=False) if new != old]
    if is_vocabulary and len(tensor.shape) == len(shape) and len(grown) == 1 and grown[0] > 0:
        raise ValueError(
            f"{text}: the vocabulary was grown by {grown[0]} tokens; resize the base's embeddings, "
            f"{WAY_OUT}"
        )
    raise ValueError(f"{text}; is it of another base or rank?")


def _check_complete(
    settings: AdapterSettings,
    base: dict[str, Slot],
    low_rank: dict[str, LowRank],
    replaced: dict[str, LazyTensor],
) -> None:
    """Raise ValueError for a module that PEFT would look for in the adapter, and not find."""
    for name, slot in base.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight":
            continue
        is_matrix = len(slot.shape) == 2
        if is_matrix and settings.has_adapter(module) and name not in low_rank:
            raise ValueError(f"it lacks the adapter of {module}, which {CONFIG} names")
        if settings.is_saved_whole(module) and name not in replaced:
            raise ValueError(f"it lacks {name}, which {CONFIG} names in modules_to_save")


def _check_tied(config: LlamaConfig, names: Iterable[str]) -> None:
    if not config.tie_word_embeddings:
        return
    for name in names:
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            raise ValueError(
                f"it changes {name}, but the embedding of this model is its output projection too, "
                "which PEFT separates; merge the adapter with PEFT, set tie_word_embeddings to "
                "false, then import the result"
            )


def _trainable_params(
    directory: Path, config: LlamaConfig, base: dict[str, Slot]
) -> dict[str, LazyTensor]:
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
            if name not in base:
                raise ValueError(f"{key:.150} is not a tensor of this base")
            _check_shape(key, tensor, base[name].shape)
            tensors[name] = tensor
        _check_tied(config, tensors)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    logging.getLogger("ctxext").warning(
        "%s is merged too, as LongLoRA does; PEFT by itself passes over it. An adapter carries no "
        "frequencies: give those it was trained with, such as --method linear --factor 4",
        path,
    )
    return tensors
