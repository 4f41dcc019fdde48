"""The directory of one run: what it was told, what it measured, what it saved."""

import contextlib
import fcntl
import json
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ctxext.experiment import MUTABLE_FIELDS, Experiment
from ctxext.files import read_json, read_jsonl, write_bytes, write_json, write_text
from ctxext.parallel import distributed
from ctxext.serialization import to_json

PACKAGES = ("ctxext", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunDir:
    """Paths of a run, and the guard that one directory belongs to one experiment."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.records_file = self.path / "records.jsonl"
        self.provenance_file = self.path / "provenance.json"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export"
        self.baselines = self.path / "baselines"
        self.base = self.path / "base"

    def open(self, experiment: Experiment, file: Path | None = None) -> "RunDir":
        """Create the directory, or check that it is this experiment's; `file` is copied beside the configuration.

        Raises ValueError naming the first field that differs; `train.steps` may grow, `mesh` and `expect` may change.
        """
        self._open(experiment, file)
        return self

    @distributed.primary_only
    def _open(self, experiment: Experiment, file: Path | None) -> None:
        config = to_json(experiment)
        if self.config_file.exists():
            old = read_json(self.config_file)
            for name, there, here in _differences(old, config):
                if name.split(".")[0] in MUTABLE_FIELDS:
                    continue
                if name != "train.steps":
                    raise ValueError(
                        f"{self.path} belongs to another experiment: {name} is {_short(there)} there and"
                        f" {_short(here)} here; choose another --run-dir"
                    )
                if there > here:
                    raise ValueError(
                        f"{self.path} was started for {there} steps and cannot shrink to {here}"
                    )
            if old == config:
                return
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(
                f"{self.path} exists and is not a run directory; choose another --run-dir"
            )
        if file is not None:
            write_bytes(self.path / "experiment.py", Path(file).read_bytes())
        write_json(self.config_file, config)

    @distributed.primary_only
    def write_base(self, model: Any, scaling: Any, tokenizer_files: dict[str, bytes]) -> None:
        """What the checkpoints are parameters of: shape, frequencies, tokenizer."""
        for name, data in tokenizer_files.items():
            write_bytes(self.base / name, data)
        write_json(self.base / "scaling.json", to_json(scaling))
        write_json(
            self.base / "model.json", to_json(model)
        )  # last: its presence says that this is a run

    @distributed.primary_only
    def record(self, facts: dict[str, Any], *, fixed: tuple[str, ...] = ()) -> None:
        """Write provenance.json: `facts` and the versions in use.

        Raises ValueError if one of the `fixed` facts is no longer what an earlier start recorded: the run would go on
        with other data and nobody would see it.
        """
        versions = {"python": platform.python_version()} | {
            name: _version(name) for name in PACKAGES
        }
        new = {"versions": versions, "git_commit": git_commit(), **facts}
        if self.provenance_file.exists():
            old = read_json(self.provenance_file)
            for name, there, here in _differences(
                {k: old.get(k) for k in fixed}, {k: facts[k] for k in fixed}
            ):
                raise ValueError(
                    f"{self.path} was started with other {name.split('.')[0]}: {name} is {_short(there)} there and"
                    f" {_short(here)} here; restore it, or choose another --run-dir"
                )
            new["started_with"] = old.get("started_with", old["versions"])
        write_json(self.provenance_file, new)

    @distributed.primary_only
    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, which a resumed run measures again."""
        rows = read_jsonl(self.metrics_file)
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for training. Raises ValueError if a process of another run does."""
        with contextlib.ExitStack() as held:

            def take() -> None:
                file = held.enter_context((self.path / ".lock").open("w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ValueError(
                        f"another process is training in {self.path}; wait for it or stop it"
                    ) from None

            distributed.broadcast_from_primary(take)
            yield


def _differences(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted field, value there, value here), in the order of `here`."""
    if (
        isinstance(there, dict)
        and isinstance(here, dict)
        and there.get("__type__") == here.get("__type__")
    ):
        for key in [*here, *(key for key in there if key not in here)]:
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (a, b) in enumerate(zip(there, here, strict=True)):
            yield from _differences(a, b, f"{name}.{index}")
    elif there != here:
        yield name, there, here


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


def git_commit() -> str | None:
    """Commit of the source in use, "-dirty" if it has changes; None for an installed package."""
    where = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, cwd=where, check=True, capture_output=True, timeout=10)
        return subprocess.run(
            command, cwd=where, check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
