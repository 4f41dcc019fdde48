"""Methods on the command line: `--method yarn --factor 8`, the same in every command.

A field of a method that the command line names is an option. It may be written with its seam,
`--rope.factor 8`, which tells it from an option of the command that has the same name.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ctxext.cli.flags import Flag, field_value, is_plain, option, parse_flags, unknown_option
from ctxext.experiment import Experiment
from ctxext.losses import all_losses
from ctxext.methods import build, find, seam
from ctxext.model.trainable import TRAINABLE


def make_methods(names: Sequence[str], arguments: Sequence[str]) -> tuple[Any, ...]:
    """One instance per name; every option sets the field of all methods that have it.

    Raises ValueError for an unknown method, a missing or wrong field, and an option that no method
    has.
    """
    flags = parse_flags(arguments)
    methods = [(name, find(name)) for name in names]
    values = [field_values(method, flags, seam(method)) for _, method in methods]
    refuse_unknown(flags, [method for _, method in methods])
    return tuple(
        build(method, name, fields) for (name, method), fields in zip(methods, values, strict=True)
    )


def replace_methods(
    experiment: Experiment, names: Sequence[str], flags: Sequence[Flag]
) -> Experiment:
    """The experiment with each named method in its seam.

    The trainable subset counts as a seam here, "full", "lora" or "last-layers", and so does the
    loss, "cross-entropy" or another of `ctxext.losses`. A method of another class keeps the values
    of the fields that both have; one of the same class begins with its defaults. Raises ValueError
    for an unknown method and for a missing or wrong field.
    """
    for name in names:
        method, seam_name = _method_of_experiment(name)
        current = getattr(experiment, seam_name)
        kept = _shared_fields(current, method)
        typed = field_values(method, flags, seam_name)
        instance = build(method, name, kept | typed)
        experiment = dataclasses.replace(experiment, **{seam_name: instance})
    return experiment


def split_flags(names: Sequence[str], flags: Sequence[Flag]) -> tuple[list[Flag], list[Flag]]:
    """(flags that are fields of the named methods of an experiment, all others)."""
    annotations: dict[str, Any] = {}
    for name in names:
        annotations |= _annotations(*_method_of_experiment(name))
    fields = [flag for flag in flags if field_value(flag, annotations) is not None]
    return fields, [flag for flag in flags if flag not in fields]


def method_fields(names: Sequence[str]) -> list[str]:
    """The fields of the named methods, each once. Raises ValueError for an unknown method."""
    methods = [_method_of_experiment(name)[0] for name in names]
    fields = [field.name for method in methods for field in dataclasses.fields(method)]
    return list(dict.fromkeys(fields))


def field_values(method: type, flags: Sequence[Flag], seam_name: str) -> dict[str, Any]:
    """The fields of `method` that the flags set; the last of several wins.

    Raises ValueError for a wrong value.
    """
    annotations = _annotations(method, seam_name)
    pairs = [pair for flag in flags if (pair := field_value(flag, annotations)) is not None]
    return {name.removeprefix(f"{seam_name}."): value for name, value in pairs}


def refuse_unknown(flags: Sequence[Flag], methods: Sequence[type]) -> None:
    """Raises ValueError, with a suggestion, for a flag that is not a field of the methods."""
    known: dict[str, Any] = {}
    plain: list[str] = []
    for method in methods:
        known |= _annotations(method, seam(method))
        plain += [field.name for field in dataclasses.fields(method)]
    fields = ", ".join(option(name) for name in dict.fromkeys(plain))
    if fields:
        otherwise = f"the fields of these methods are {fields}"
    else:
        otherwise = "the fields of a method are options after --method NAME; see --help"
    for flag in flags:
        if field_value(flag, known) is None:
            raise unknown_option(flag, plain, otherwise)


def _method_of_experiment(name: str) -> tuple[type, str]:
    """(class, the field of an experiment that holds it)."""
    if name in TRAINABLE:
        return TRAINABLE[name], "trainable"
    if name in all_losses():
        return all_losses()[name], "loss"
    method = find(name)
    return method, seam(method)


def _shared_fields(current: Any, method: type) -> dict[str, Any]:
    """The fields of `current` that `method`, if it is another class, has too."""
    if current is None or type(current) is method:
        return {}
    names = {field.name for field in dataclasses.fields(method)}
    shared = [field.name for field in dataclasses.fields(current) if field.name in names]
    return {name: getattr(current, name) for name in shared}


def _annotations(method: type, seam_name: str) -> Mapping[str, Any]:
    """The type of each field, under its name and under <seam>.<name>."""
    hints = typing.get_type_hints(method)
    fields = {
        field.name: hints[field.name]
        for field in dataclasses.fields(method)
        if is_plain(hints[field.name])
    }
    return fields | {f"{seam_name}.{name}": kind for name, kind in fields.items()}
