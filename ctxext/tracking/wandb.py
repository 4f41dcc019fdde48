"""Weights & Biases: one run per run directory, online if it is configured, else offline for `wandb sync`."""

import json
import netrc
import os
import re
import secrets
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctxext.attention import Causal
from ctxext.evals.record import EvalRecord
from ctxext.experiment import Experiment
from ctxext.files import write_text
from ctxext.methods import label, method_name
from ctxext.model.trainable import Full
from ctxext.positions import Contiguous
from ctxext.rope import Unscaled
from ctxext.rundir import RunDir, git_commit
from ctxext.serialization import to_json
from ctxext.tracking.jsonl import Images
from ctxext.tracking.means import means, scalars

PATIENCE = {"init_timeout": 30.0, "finish_timeout": 120.0}
"""Seconds that a server may keep a run waiting at its beginning and end; WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT
change them. In between it is never waited for."""

PLAIN = (None, Unscaled(), Causal(), Contiguous(), Full())
"""What a method's name leaves out."""


class WandbSink:
    """Metrics by `train/step`, evaluations by `eval/seq_len` and as a table, heatmaps, references to checkpoints.

    A directory keeps its run's id, so that a resumed run goes on in the same one. A server that does not answer makes
    the run an offline one, said on stderr.
    """

    def __init__(self, experiment: Experiment, run: RunDir, group: str, job: str) -> None:
        import wandb

        self._wandb, self._path, self._table = wandb, run.path, []
        id_file = run.path / "wandb" / "run_id"
        if not id_file.exists():  # a sweep's agent has chosen it
            write_text(id_file, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
        parts = (experiment.rope, experiment.attention, experiment.positions, experiment.trainable)
        config = {
            **to_json(experiment),
            "method": label(part for part in parts if part not in PLAIN),
            "fingerprint": experiment.fingerprint,
            "git_commit": git_commit(),
        }
        patience: dict[str, Any] = {
            name: float(os.environ.get(f"WANDB_{name.upper()}", seconds))
            for name, seconds in PATIENCE.items()
        }

        def start(mode: Any) -> Any:
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", "ctxext"),
                name=run.path.name,
                id=id_file.read_text(),
                group=os.environ.get("WANDB_RUN_GROUP", group),
                job_type=os.environ.get("WANDB_JOB_TYPE", job),
                tags=[method_name(part) for part in parts if part is not None],
                config=config,
                resume="allow",
                mode=mode,
                dir=run.path,
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True, console="off", finish_timeout_raises=True, **patience
                ),
            )

        mode = wandb_mode()
        try:
            self._run = start(mode)
        except Exception as error:
            if mode != "online":
                raise
            wandb.teardown()  # its service would call the run's id taken
            self._run = start("offline")
            reason = str(error).strip().partition("\n")[0]
            print(
                f"wandb does not answer ({reason}); this run is kept offline, to be uploaded with: wandb sync "
                f"{Path(self._run.dir).parent}",
                file=sys.stderr,
            )
        # Own axes: wandb's step cannot go back when a run resumes from an older checkpoint.
        for axis in ("train/step", "eval/seq_len"):
            self._run.define_metric(axis)
            self._run.define_metric(f"{axis.partition('/')[0]}/*", step_metric=axis)

    def log(self, row: dict[str, Any]) -> None:
        self._run.log({"train/step": row["step"], **scalars(row)})
        if "alarm" in row:
            self._run.alert("short-context drift", row["alarm"], level="WARN", wait_duration=3600)

    def records(self, records: list[EvalRecord]) -> None:
        for (seq_len, group), values in means(records).items():
            self._run.log(
                {
                    "eval/seq_len": seq_len,
                    **{f"eval/{group}/{name}": v for name, v in values.items()},
                }
            )
        self._table += [record.columns() for record in records]
        columns = list(dict.fromkeys(name for row in self._table for name in row))
        cells = [[_cell(row.get(name)) for name in columns] for row in self._table]
        self._run.log(
            {"rows": self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True)}
        )

    def images(self, draw: Callable[[], Images]) -> None:
        tasks: dict[str, list[Any]] = {}
        for name, pixels in draw().items():
            task, _, variant = name.partition("/")
            tasks.setdefault(f"heatmaps/{task}", []).append(
                self._wandb.Image(pixels, caption=variant)
            )
        self._run.log(tasks)

    def artifact(self, kind: str, paths: Sequence[Path], facts: dict[str, Any]) -> None:
        name = re.sub(r"[^\w.-]", "-", f"{self._path.name}-{kind}")
        artifact = self._wandb.Artifact(name, type=kind, metadata=facts)
        for path in (
            paths
        ):  # names and sizes alone: hashing a checkpoint takes minutes, and it has its own seal
            artifact.add_reference(path.resolve().as_uri(), name=path.name, checksum=False)
        self._run.log_artifact(artifact)

    def finish(self, failed: bool = False) -> None:
        folder = Path(self._run.dir).parent
        try:
            self._run.finish(exit_code=int(failed))
        except TimeoutError:
            print(
                f"wandb has not taken everything; upload the rest with: wandb sync --no-skip-online {folder}",
                file=sys.stderr,
            )


def wandb_mode() -> Any:
    """WANDB_MODE if set; online with an API key, offline without."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode  # wandb refuses what it does not know
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        host = urllib.parse.urlsplit(
            os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        ).hostname
        return "online" if netrc.netrc().authenticators(host or "") else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


def default_entity() -> str:
    """Whose projects are meant if nobody is named. Raises ValueError without a login."""
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
        raise ValueError("wandb knows no entity of yours; name one with --entity")
    return entity


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)
