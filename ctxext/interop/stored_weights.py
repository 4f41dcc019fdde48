"""The weights of a Hugging Face directory, checked against its config.json before they are read."""

import functools
import logging
import math
from pathlib import Path

import numpy as np

from ctxext.interop.families import family_of
from ctxext.interop.family_tensors import from_stored, to_stored
from ctxext.interop.hf_weights import slots
from ctxext.interop.lazy_tensor import STORAGE_DTYPES, LazyTensor
from ctxext.interop.stored_names import describe_unknown, plain_names, without_wrappers
from ctxext.interop.unread_weights import warn_of_unread
from ctxext.interop.weight_comparison import describe_difference, same_numbers
from ctxext.interop.weight_files import (
    MODEL_FILES,
    TRAINABLE_PARAMS,
    find_sets,
    open_set,
    set_files,
)
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import param_shapes
from ctxext.terminal import printable_line

SLOW_TO_COMPARE = 10**9
"""Numbers whose comparison takes more than some seconds, and is announced."""


def find_weights(directory: str | Path, config: LlamaConfig) -> dict[str, LazyTensor]:
    """The tensors of an HF directory, before they are read, in the order of the forward pass.

    A warning names weights in the directory that transformers does not read either. Raises
    ValueError naming the tensor for one that is missing, unknown or of another shape, and naming
    both for two sets of weights that differ.
    """
    directory = Path(directory)
    first, *others = find_sets(directory, MODEL_FILES)
    tensors = _open(directory, first, config)
    _check_trainable_params(directory, first, tensors)
    for other in others:
        difference = _compare(directory, first, other, config, _stamps(directory))
        if difference:
            raise ValueError(
                f"{directory} has two sets of weights that are not the same, {first}, which "
                f"transformers takes, and {other} ({difference}); keep one of the two"
            )
    read = [file for name in (first, *others) for file in set_files(directory, name)]
    warn_of_unread(directory, first, [*read, TRAINABLE_PARAMS], as_in="transformers")
    return tensors


def _check_trainable_params(directory: Path, first: str, tensors: dict[str, LazyTensor]) -> None:
    """Raise ValueError for LongLoRA's file of trained tensors, unless they are the model's own."""
    if not (directory / TRAINABLE_PARAMS).is_file():
        return
    for name, tensor in open_set(directory, TRAINABLE_PARAMS).items():
        own = tensors.get(name)
        if own is None or own.shape != tensor.shape or not same_numbers(name, tensor, own):
            raise ValueError(
                f"{name:.99} in {directory / TRAINABLE_PARAMS} is not that of {first}; LongLoRA "
                "trained it next to an adapter: give the adapter and this file as one directory to "
                "--adapter, or remove this file"
            )


def _stamps(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of all files, by which a comparison is remembered."""
    stats = {path.name: path.stat() for path in directory.iterdir() if path.is_file()}
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in sorted(stats.items()))


@functools.lru_cache(maxsize=16)
def _compare(
    directory: Path, one: str, other: str, config: LlamaConfig, _: tuple[tuple[str, int, int], ...]
) -> str:
    """How the second set differs from the first; empty if both hold the same model."""
    tensors = _open(directory, one, config)
    if sum(math.prod(tensor.shape) for tensor in tensors.values()) > SLOW_TO_COMPARE:
        logging.getLogger("ctxext").warning(
            "%s has two sets of weights, %s and %s; all of their numbers are compared first",
            directory,
            one,
            other,
        )
    try:
        others = _open(directory, other, config)
        return describe_difference(tensors, others, (one, other))
    except ValueError as error:
        return str(error)


def _open(directory: Path, file: str, config: LlamaConfig) -> dict[str, LazyTensor]:
    """The tensors of one set of weights, by the names of the family."""
    family = family_of(config)
    opened = open_set(directory, file)
    if config.num_hidden_layers > len(opened):  # before anything is built for each layer
        raise ValueError(
            f"config.json in {directory} has {config.num_hidden_layers} layers, but there are only "
            f"{len(opened)} tensors; one of the two is of another model"
        )
    named = slots(param_shapes(config))
    shapes = {name: LazyTensor(slot.shape, "", np.empty) for name, slot in named.items()}
    expected = {name: tensor.shape for name, tensor in to_stored(shapes, config).items()}
    try:
        plain = plain_names(opened, {*expected, family.lm_head}, family)
    except ValueError as error:
        raise ValueError(f"{directory / file}: {error}") from None
    wrapped = next((name for name in opened if without_wrappers(name) != name), None)
    if wrapped:
        logging.getLogger("ctxext").warning(
            "%s holds %s: the part that a training tool added is left out; transformers takes "
            "random numbers for such tensors",
            directory / file,
            printable_line(wrapped),
        )
    stored = {
        plain[name]: tensor
        for name, tensor in opened.items()
        if not family.derived_tensors.fullmatch(plain[name])
    }
    if config.tie_word_embeddings and family.embedding not in stored and family.lm_head in stored:
        stored[family.embedding] = stored.pop(family.lm_head)
    _check_tensors(directory, config, stored, expected)
    return from_stored(stored, list(named), config)


def _check_tensors(
    directory: Path,
    config: LlamaConfig,
    stored: dict[str, LazyTensor],
    expected: dict[str, tuple[int, ...]],
) -> None:
    family = family_of(config)
    missing = sorted(expected.keys() - stored.keys())
    unknown = sorted(stored.keys() - expected.keys())
    hint = _hint(unknown)
    if missing:
        if missing == [family.lm_head] and not hint:
            hint = (
                "; set tie_word_embeddings if the output shares the embedding, or save the model "
                "with its head (AutoModelForCausalLM)"
            )
        raise ValueError(f"{directory} lacks {len(missing)} tensors, first {missing[0]}{hint}")
    for name, shape in expected.items():
        tensor = stored[name]
        if tensor.dtype not in STORAGE_DTYPES:
            tensor.read()  # raises the reader's own error
        if tensor.shape != shape:
            raise ValueError(
                f"{name} in {directory} has shape {list(tensor.shape)}, but config.json requires "
                f"{list(shape)}; one of the two is of another model"
            )
    if unknown == [family.lm_head] and config.tie_word_embeddings:
        head = stored[family.lm_head]
        embedding = stored[family.embedding]
        if head.shape != embedding.shape or not same_numbers(family.lm_head, head, embedding):
            raise ValueError(
                f"{family.lm_head} in {directory} differs from the embedding although config.json "
                "ties them; set tie_word_embeddings to false"
            )
    elif unknown:
        raise ValueError(
            f"{directory} has {len(unknown)} tensors that model_type {family.model_type} does not "
            f"have, first {unknown[0]}{hint}"
        )


def _hint(unknown: list[str]) -> str:
    """A hint at what unknown tensors come from, as the end of a sentence."""
    description = describe_unknown(unknown)
    if description:
        return f"; {description}"
    if not unknown:
        return ""
    return (
        f"; it has {len(unknown)} other tensors, such as {unknown[0]:.99}: config.json and weights "
        "are of different models, take both from one"
    )
