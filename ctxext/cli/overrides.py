"""Leaves of an experiment as options: `--train.steps 400` replaces one number of the file."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ctxext.cli.flags import Flag, field_value, is_plain, misspelled, parse_flags, unknown_option
from ctxext.cli.method_options import method_fields, replace_methods, split_flags
from ctxext.experiment import Experiment
from ctxext.methods import label
from ctxext.model.trainable import TRAINABLE

LENGTHS = "seq_lens"
"""The one field that all evaluations of an experiment may be given together."""


def override(
    experiment: Experiment,
    arguments: Sequence[str],
    *,
    methods: Sequence[str] = (),
    known: Sequence[str] = (),
) -> Experiment:
    """The experiment with `methods` in their seams, and with all their fields and leaves set.

    known: other options of the command, which may be meant by a misspelled one. Raises ValueError
    for an unknown option, with a suggestion, and for a value that does not fit.
    """
    all_flags = parse_flags(arguments)
    flags_of_methods, flags = split_flags(methods, all_flags)
    fields = method_fields(methods, all_flags)
    # A typing error comes before a missing field.
    _leaf_values(experiment, flags, methods, fields, known)
    experiment = replace_methods(experiment, methods, flags_of_methods)
    return _replace(experiment, _leaf_values(experiment, flags, methods, fields, known))


def has_lengths(value: Any) -> bool:
    """Whether a value is an evaluation at several lengths."""
    return dataclasses.is_dataclass(value) and hasattr(value, LENGTHS)


def _items(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """The type of everything that `override` can set, by its dotted name."""
    annotations: dict[str, Any] = {}
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if dataclasses.is_dataclass(content):
            annotations |= leaves(content, f"{prefix}{field.name}.")
        elif any(map(has_lengths, _items(content))):
            annotations[f"{prefix}{field.name}.{LENGTHS}"] = tuple[int, ...]
        elif is_plain(hints[field.name]):
            annotations[prefix + field.name] = hints[field.name]
    return annotations


def _leaf_values(
    experiment: Experiment,
    flags: Sequence[Flag],
    methods: Sequence[str],
    fields_of_methods: Sequence[str],
    others: Sequence[str],
) -> dict[str, Any]:
    """The new values of leaves, by their dotted names.

    Raises ValueError for a flag that is not a leaf.
    """
    annotations = leaves(experiment)
    pairs = [field_value(flag, annotations) for flag in flags]
    unknown = [flag for flag, pair in zip(flags, pairs, strict=True) if pair is None]
    if unknown:
        flag = misspelled(unknown, others)
        known = [*fields_of_methods, *annotations, *others]
        raise _not_trained_so(flag, experiment, methods) or _unknown(flag, experiment, known)
    return dict(pair for pair in pairs if pair is not None)


def _replace(value: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with dotted fields replaced, each part once: only the whole has to be valid.

    Of a tuple, the evaluations at several lengths in it.
    """
    if isinstance(value, tuple):
        return tuple(_replace(item, changes) if has_lengths(item) else item for item in value)
    parts: dict[str, dict[str, Any]] = {}
    for name, change in changes.items():
        head, _, rest = name.partition(".")
        parts.setdefault(head, {})[rest] = change
    fields = {
        name: inner[""] if "" in inner else _replace(getattr(value, name), inner)
        for name, inner in parts.items()
    }
    return dataclasses.replace(value, **fields)


def _unknown(flag: Flag, experiment: Experiment, known: Sequence[str]) -> ValueError:
    name = flag.name.partition(".")[0]
    if "." not in flag.name and name in {field.name for field in dataclasses.fields(experiment)}:
        return ValueError(
            f"{flag} is not a single value: set one of its fields, as {flag}.FIELD, name a method "
            "with --method, or write it into the experiment file"
        )
    if getattr(experiment, name, ...) is None:
        return ValueError(f"unknown option {flag}: this experiment has no {name}")
    return unknown_option(flag, known, "--print-config shows what there is")


def _not_trained_so(
    flag: Flag, experiment: Experiment, methods: Sequence[str]
) -> ValueError | None:
    """The error for a field of another way to train than the one that is chosen, if it is one."""
    field = flag.name.removeprefix("trainable.")
    owner = next((key for key, form in TRAINABLE.items() if field in _field_names(form)), None)
    chosen = next((name for name in methods if name in TRAINABLE), None)
    if owner is None or owner == chosen:
        return None
    if chosen is not None:
        return ValueError(
            f"{flag} belongs to --method {owner}, and --method {chosen} trains without it; leave "
            "one of the two out"
        )
    if TRAINABLE[owner] is type(experiment.trainable):
        return None
    return ValueError(
        f"{flag} belongs to --method {owner}, and this experiment trains "
        f"{label([experiment.trainable])}; give it with --method {owner}"
    )


def _field_names(form: type) -> list[str]:
    return [field.name for field in dataclasses.fields(form)]
