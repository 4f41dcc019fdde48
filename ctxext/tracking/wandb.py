"""Weights & Biases: one wandb run per run directory, online if configured, else offline."""

import json
import netrc
import os
import re
import secrets
import shlex
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctxext.attention import Causal
from ctxext.evals.record import EvalRecord
from ctxext.evals.wrong_answers import WrongAnswer
from ctxext.experiment import Experiment
from ctxext.files import check_place, read_bytes, write_text
from ctxext.methods import label, method_name
from ctxext.model.trainable import Full
from ctxext.positions import Contiguous
from ctxext.rope import Unscaled
from ctxext.rundir import RunDir, git_commit
from ctxext.serialization import to_json
from ctxext.tracking.means import eval_logs, scalars
from ctxext.tracking.sink import Images, Sink

TIMEOUTS = {"init_timeout": 30.0, "finish_timeout": 120.0}
"""Seconds that a run waits for a server when it begins and ends; it never waits in between.
WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT change them."""

REFUSED = ("401", "403", "api key", "unauthorized", "not authenticated", "permission denied")
"""What the errors of a server say that knows the user not, or not for this project."""

MAX_ID = 1 << 10
"""Bytes of the file with the id of a run."""

DEFAULT_METHODS = (None, Unscaled(), Causal(), Contiguous(), Full())
"""Methods that the name of a run leaves out."""

OFFLINE_RUNS = ("wandb/offline-run-*", "baselines/*/wandb/offline-run-*")
"""Where wandb keeps the offline runs of a run directory and of its baselines."""


class WandbSink(Sink):
    """Metrics by `train/step`, evaluations by `eval/seq_len` and as a table, heatmaps, checkpoints.

    Wrong answers are a table too, by training step, task and length.

    A run directory keeps the id of its wandb run, so that a resumed run continues it. If a server
    does not answer, the run is kept offline, which is printed on stderr.
    """

    def __init__(self, experiment: Experiment, run: RunDir, group: str, job: str) -> None:
        import wandb

        self._wandb = wandb
        self._path = run.path
        self._rows: list[dict[str, Any]] = []
        self._wrong: list[Any] = []
        self._run = self._start(_init_arguments(experiment, run, group, job))
        # Axes of our own: wandb's step cannot go back when a run resumes from an older checkpoint.
        for axis in ("train/step", "eval/seq_len"):
            self._run.define_metric(axis)
            self._run.define_metric(f"{axis.partition('/')[0]}/*", step_metric=axis)

    @classmethod
    def is_enabled(cls, job: str) -> bool:
        # The one run that a sweep's agent has made belongs to the experiment, not to its baselines.
        belongs_to_sweep = job == "baseline" and "WANDB_SWEEP_ID" in os.environ
        return os.environ.get("WANDB_MODE") != "disabled" and not belongs_to_sweep

    @classmethod
    def upload_command(cls, run: Path) -> str:
        waiting = [
            f"{shlex.quote(str(run))}/{pattern}"
            for pattern in OFFLINE_RUNS
            if any(not list(path.glob("*.synced")) for path in run.glob(pattern))
        ]
        return f"wandb sync {' '.join(waiting)}" if waiting else ""

    def log(self, row: dict[str, Any]) -> None:
        self._run.log({"train/step": row["step"], **scalars(row)})
        if "alarm" in row:
            self._run.alert("short-context drift", row["alarm"], level="WARN", wait_duration=3600)

    def records(self, records: list[EvalRecord]) -> None:
        for values in eval_logs(records):
            self._run.log(values)
        self._rows += [record.columns() for record in records]
        columns: list[Any] = list(dict.fromkeys(name for row in self._rows for name in row))
        cells: list[Any] = [[_cell(row.get(name)) for name in columns] for row in self._rows]
        table = self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
        self._run.log({"rows": table})

    def wrong_answers(self, step: int, answers: Sequence[WrongAnswer]) -> None:
        self._wrong += [[step, *answer] for answer in answers]
        if answers:
            table = self._wandb.Table(
                columns=["step", *WrongAnswer._fields], data=self._wrong, allow_mixed_types=True
            )
            self._run.log({"train/step": step, "wrong_answers": table})

    def images(self, draw: Callable[[], Images]) -> None:
        tasks: dict[str, list[Any]] = {}
        for name, pixels in draw().items():
            task, _, variant = name.partition("/")
            image = self._wandb.Image(pixels, caption=variant)
            tasks.setdefault(f"heatmaps/{task}", []).append(image)
        self._run.log(tasks)

    def artifact(self, kind: str, paths: Sequence[Path], facts: dict[str, Any]) -> None:
        name = re.sub(r"[^\w.-]", "-", f"{self._path.name}-{kind}")
        artifact = self._wandb.Artifact(name, type=kind, metadata=facts)
        for path in paths:
            # Names and sizes only: hashing takes minutes, and a checkpoint has its own checksums.
            artifact.add_reference(path.resolve().as_uri(), name=path.name, checksum=False)
        self._run.log_artifact(artifact)

    def finish(self, failed: bool = False) -> None:
        try:
            self._run.finish(exit_code=int(failed))
        except TimeoutError:
            directory = shlex.quote(str(Path(self._run.dir).parent))
            print(
                "wandb has not uploaded everything in time; upload the rest with: wandb sync "
                f"--no-skip-online {directory}",
                file=sys.stderr,
            )

    def _start(self, arguments: dict[str, Any]) -> Any:
        """The wandb run, offline if an online one cannot be started."""
        mode = wandb_mode()
        try:
            return self._wandb.init(mode=mode, **arguments)
        except Exception as error:
            if mode != "online":
                raise
            problem = why_not_online(error)
        self._wandb.teardown()  # its service would say that the run's id is taken
        run = self._wandb.init(mode="offline", **arguments)
        directory = shlex.quote(str(Path(run.dir).parent))
        print(
            f"{problem}; this run is kept offline, upload it with: wandb sync {directory}",
            file=sys.stderr,
        )
        return run


