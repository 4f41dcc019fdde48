"""The names of what may be an option though no command declares it."""

import dataclasses
import functools
import typing

from ctxext.cli.flags import is_plain
from ctxext.experiment import Experiment, Export, Train
from ctxext.losses import all_losses
from ctxext.methods import all_methods
from ctxext.model.trainable import TRAINABLE
from ctxext.optim import Optim
from ctxext.parallel.mesh import Mesh
from ctxext.serialization import tagged_classes

PARTS: dict[str, type] = {
    "": Experiment,
    "train.": Train,
    "optim.": Optim,
    "mesh.": Mesh,
    "export.": Export,
}
"""The parts of an experiment that are of the same class in every one, by how options begin."""


@functools.cache
def field_names() -> frozenset[str]:
    """The fields of experiments, of their parts and of all methods, without their owners."""
    owners = [*all_methods().values(), *TRAINABLE.values(), *all_losses().values(), Experiment]
    owners += tagged_classes().values()
    return frozenset(field.name for owner in owners for field in dataclasses.fields(owner))


def method_fields() -> list[str]:
    """The fields of all methods."""
    return sorted({name for method in all_methods().values() for name in _plain(method)})


def experiment_fields() -> list[str]:
    """The leaves that every experiment has, and the fields of ways to train and of losses."""
    leaves = [prefix + name for prefix, owner in PARTS.items() for name in _plain(owner)]
    forms = [*TRAINABLE.values(), *all_losses().values()]
    return sorted({*leaves, *(name for form in forms for name in _plain(form))})


def _plain(owner: type) -> list[str]:
    hints = typing.get_type_hints(owner)
    return [field.name for field in dataclasses.fields(owner) if is_plain(hints[field.name])]
