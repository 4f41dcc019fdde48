"""Overrides of an experiment in TOML: trials of a sweep without Python.

    experiment = "demo.py"            # or the config.json of a run; relative to this file

    [options]                         # of every trial, as on the command line
    method = "yarn"
    factor = 4
    train.steps = 48

    [trials.short]                    # options of one trial
    train.seq-len = 512

    [trials.long]
    train.seq-len = 1024

    [grid]                            # each trial once for each combination of these
    optim.learning-rate = [1e-4, 2e-4]
    seed = [0, 1, 2]

Twelve trials: `short-learning-rate-0.0001-seed-0` and so on. Without [trials] the names are those
of the grid, without [grid] those of the trials.
"""

import dataclasses
import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ctxext.cli.overrides import override
from ctxext.experiment import Experiment
from ctxext.files import read_bytes
from ctxext.nearest import hint

KEYS = ("experiment", "options", "trials", "grid")
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
"""Names of trials, which are names of directories too."""
LARGEST = 1 << 20
"""Bytes of such a file."""
MOST_TRIALS = 10_000


@dataclasses.dataclass(frozen=True)
class SweepFile:
    """What the file holds, checked but for the names and values of options."""

    path: Path
    experiment: Path
    trials: Mapping[str, Mapping[str, Any]]
    """The options of each trial by its name, with those of all; "" is a trial that has no others.
    """

    @classmethod
    def read(cls, path: str | Path) -> "SweepFile":
        """Raises ValueError, naming the file, for what is not such a file."""
        path = Path(path)
        try:
            content = tomllib.loads(read_bytes(path, LARGEST).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from None
        try:
            return cls(path, *_checked(content, path.parent))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def experiments(self, load: Callable[[Path, str | None], Experiment]) -> dict[str, Experiment]:
        """The experiment of each trial, whose name it has; the only one keeps its own.

        load: the experiment of a file, for the base that a trial names. Raises ValueError naming
        file and trial for an unknown option and for a value that does not fit.
        """
        listed = (self._experiment(name, load) for name in self.trials)
        return {experiment.name: experiment for experiment in listed}

    def _experiment(self, name: str, load: Callable[[Path, str | None], Experiment]) -> Experiment:
        options = dict(self.trials[name])
        methods = options.pop("method", [])
        names = [methods] if isinstance(methods, str) else methods
        base = options.get("init")
        try:
            if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
                raise ValueError(f"method must be a name or a list of names, got {methods!r}")
            experiment = load(self.experiment, str(base) if base is not None else None)
            words = [f"--{key}={_word(value)}" for key, value in options.items()]
            experiment = override(experiment, words, methods=names)
        except ValueError as error:
            place = f"{self.path}, trial {name}" if name else str(self.path)
            raise ValueError(f"{place}: {error}") from None
        return dataclasses.replace(experiment, name=name) if name else experiment


def _checked(content: dict[str, Any], directory: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """(experiment file, options by trial). Raises ValueError for anything else in the file."""
    for key in content:
        if key not in KEYS:
            raise ValueError(f"there is no {key!r} in such a file; {hint(key, KEYS)}")
    experiment = content.get("experiment")
    if not isinstance(experiment, str):
        raise ValueError('it names no experiment; begin with: experiment = "FILE.py"')
    options, trials, grid = (_table(content.get(key, {}), key) for key in KEYS[1:])
    common = _flat(options)
    by_name = {name: _flat(_table(own, f"trials.{name}")) for name, own in trials.items()}
    points = list(_points(_flat(grid)))
    merged = {
        _joined(name, point): {**common, **own, **values}
        for name, own in (by_name or {"": {}}).items()
        for point, values in points
    }
    if len(merged) < max(1, len(by_name)) * len(points):
        raise ValueError("two trials have the same name; name them in [trials]")
    for name in merged:
        if name and not NAME.fullmatch(name):
            raise ValueError(f"trial {name!r}: a name has letters, digits and . _ + - only")
    return directory / experiment, merged


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a table, as [{name}] begins one")
    return value


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables by dotted names, in the spelling of fields: {"train.seq_len": 512}."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key.replace("-", "_")
        values |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return values


def _points(grid: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, values) of each combination; a single one without values for an empty grid."""
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{key} must be a list of values, as [1, 2]")
    count = math.prod(map(len, grid.values()))
    if count > MOST_TRIALS:
        raise ValueError(f"the grid has {count:,} combinations, more than {MOST_TRIALS:,}")
    for combination in itertools.product(*grid.values()):
        point = dict(zip(grid, combination, strict=True))
        parts = [f"{key.rpartition('.')[2]}-{_word(value)}" for key, value in point.items()]
        yield re.sub(r"[^\w.+]+", "-", "-".join(parts).replace("_", "-")).strip("-"), point


def _joined(*names: str) -> str:
    return "-".join(filter(None, names))


def _word(value: Any) -> str:
    """A value as one types it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
