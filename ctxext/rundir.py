"""The directory of one run: its configuration, measurements, checkpoints and export."""

import contextlib
import functools
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ctxext.experiment import MUTABLE_FIELDS, Experiment
from ctxext.files import (
    check_places,
    exclusive_lock,
    make_parent,
    read_json,
    read_jsonl,
    write_bytes,
    write_json,
    write_text,
)
from ctxext.interop.validation import (
    ANYTHING,
    COUNT,
    OBJECT,
    SIZE,
    TEXT,
    Shape,
    check_shape,
    optional,
)
from ctxext.parallel import distributed
from ctxext.serialization import to_json

TRAIN: dict[str, Shape] = {
    "steps": COUNT,
    "seq_len": SIZE,
    "batch_size": SIZE,
    "accumulate": SIZE,
    "dtype": TEXT,
}
SETTINGS: Shape = {
    "name": TEXT,
    "init": optional(TEXT),
    "seed": COUNT,
    "train": TRAIN,
    "rope": optional(OBJECT),
    "attention": optional(OBJECT),
    "trainable": optional(OBJECT),
    "zero_shot": [ANYTHING],
    "expect": [ANYTHING],
}
"""The plain values of an experiment in config.json."""
PACKAGES = ("ctxext", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
LOCK = ".lock"
CREATED = re.compile(r"\.lock|experiment\.py|\.(experiment\.py|config\.json)\.\w+\.\w+")
"""Names that a directory may have before it has its config.json, which is written last. The lock is
taken first, and marks the others as those of a creation that was killed."""
DIRECTORIES = (
    "base",
    "baselines",
    "baselines/*",
    "checkpoints",
    "checkpoints/*",
    "export",
    "tensorboard",
    "tensorboard/*",
    "wandb",
)
"""Where files are written in a run directory, besides its top; none of them may be a link."""


def default_run_dir(experiment: Experiment) -> Path:
    """Where an experiment is run, unless it is told."""
    return Path("runs") / f"{experiment.name}-{experiment.fingerprint}"


class RunDir:
    """The paths of a run, and the check that a directory belongs to one experiment only."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.records_file = self.path / "records.jsonl"
        self.provenance_file = self.path / "provenance.json"
        self.budget_file = self.path / "budget.json"
        self.stages_file = self.path / "stages.json"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export"
        self.baselines = self.path / "baselines"
        self.base = self.path / "base"
        self.context_file = self.base / "context.json"
        self.about_file = self.base / "about.json"
        self._is_locked = False

    def open(self, experiment: Experiment, file: Path | None = None) -> "RunDir":
        """Create the directory, or check that it is this experiment's.

        file: the experiment file, which is copied next to the configuration if it is Python. Raises
        ValueError naming the first field that differs; `train.steps` may grow, MUTABLE_FIELDS may
        change. Raises ValueError for a directory in it that is a link, and if another process runs
        in it.
        """
        self._open(experiment, file)
        return self

    @distributed.primary_only
    def _open(self, experiment: Experiment, file: Path | None) -> None:
        check_places(self.path, *DIRECTORIES)
        if not self.config_file.exists():
            self._check_new()
        with self._take_lock():
            self._check_or_create(experiment, file)

    def _check_new(self) -> None:
        """Raise ValueError if the directory holds anything but what a killed creation leaves."""
        if not self.path.exists():
            return
        is_directory = self.path.is_dir()
        names = [path.name for path in self.path.iterdir()] if is_directory else []
        was_killed = LOCK in names and all(CREATED.fullmatch(name) for name in names)
        if not is_directory or (names and not was_killed):
            raise ValueError(
                f"{self.path} exists and is not a run directory; choose another --run-dir"
            )

    def check(self, experiment: Experiment) -> None:
        """Raise ValueError as `open` does, unless the directory is new or this experiment's."""
        check_places(self.path, *DIRECTORIES)
        if self.config_file.exists():
            self._check_same(to_json(experiment))
        else:
            self._check_new()

    def _check_or_create(self, experiment: Experiment, file: Path | None) -> None:
        config = to_json(experiment)
        if self.config_file.exists() and self._check_same(config):
            return
        if file is not None and file.suffix == ".py":
            write_bytes(self.path / "experiment.py", Path(file).read_bytes())
        write_json(self.config_file, config)

    def _check_same(self, config: dict[str, Any]) -> bool:
        """Whether config.json holds just this. Raises ValueError for another experiment."""
        old = read_json(self.config_file)
        for name, old_value, new_value in _differences(old, config):
            if name.split(".")[0] in MUTABLE_FIELDS:
                continue
            if name != "train.steps":
                raise ValueError(
                    f"{self.path} belongs to another experiment: {name} is "
                    f"{_short(old_value)} there and {_short(new_value)} here; choose another "
                    "--run-dir"
                )
            if old_value > new_value:
                raise ValueError(
                    f"{self.path} was started for {old_value} steps and cannot shrink to "
                    f"{new_value}"
                )
        return old == config

    def steps_saved(self) -> int:
        """The steps of the newest checkpoint; 0 if there is none."""
        names = [path.name for path in self.checkpoints.glob("*")]
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def settings(self) -> dict[str, Any]:
        """The experiment as JSON. Raises ValueError naming the file for one that is damaged."""
        settings = read_json(self.config_file)
        try:
            check_shape(settings, SETTINGS, "it")
            for name in ("name", "init", "seed", "train", "attention", "trainable"):
                if name not in settings:
                    raise ValueError(f"it has no {name}")
            for name in TRAIN:
                if name not in settings["train"]:
                    raise ValueError(f"it has no train.{name}")
        except ValueError as error:
            raise ValueError(f"{self.config_file} is damaged: {error}; restore it") from None
        return settings

    def base_checksum(self) -> str:
        """The checksum of the parameters that the run did not train, as it recorded them.

        Raises ValueError naming the file if it records none.
        """
        provenance = read_json(self.provenance_file)
        checksum = provenance.get("base") if isinstance(provenance, dict) else None
        if not isinstance(checksum, str):
            raise ValueError(
                f"{self.provenance_file} does not hold the checksum of the base (base): restore it"
            )
        return checksum

    def about(self) -> dict[str, str]:
        """What the base says of the model for people, by its name.

        Raises ValueError, naming the file, for a damaged one.
        """
        if not self.about_file.is_file():
            return {}
        facts = read_json(self.about_file)
        if not isinstance(facts, dict) or not all(isinstance(v, str) for v in facts.values()):
            raise ValueError(f"{self.about_file} is damaged: it must hold texts; restore it")
        return facts

    @distributed.primary_only
    def write_base(
        self,
        model: Any,
        scaling: Any,
        tokenizer_files: dict[str, bytes],
        generation_config: Mapping[str, Any] | None = None,
        *,
        declared: int,
        base_scaling: Any,
        about: Mapping[str, str] | None = None,
    ) -> None:
        """Write what the checkpoints are parameters of: shape, frequencies, tokenizer, settings.

        `declared`: the extended window L' of the trained model, tokens. `base_scaling`: the
        frequencies of the base as it is. `about`: what the base says of the model for people.
        """
        if about:
            write_json(self.about_file, dict(about))
        if generation_config is not None:
            write_json(self.base / "generation_config.json", dict(generation_config))
        for name, data in tokenizer_files.items():
            write_bytes(self.base / name, data)
        write_json(self.base / "scaling.json", to_json(scaling))
        context = {"declared": declared, "base_scaling": to_json(base_scaling)}
        write_json(self.context_file, context)
        # Written last: its presence marks a directory as a run.
        write_json(self.base / "model.json", to_json(model))

    @distributed.primary_only
    def record(self, facts: dict[str, Any], *, fixed: tuple[str, ...] = ()) -> None:
        """Write provenance.json: `facts`, the versions in use and the commit.

        Raises ValueError if one of the `fixed` facts differs from what an earlier start recorded,
        because the run would silently continue with other data.
        """
        new = {"versions": versions(), "git_commit": git_commit(), **facts}
        if self.provenance_file.exists():
            old = read_json(self.provenance_file)
            if not isinstance(old, dict) or "versions" not in old:
                raise ValueError(f"{self.provenance_file} is not what a run writes; remove it")
            recorded = {name: old.get(name) for name in fixed}
            current = {name: facts[name] for name in fixed}
            for name, old_value, new_value in _differences(recorded, current):
                raise ValueError(
                    f"{self.path} was started with other {name.split('.')[0]}: {name} is "
                    f"{_short(old_value)} there and {_short(new_value)} here; restore it, or "
                    "choose another --run-dir"
                )
            new["started_with"] = old.get("started_with", old["versions"])
        write_json(self.provenance_file, new)

    @distributed.primary_only
    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, because a resumed run measures them again."""
        rows = read_jsonl(self.metrics_file)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError(
                    f"{self.metrics_file}, line {number}, has no step, as every row of metrics "
                    "has: restore the file, or remove the line"
                )
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory for a run; a block inside a block of the same object changes nothing.

        Raises ValueError, naming the process, if another one has locked it.
        """
        if self._is_locked:
            yield
            return
        with distributed.held_by_primary(self._take_lock):
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def _take_lock(self) -> contextlib.AbstractContextManager[None]:
        make_parent(self.path / LOCK)
        advice = "wait for it, stop it, or choose another --run-dir"
        return exclusive_lock(self.path / LOCK, f"{self.path} is in use", advice)


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted field, old value, new value), in the order of `new`."""
    if (
        isinstance(old, dict)
        and isinstance(new, dict)
        and old.get("__type__") == new.get("__type__")
    ):
        for key in [*new, *(key for key in old if key not in new)]:
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, f"{name}.{index}")
    elif old != new:
        yield name, old, new


def _short(value: Any) -> str:
    """A JSON value in at most 60 characters; of a dataclass the last part of its type tag."""
    if isinstance(value, dict) and "__type__" in value:
        return re.split("[:/]", value["__type__"])[-1]
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """The version of Python and of each of `PACKAGES`, None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def command_line() -> str:
    """The command that started this process; of a run it is the one that resumes it too."""
    is_ctxext = sys.argv[0].endswith(("ctxext", "__main__.py"))
    return shlex.join(["ctxext" if is_ctxext else sys.argv[0], *sys.argv[1:]])


@functools.cache
def git_commit() -> str | None:
    """The commit of the source in use, with "-dirty" if it has changes.

    None for an installed package.
    """
    try:
        # Fails for an installed package, also inside the checkout of another project.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    """The output of a git command in the directory of this file."""
    command = ["git", *arguments]
    directory = Path(__file__).parent
    result = subprocess.run(
        command, cwd=directory, check=True, capture_output=True, text=True, timeout=10
    )
    return result.stdout
