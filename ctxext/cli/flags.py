"""Options that argparse does not know, fields of methods and leaves, parsed by their types."""

import dataclasses
import itertools
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxext.files import read_json
from ctxext.nearest import nearest

LARGEST_NUMBER = 1e300
"""A larger number, infinity or NaN is taken for a mistake."""
NUMBERS_OR_NAME = tuple[float, ...] | str
"""The type of fields that are a vector, or the name of one."""
SWITCHES = (bool, bool | None)
"""The types of fields that a flag alone sets, and that its --no- form unsets."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One option as it was typed: `--train.seq-len 64` is Flag("train.seq_len", ("64",))."""

    name: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return option(self.name)


def option(name: str) -> str:
    """The spelling of a field on the command line: "train.seq_len" is --train.seq-len."""
    return f"--{name.replace('_', '-')}"


def parse_flags(arguments: Sequence[str]) -> list[Flag]:
    """`--factor=4`, `--factor 4`, `--targets q_proj k_proj` and `--truncate`, in their order.

    Raises ValueError for a value that no option precedes.
    """
    flags = []
    rest = list(arguments)
    while rest:
        text = rest.pop(0)
        if not text.startswith("--"):
            raise ValueError(f"unexpected argument {text!r}")
        name, equals, value = text[2:].partition("=")
        if equals:
            values = [value]
        else:
            values = list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
            del rest[: len(values)]
        flags.append(Flag(name.replace("-", "_"), tuple(values)))
    return flags


def field_value(flag: Flag, annotations: Mapping[str, Any]) -> tuple[str, Any] | None:
    """(field, value) if the flag, or the `--no-` form of a switch, is one of the fields; else None.

    annotations: the type of every field, by its name. Raises ValueError for a value of another
    type.
    """
    if flag.name in annotations:
        return flag.name, parse_value(flag, annotations[flag.name])
    path, dot, last = flag.name.rpartition(".")
    switch = path + dot + last.removeprefix("no_")
    if switch != flag.name and annotations.get(switch) in SWITCHES and not flag.values:
        return switch, False
    return None


def unknown_option(flag: Flag, known: Iterable[str], otherwise: str) -> ValueError:
    """The error for an unknown option, with the nearest of the known names, or `otherwise`."""
    close = nearest(flag.name, known)
    hint = f"did you mean {option(close)}?" if close else otherwise
    return ValueError(f"unknown option {flag}; {hint}" if hint else f"unknown option {flag}")


def misspelled(unknown: Sequence[Flag], options: Iterable[str]) -> Flag:
    """The first flag that is close to one of the options, or else the first.

    It may be why the others are unknown, as `--methd yarn --factor 4`.
    """
    known = list(options)
    close = (flag for flag in unknown if nearest(flag.name, known, close=0.8))
    return next(close, unknown[0])


def is_plain(annotation: Any) -> bool:
    """Whether a type is made of numbers, text, switches, choices and tuples only."""
    if typing.get_origin(annotation) is typing.Literal:
        return True
    if typing.get_origin(annotation) is tuple or _is_union(annotation):
        return all(is_plain(part) for part in typing.get_args(annotation) if part is not ...)
    return annotation in (bool, int, float, str, types.NoneType)


def parse_value(flag: Flag, annotation: Any) -> Any:
    """The value of a flag as its field wants it. Raises ValueError naming the flag for any other.

    A switch may stand alone. A tuple is several values, a JSON list, or for numbers FILE.json,
    which holds such a list, or an object with one under the name of the field; where the field
    takes the name of a vector too, a single word is one.
    """
    if typing.get_origin(annotation) is tuple:
        return _parse_tuple(flag, annotation)
    if annotation == NUMBERS_OR_NAME:
        is_name = len(flag.values) == 1 and _is_name(flag.values[0])
        return flag.values[0] if is_name else _parse_tuple(flag, tuple[float, ...])
    if not flag.values and annotation in SWITCHES:
        return True
    if not flag.values:
        raise ValueError(f"{flag} needs a value: {_describe(annotation)}")
    text = " ".join(flag.values)
    if len(flag.values) > 1:
        raise ValueError(f"{flag} takes one value, got {text}")
    try:
        return _parse_text(text, annotation)
    except ValueError:
        raise ValueError(f"{flag} must be {_describe(annotation)}, got {text!r}") from None


def _is_name(text: str) -> bool:
    """True for a word that is neither a number nor a file."""
    try:
        float(text)
    except ValueError:
        return text.replace("_", "").replace("-", "").isalnum()
    return False


def _parse_tuple(flag: Flag, annotation: Any) -> tuple[Any, ...]:
    items: Any = list(flag.values)
    try:
        if len(items) == 1 and items[0].startswith("["):
            items = json.loads(items[0])
        elif len(items) == 1 and items[0].endswith(".json") and annotation == tuple[float, ...]:
            content = read_json(Path(items[0]))
            field = flag.name.rpartition(".")[2]
            items = content.get(field) if isinstance(content, dict) else content
        return _parse_items(items, annotation)
    except ValueError:
        values = " ".join(flag.values) or "nothing"
        raise ValueError(f"{flag} must be {_describe(annotation)}, got {values}") from None


def _parse_items(items: Any, annotation: Any) -> tuple[Any, ...]:
    kinds = typing.get_args(annotation)
    if not isinstance(items, list):
        raise ValueError("not a list")
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(items)
    if len(kinds) != len(items):
        raise ValueError("not as many items")
    return tuple(_parse_item(item, kind) for item, kind in zip(items, kinds, strict=True))


def _parse_item(item: Any, annotation: Any) -> Any:
    """One item of a tuple: text, or what JSON made of it."""
    if typing.get_origin(annotation) is tuple:
        return _parse_items(item, annotation)
    return _parse_text(str(item), annotation)


def _parse_text(text: str, annotation: Any) -> Any:
    """Raises ValueError for text that is not of this type."""
    if _is_union(annotation):
        # Text is anything, so that it is tried last.
        kinds = sorted(typing.get_args(annotation), key=lambda kind: kind is str)
        for kind in kinds:
            try:
                return _parse_text(text, kind)
            except ValueError:
                continue
        raise ValueError(text)
    if typing.get_origin(annotation) is tuple:
        return _parse_items(json.loads(text), annotation)
    choices = _choices(annotation)
    if choices is None:
        value = annotation(text)
        if annotation in (int, float) and not abs(value) < LARGEST_NUMBER:
            raise ValueError(text)
        return value
    if text not in choices:
        raise ValueError(text)
    return choices[text]


def _choices(annotation: Any) -> dict[str, Any] | None:
    """The values of a type that has few, by their text, as Python and as JSON write it.

    None for other types.
    """
    if typing.get_origin(annotation) is typing.Literal:
        return {str(choice): choice for choice in typing.get_args(annotation)}
    if annotation is bool:
        return {"true": True, "True": True, "false": False, "False": False}
    if annotation is types.NoneType:
        return {"none": None, "None": None, "null": None}
    return None


def _describe(annotation: Any) -> str:
    """A type in words, as in "must be a number or none"."""
    if _is_union(annotation):
        return " or ".join(_describe(kind) for kind in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(map(str, typing.get_args(annotation)))
    if annotation == tuple[float, ...]:
        return "numbers, as in '[1, 1.5, 2]', or FILE.json with such a list"
    if typing.get_origin(annotation) is tuple:
        return "a list of values, as separate words or in JSON"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words.get(annotation, "none")


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
