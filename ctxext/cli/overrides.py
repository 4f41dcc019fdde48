"""Overrides from the command line: leaves of an experiment (`--rope.factor 8`), whole methods (`--method yarn`)."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import re
import typing
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from ctxext.experiment import Experiment
from ctxext.files import read_json
from ctxext.methods import build, find, make, seam
from ctxext.model.trainable import TRAINABLE


def parse_fields(arguments: Sequence[str]) -> dict[str, Any]:
    """`--beta-fast 16 --factor=4` as {"beta_fast": 16, "factor": 4}. Raises ValueError for anything else."""
    fields: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ValueError(f"unexpected argument {flag!r}")
        name, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"{flag} needs a value")
            value = rest.pop(0)
        try:
            fields[name.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            fields[name.replace("-", "_")] = value
    return fields


def make_methods(names: Sequence[str], fields: dict[str, Any]) -> tuple[Any, ...]:
    """One instance per name; every field goes to the methods that have it. Raises ValueError for a field of none."""
    used, methods = set(), []
    for name in names:
        types = typing.get_type_hints(find(name))
        own = {field.name for field in dataclasses.fields(find(name))} & set(fields)
        used |= own
        methods.append(make(name, **{key: _typed(fields[key], types[key], key) for key in own}))
    if unknown := set(fields) - used:
        known = {f"--{field.name}" for name in names for field in dataclasses.fields(find(name))}
        wrong = [f"--{field}" for field in sorted(unknown)]
        raise ValueError(f"unknown option {wrong[0].replace('_', '-')}{_suggestion(wrong, known)}")
    return tuple(methods)


def _typed(value: Any, annotation: Any, name: str) -> Any:
    """A parsed number or text as the field wants it; 4 is a fine float, "four" is not; a vector may be FILE.json."""
    if annotation == tuple[float, ...]:
        return _vector(value, name)
    if typing.get_origin(annotation) is tuple:
        return (
            tuple(value)
            if isinstance(value, list)
            else (_typed(value, typing.get_args(annotation)[0], name),)
        )
    wanted = typing.get_args(annotation) or (annotation,)
    if isinstance(value, int) and not isinstance(value, bool) and float in wanted:
        return float(value)
    if bool in wanted and value in ("True", "False"):  # as --print-config and Python write it
        return value == "True"
    plain = [kind for kind in wanted if isinstance(kind, type)]
    if plain and not isinstance(value, tuple(plain)):
        raise ValueError(
            f"--{name.replace('_', '-')} wants {' or '.join(kind.__name__ for kind in plain)}, "
            f"got {value!r}"
        )
    return value


def _vector(value: Any, name: str) -> tuple[float, ...]:
    """[1, 1.5] itself, or what FILE.json holds: such a list, or an object with one under the name of the field."""
    field = name.rpartition(".")[2]
    if isinstance(value, str) and value.endswith(".json"):
        found = read_json(Path(value))
        value = found.get(field) if isinstance(found, dict) else found
    if not isinstance(value, list) or not all(
        isinstance(x, int | float) and x is not True for x in value
    ):
        raise ValueError(
            f"--{name.replace('_', '-')} wants numbers, as in '[1, 1.5, 2]', or FILE.json with such a "
            f"list or an object that has one as {field!r}"
        )
    return tuple(map(float, value))


def swap_method(experiment: Experiment, name: str, arguments: Sequence[str]) -> Experiment:
    """Put method `name` into its seam; fields of the same name are kept, others come from --<seam>.<field>.

    What is trained counts as a seam here: "full", "lora" or "last-layers", with --trainable.<field>.
    """
    method = TRAINABLE.get(name) or find(name)
    place = "trainable" if name in TRAINABLE else seam(method)
    types, kept = typing.get_type_hints(method), getattr(experiment, place)
    switches = {
        f"__{place}.{field.name}"
        for field in dataclasses.fields(method)
        if types[field.name] is bool
    }
    given = parse_fields(_of(place, arguments, switches))
    fields = {key.removeprefix(f"{place}."): value for key, value in given.items()}
    for field in dataclasses.fields(method):
        if field.name not in fields and hasattr(kept, field.name) and type(kept) is not method:
            fields[field.name] = getattr(kept, field.name)
    known = {field.name for field in dataclasses.fields(method)}
    if unknown := set(fields) - known:
        raise ValueError(
            f"unknown option --{place}.{sorted(unknown)[0]}{_suggestion(unknown, known)}"
        )
    typed = {key: _typed(value, types[key], f"{place}.{key}") for key, value in fields.items()}
    instance = build(method, name, typed)
    return dataclasses.replace(experiment, **{place: instance})


def _of(place: str, arguments: Sequence[str], switches: Collection[str]) -> list[str]:
    """Flags of a seam with one value each, true for a switch; `override` puts in the further values of a tuple."""
    given = []
    for flag, value in itertools.pairwise([*_pairs(arguments), "--"]):
        if flag.startswith(f"--{place}."):
            alone = "=" not in flag
            given.append(f"{flag}=true" if alone and flag.replace("-", "_") in switches else flag)
            given += [value] if alone and not value.startswith("--") else []
    return given


def _pairs(arguments: Sequence[str]) -> Iterator[str]:
    """Every flag joined with its value by "="; several values, of a tuple, are left as they are."""
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        values = list(itertools.takewhile(lambda text: not text.startswith("--"), rest))
        del rest[: len(values)]
        if "=" not in flag and len(values) == 1:
            yield f"{flag}={values[0]}"
        else:
            yield from (flag, *values)


def override(experiment: Experiment, arguments: Sequence[str]) -> Experiment:
    """The experiment with leaves replaced, e.g. ("--rope.factor", "8"). Raises ValueError, with a suggestion."""
    experiment, arguments = _vectors(experiment, _pairs(arguments))
    if not arguments:
        return experiment
    hints = typing.get_type_hints(Experiment)
    fields: list[Any] = []
    for field in dataclasses.fields(Experiment):
        value = getattr(experiment, field.name)
        if isinstance(value, tuple):
            continue  # a tuple of evaluations or methods belongs into the file
        fields.append(
            (
                field.name,
                type(value) if dataclasses.is_dataclass(value) else hints[field.name],
                dataclasses.field(default=value),
            )
        )
    # tyro follows the annotated type; the stand-in is annotated with what the values really are.
    stand_in = dataclasses.make_dataclass("Overrides", fields, frozen=True)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            result = tyro.cli(stand_in, args=arguments, config=(tyro.conf.AvoidSubcommands,))
    except SystemExit:
        unknown = [a.split("=")[0] for a in arguments if a.startswith("--")]
        known = [f"--{leaf}" for leaf in leaves(experiment)]
        wrong = [a for a in unknown if a.replace("_", "-") not in known]
        if wrong:
            raise ValueError(f"unknown option {wrong[0]}{_suggestion(wrong, known)}") from None
        text = re.sub(
            r"[│╭╰─╮╯]+|-{3,}",
            " ",
            said.getvalue().split("Argument helptext")[0].split("For full")[0],
        )
        raise ValueError(re.sub(r"\s+", " ", text).strip()) from None
    return dataclasses.replace(experiment, **{name: getattr(result, name) for name, *_ in fields})


def _vectors(experiment: Experiment, arguments: Iterator[str]) -> tuple[Experiment, list[str]]:
    """--rope.divisors=FILE.json and its like put in; the arguments that are left."""
    rest = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        place, _, field = flag.removeprefix("--").replace("-", "_").partition(".")
        part: Any = getattr(experiment, place, None)
        hints = typing.get_type_hints(type(part))
        if hints.get(field) == tuple[float, ...]:
            parsed = parse_fields([f"--{field}={value}"])[field]
            changed = dataclasses.replace(part, **{field: _vector(parsed, f"{place}.{field}")})
            experiment = dataclasses.replace(experiment, **{place: changed})
        else:
            rest.append(argument)
    return experiment, rest


def leaves(value: Any, prefix: str = "") -> list[str]:
    """Dotted names, in command-line spelling, of everything `override` can set."""
    names = []
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(inner):
            names += leaves(inner, f"{name}.")
        elif not isinstance(inner, tuple):
            names.append(name)
    return names


def _suggestion(wrong: Any, known: Any) -> str:
    close = difflib.get_close_matches(sorted(wrong)[0], list(known), 1, 0.6)
    return (
        f"; did you mean {close[0].replace('_', '-')}?"
        if close
        else "; --print-config shows what there is"
    )
