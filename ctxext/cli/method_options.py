"""Methods on the command line: `--method yarn --factor 8`, the same in every command.

A field of a method that the command line names is an option. It may be written with its seam,
`--rope.factor 8`, which tells it from an option of the command that has the same name. A method
that wraps another one of its seam takes its name, and the fields of both are options:
`--method cope --inner yarn --factor 8`, or in full `--rope.inner.factor 8`. A field that both have
is that of the outer one, unless it is written `--inner.training-length 4096`.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from ctxext.attention.pieces import Attention
from ctxext.cli.flags import (
    Flag,
    field_value,
    is_plain,
    misspelled,
    option,
    parse_flags,
    parse_value,
    unknown_option,
)
from ctxext.experiment import Experiment
from ctxext.losses import Loss, all_losses
from ctxext.methods import build, class_in_file, find, seam
from ctxext.model.trainable import TRAINABLE
from ctxext.rope import RopeScaling, scaling_chain


def make_methods(
    names: Sequence[str], arguments: Sequence[str], *, known: Iterable[str] = ()
) -> tuple[Any, ...]:
    """One instance per name; every option sets the field of all methods that have it.

    known: other options of the command, which may be meant by a misspelled one. Raises ValueError
    for an unknown method, a missing or wrong field, and an option that no method has.
    """
    flags = parse_flags(arguments)
    methods = [(name, find(name)) for name in names]
    chosen = [_Chosen.by(flags, name, method, seam(method)) for name, method in methods]
    _refuse_unknown(flags, chosen, known)
    return tuple(method.build(flags, None) for method in chosen)


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
        chosen = _Chosen.by(flags, name, method, seam_name)
        instance = chosen.build(flags, getattr(experiment, seam_name))
        experiment = dataclasses.replace(experiment, **{seam_name: instance})
    return experiment


def split_flags(names: Sequence[str], flags: Sequence[Flag]) -> tuple[list[Flag], list[Flag]]:
    """(flags that are fields of the named methods of an experiment, all others)."""
    annotations: dict[str, Any] = {}
    for name in names:
        annotations |= _Chosen.by(flags, name, *_method_of_experiment(name)).annotations
    fields = [flag for flag in flags if field_value(flag, annotations) is not None]
    return fields, [flag for flag in flags if flag not in fields]


def method_fields(names: Sequence[str], flags: Sequence[Flag]) -> list[str]:
    """The fields of the named methods, each once. Raises ValueError for an unknown method."""
    chosen = [_Chosen.by(flags, name, *_method_of_experiment(name)) for name in names]
    return list(dict.fromkeys(field for method in chosen for field in method.fields))


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """A method that the command line names, with the methods that it wraps."""

    name: str
    """As it was typed, for messages."""
    cls: type
    prefixes: tuple[str, ...]
    """What may precede the name of a field, such as "" and "rope."."""
    wrapped: dict[str, "_Chosen"]
    """The method that is named for each field that holds one."""
    outer: frozenset[str] = frozenset()
    """The fields of the methods that wrap it, whose short names are theirs."""

    @classmethod
    def by(cls, flags: Sequence[Flag], name: str, method: type, seam_name: str) -> "_Chosen":
        """The method `name`, wrapping what the flags name."""
        return cls._in(("", f"{seam_name}."), flags, name, method)

    @classmethod
    def _in(
        cls,
        prefixes: tuple[str, ...],
        flags: Sequence[Flag],
        name: str,
        method: type,
        outer: frozenset[str] = frozenset(),
    ) -> "_Chosen":
        wrapped = {}
        names = outer | {field.name for field in dataclasses.fields(method)}
        for field in _wrapping_fields(method):
            spellings = [prefix + field for prefix in prefixes]
            for flag in flags:
                if flag.name in spellings:
                    inside = tuple(f"{spelling}." for spelling in spellings)
                    inner = parse_value(flag, str)
                    inner_method = _find_wrapped(flag, inner, seam(method))
                    wrapped[field] = cls._in(inside, flags, inner, inner_method, names)
        return cls(name, method, prefixes, wrapped, outer)

    @property
    def fields(self) -> list[str]:
        """The names of all fields that are options, those of wrapped scalings too."""
        own = [field.name for field in dataclasses.fields(self.cls)]
        return own + [field for inner in self.wrapped.values() for field in inner.fields]

    @functools.cached_property
    def plain(self) -> dict[str, Any]:
        """The type of each field that is a single value, under each of its spellings."""
        hints = typing.get_type_hints(self.cls)
        return {
            prefix + field.name: hints[field.name]
            for field in dataclasses.fields(self.cls)
            if is_plain(hints[field.name])
            for prefix in {*self.prefixes, *([] if field.name in self.outer else [""])}
        }

    @property
    def annotations(self) -> dict[str, Any]:
        """The type of every option: `plain`, the names of wrapped methods, and what these have."""
        names = {
            prefix + field: str for field in _wrapping_fields(self.cls) for prefix in self.prefixes
        }
        inside = [inner.annotations for inner in self.wrapped.values()]
        return functools.reduce(dict.__or__, inside, {}) | self.plain | names

    def values(self, flags: Sequence[Flag], current: Any) -> dict[str, Any]:
        """The fields that the flags set; the last of several wins.

        `current`: the method of an experiment whose fields wrapped methods keep, see `build`.
        Raises ValueError for a wrong value.
        """
        pairs = [field_value(flag, self.plain) for flag in flags]
        values = {pair[0].rpartition(".")[2]: pair[1] for pair in pairs if pair is not None}
        return values | {name: inner.build(flags, current) for name, inner in self.wrapped.items()}

    def build(self, flags: Sequence[Flag], current: Any) -> Any:
        """The method as the flags set it, with the fields that it shares with `current`."""
        fields = _shared_fields(current, self.cls) | self.values(flags, current)
        return build(self.cls, self.name, fields)


def _wrapping_fields(method: type) -> list[str]:
    """The fields of a method that hold another one."""
    hints = typing.get_type_hints(method)
    names = [field.name for field in dataclasses.fields(method)]
    return [name for name in names if hints[name] in (RopeScaling, Attention)]


def _find_wrapped(flag: Flag, name: str, seam_name: str) -> type:
    """The method of a seam that a flag names. Raises ValueError naming the flag for others."""
    try:
        method = find(name)
    except ValueError as error:
        raise ValueError(f"{flag} {name}: {error}") from None
    if seam(method) == seam_name:
        return method
    kind = {"rope": "a scaling of frequencies", "attention": "a way of attending"}[seam_name]
    raise ValueError(
        f"{flag} {name} is not {kind}: its seam is {seam(method)}; give another --method for it, "
        f"or name what is wrapped with {option(f'{seam_name}.inner')}"
    )


def _refuse_unknown(
    flags: Sequence[Flag], methods: Iterable[_Chosen], others: Iterable[str]
) -> None:
    """Raises ValueError, with a suggestion, for a flag that is not a field of the methods.

    others: options of the command.
    """
    known: dict[str, Any] = {}
    plain: list[str] = []
    names: list[str] = []
    for method in methods:
        known |= method.annotations
        plain += method.fields
        names.append(method.name)
    fields = ", ".join(option(name) for name in dict.fromkeys(plain))
    if fields:
        otherwise = f"the fields of these methods are {fields}"
    elif names:
        otherwise = (
            f"{' and '.join(names)} has no fields; a method with a factor is, for example, "
            "--method yarn --factor 4"
        )
    else:
        otherwise = "the fields of a method are options after --method NAME; see --help"
    unknown = [flag for flag in flags if field_value(flag, known) is None]
    if unknown:
        raise unknown_option(misspelled(unknown, others), [*plain, *others], otherwise)


def _method_of_experiment(name: str) -> tuple[type, str]:
    """(class, the field of an experiment that holds it)."""
    if name in TRAINABLE:
        return TRAINABLE[name], "trainable"
    if name in all_losses():
        return all_losses()[name], "loss"
    if ".py:" in name:
        from_file = class_in_file(name)
        if issubclass(from_file, Loss):
            return from_file, "loss"
    method = find(name)
    return method, seam(method)


def _shared_fields(current: Any, method: type) -> dict[str, Any]:
    """The fields that `method` has in common with `current`, or with what that wraps.

    Those of the same class are left out.
    """
    if type(current) is method:
        return {}
    names = {field.name for field in dataclasses.fields(method)}
    shared: dict[str, Any] = {}
    for link in reversed(scaling_chain(current)):
        if dataclasses.is_dataclass(link) and type(link) is not method:
            own = [field.name for field in dataclasses.fields(link) if field.name in names]
            shared |= {name: getattr(link, name) for name in own}
    return shared