def why_not_online(error: Exception) -> str:
    """Whether the key is refused or nothing answers, from the error of a first request."""
    from wandb.errors import AuthenticationError

    reason = str(error).strip().partition("\n")[0].rstrip(".")
    is_refused = isinstance(error, AuthenticationError) or any(
        sign in reason.lower() for sign in REFUSED
    )
    if not is_refused:
        return f"wandb does not answer ({reason})"
    if os.environ.get("WANDB_API_KEY"):
        return f"wandb refuses the key in WANDB_API_KEY ({reason}): correct it"
    return f"wandb refuses the key of this login ({reason}): run `wandb login --relogin`"


def _init_arguments(experiment: Experiment, run: RunDir, group: str, job: str) -> dict[str, Any]:
    """The arguments of `wandb.init` but its mode; environment variables of wandb come first."""
    import wandb

    id_file = run.path / "wandb" / "run_id"
    check_place(id_file)
    if not id_file.exists():
        # A sweep's agent chooses the id.
        write_text(id_file, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    run_id = read_bytes(id_file, MAX_ID).decode(errors="replace").strip()
    if not re.fullmatch(r"[\w.-]+", run_id):
        raise ValueError(f"{id_file} does not hold the id of a wandb run; remove it")
    parts = (experiment.rope, experiment.attention, experiment.positions, experiment.trainable)
    timeouts: dict[str, Any] = {
        name: float(os.environ.get(f"WANDB_{name.upper()}", seconds))
        for name, seconds in TIMEOUTS.items()
    }
    return {
        "project": os.environ.get("WANDB_PROJECT", "ctxext"),
        "name": run.path.name,
        "id": run_id,
        "group": os.environ.get("WANDB_RUN_GROUP", group),
        "job_type": os.environ.get("WANDB_JOB_TYPE", job),
        "tags": [method_name(part) for part in parts if part is not None],
        "config": {
            **to_json(experiment),
            "method": label(part for part in parts if part not in DEFAULT_METHODS),
            "fingerprint": experiment.fingerprint,
            "git_commit": git_commit(),
        },
        "resume": "allow",
        "dir": run.path,
        "reinit": "create_new",
        "settings": wandb.Settings(
            silent=True, console="off", finish_timeout_raises=True, **timeouts
        ),
    }


def wandb_mode() -> Any:
    """WANDB_MODE if it is set; else online with an API key and offline without."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode  # wandb refuses what it does not know
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urllib.parse.urlsplit(address).hostname
    try:
        return "online" if netrc.netrc().authenticators(host or "") else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


def default_entity() -> str:
    """The user or team whose projects are meant if none is named.

    Raises ValueError without a login.
    """
    if wandb_mode() != "online":
        raise ValueError(
            "not logged in to wandb: set WANDB_API_KEY or run `wandb login`; --json needs no login"
        )
    import wandb

    try:
        entity = wandb.Api().default_entity
    except Exception as error:
        raise ValueError(f"wandb does not answer: {error}") from error
    if not entity:
        raise ValueError("wandb knows no default entity of this login; name one with --entity")
    return entity


def _cell(value: Any) -> Any:
    """A value as a table of wandb can hold it."""
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)
