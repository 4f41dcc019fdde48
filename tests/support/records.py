"""Evaluation records with some parts changed."""

import dataclasses
from typing import Any, TypeVar

from ctxext.evals.record import EvalRecord

R = TypeVar("R", bound=EvalRecord)


def changed(record: R, **values: Any) -> R:
    """The record with other values of fields, given by name, in whichever part has them.

    Example: `changed(record, correct=False, seq_len=512)` changes its scores and the record itself.
    """
    own = {}
    parts = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    for name, value in values.items():
        if name in parts:
            own[name] = value
            continue
        (part,) = [
            key
            for key, part in parts.items()
            if dataclasses.is_dataclass(part) and name in {f.name for f in dataclasses.fields(part)}
        ]
        own[part] = dataclasses.replace(own.get(part, parts[part]), **{name: value})
    return dataclasses.replace(record, **own)
