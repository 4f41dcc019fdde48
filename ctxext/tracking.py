"""Where measurements go: metrics.jsonl always, wandb beside it. A tracker never stops a run."""

import contextlib
import netrc
import os
import secrets
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ctxext import distributed
from ctxext.experiment import Experiment, to_json
from ctxext.files import append_jsonl, write_text
from ctxext.rundir import RunDir


class Sink(Protocol):
    """Takes measurements; `finish` is called once, also when a run fails."""

    def log(self, row: dict[str, Any]) -> None:
        """One row of training metrics; `step` counts finished steps."""

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Rows of evaluations; the run keeps them in rows.jsonl itself."""

    def finish(self, failed: bool = False) -> None:
        """No more rows will come."""


class JsonlSink:
    """metrics.jsonl, which reports and tests read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, row: dict[str, Any]) -> None:
        append_jsonl(self.path, row)

    def rows(self, rows: list[dict[str, Any]]) -> None:
        pass

    def finish(self, failed: bool = False) -> None:
        pass


class WandbSink:
    """One wandb run per run directory, resumed by its id; offline under the run directory unless wandb is configured.

    Whatever goes wrong in wandb is one line on stderr, then the sink is quiet.
    """

    def __init__(self, experiment: Experiment, run: RunDir) -> None:
        self._run: Any = None
        self._guard(lambda: self._start(experiment, run), start=True)

    def _start(self, experiment: Experiment, run: RunDir) -> None:
        import wandb

        id_file = run.path / "wandb" / "run_id"
        if not id_file.exists():
            write_text(id_file, secrets.token_hex(4))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ctxext"),
            name=run.path.name,
            id=id_file.read_text(),
            resume="allow",
            mode=wandb_mode(),
            dir=run.path,
            config=to_json(experiment),
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )
        # An own axis: wandb's step cannot go back when a run resumes from an older checkpoint.
        self._run.define_metric("train/step")
        self._run.define_metric("train/*", step_metric="train/step")
        self._run.define_metric("eval/seq_len")
        self._run.define_metric("eval/*", step_metric="eval/seq_len")

    def log(self, row: dict[str, Any]) -> None:
        self._guard(lambda: self._run.log({f"train/{name}": value for name, value in row.items()}))

    def rows(self, rows: list[dict[str, Any]]) -> None:
        def send() -> None:
            for (seq_len, group), values in sorted(_means(rows).items()):
                self._run.log({"eval/seq_len": seq_len, **{f"eval/{group}/{name}": v for name, v in values.items()}})

        self._guard(send)

    def finish(self, failed: bool = False) -> None:
        self._guard(lambda: self._run.finish(exit_code=int(failed)))
        self._run = None

    def _guard(self, action: Callable[[], None], *, start: bool = False) -> None:
        if self._run is None and not start:
            return
        try:
            action()
        except Exception as error:
            self._run = None
            reason = str(error).strip().partition("\n")[0]
            print(f"wandb is off for the rest of this run ({type(error).__name__}: {reason})", file=sys.stderr)


def wandb_mode() -> Any:
    """WANDB_MODE if set; online with an API key, offline without."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode  # wandb refuses what it does not know
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
        return "online" if netrc.netrc().authenticators(host or "") else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


def _means(rows: list[dict[str, Any]]) -> dict[tuple[int, str], dict[str, float]]:
    """Mean of every true-or-false or fractional field by (seq_len, "eval/method"); controls are evals of their own."""
    groups: dict[tuple[int, str], dict[str, list[float]]] = {}
    for row in rows:
        control = "" if row.get("condition", "needle") == "needle" else f" {row['condition']}"
        fields = groups.setdefault((row["seq_len"], f"{_asked(row)}{control}/{row['method']}"), {})
        for name, value in row.items():
            if isinstance(value, bool | float):
                fields.setdefault(name, []).append(float(value))
    return {key: {name: sum(v) / len(v) for name, v in fields.items()} for key, fields in groups.items()}


@contextlib.contextmanager
def start_sinks(experiment: Experiment, run: RunDir, *, wandb: bool = True) -> Iterator[list[Sink]]:
    """The sinks of a run, finished at the end of the block; of many processes only the first has any."""
    sinks: list[Sink] = [JsonlSink(run.metrics_file)] if distributed.first() else []
    if sinks and wandb and wandb_mode() != "disabled":
        sinks.append(WandbSink(experiment, run))
    failed = True
    try:
        yield sinks
        failed = False
    except SystemExit as stopped:  # a run that was asked to stop has not failed
        failed = bool(stopped.code)
        raise
    finally:
        for sink in sinks:
            sink.finish(failed)


def _asked(row: dict[str, Any]) -> str:
    """The task of a retrieval, else the evaluation."""
    return row["task"]["name"] if "task" in row else row["eval"]
