"""Run tasks of the harness on a model, or on a model and its base with the same questions."""

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxext.evals.base import fingerprint
from ctxext.evaluate import NamedModel
from ctxext.files import check_places, write_json, write_text, written_alone
from ctxext.harness import tables
from ctxext.harness.compare import Difference, differences, plain
from ctxext.harness.model import HarnessLM
from ctxext.model.lm import LM
from ctxext.nearest import nearest
from ctxext.parallel import distributed
from ctxext.plan.longest_text import check_length

KEPT_KEYS = (
    "results",
    "groups",
    "group_subtasks",
    "n-shot",
    "n-samples",
    "versions",
    "higher_is_better",
    "configs",
    "lm_eval_version",
    "max_length",
)


@dataclass(frozen=True)
class Request:
    """The tasks to run: names of tasks, groups or YAML files.

    `limit`: documents of each, or below 1 a fraction of them. `include_path`: a directory of the
    user's own tasks. `max_length`: tokens; None is the window of pre-training.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    limit: float | None = None
    num_fewshot: int | None = None
    max_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("limit", "max_length"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class Results:
    """The harness's results as strict JSON values, and the samples that they come from, by task."""

    results: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]


def run_tasks(lm: LM, request: Request, name: str = "harness") -> Results:
    """`lm_eval.simple_evaluate` of `lm`, whose progress has its `name`.

    Raises ValueError for a task that does not exist.
    """
    from lm_eval import simple_evaluate

    manager = _manager(request.include_path)
    for task in request.tasks:
        if task not in manager.task_index and not Path(task).is_file():
            close = nearest(task, manager.task_index)
            hint = (
                f"did you mean {close}?"
                if close
                else "lm-eval ls tasks lists them; --include-path adds others"
            )
            raise ValueError(f"there is no task {task!r} in lm-evaluation-harness; {hint}")
    model = HarnessLM(lm, max_length=request.max_length, seed=request.seed, name=name)
    with _quiet_single_process():
        evaluated: Any = simple_evaluate(
            model,
            tasks=list(request.tasks),
            num_fewshot=request.num_fewshot,
            limit=request.limit,
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=1000,
        )
    results = plain({key: evaluated[key] for key in KEPT_KEYS if key in evaluated})
    return Results(results, evaluated["samples"])


@functools.lru_cache(maxsize=1)
def _manager(include_path: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)  # reads thousands of files


@contextlib.contextmanager
def _quiet_single_process() -> Iterator[None]:
    """Print nothing on stdout, and fork no processes, which the threads of jax do not survive."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.environ.pop("DISABLE_MULTIPROC")
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


def _labels(named: NamedModel) -> dict[str, Any]:
    model = named.describe(named.lm)
    return {
        "checkpoint": model.checkpoint,
        "weights": model.weights,
        "method": model.label,
        "steps": model.steps,
        "window": model.window,
        "bos": model.bos,
    }


@dataclass(frozen=True)
class Report:
    """The results of a model and of its base, if it was run too; `labels` name both."""

    labels: dict[str, Any]
    request: Request
    model: Results
    base: Results | None
    differences: list[Difference]
    directory: Path

    @property
    def data(self) -> dict[str, Any]:
        """All but the samples, as JSON values."""
        listed = [
            {**dataclasses.asdict(d), "difference": d.difference._asdict()}
            for d in self.differences
        ]
        return {
            **self.labels,
            **plain(dataclasses.asdict(self.request)),
            "results": self.model.results,
            "base_results": None if self.base is None else self.base.results,
            "differences": listed,
        }

    @property
    def text(self) -> str:
        """A table of each model, and what differs."""
        results = {"base": self.base, "model": self.model}
        parts = [tables.scores(side.results, name) for name, side in results.items() if side]
        return "\n\n".join([*parts, *([tables.table(self.differences)] if self.base else [])])

    def save(self) -> Path:
        """Write `results.json` and `samples.jsonl`; return their directory."""
        path = _place(self.directory, self.labels, self.request)
        if distributed.is_primary():
            check_places(self.directory, "harness", f"harness/{path.name}")
            results = {"model": self.model, "base": self.base}
            lines = [
                json.dumps({"of": of, "task": task, **plain(sample)}) + "\n"
                for of, side in results.items()
                if side
                for task, samples in side.samples.items()
                for sample in samples
            ]
            write_text(path / "samples.jsonl", "".join(lines))
            write_json(path / "results.json", self.data)
        return path


def report(
    model: NamedModel,
    request: Request,
    *,
    against: str | Path | None = None,
    out: Path | None = None,
) -> Report:
    """Run the tasks on a model and, if given, on the base `against`, for the directory `out`.

    Both within the smaller of their windows of pre-training, unless the request names a length.
    Raises ValueError if another process does the same for the same directory, and for a length
    that no memory could hold.
    """
    both = [model]
    if against is not None:
        lm = model.lm
        other = NamedModel.load(
            against,
            dtype=lm.dtype,
            mesh=lm.mesh,
            bos=lm.tokenizer.adds_bos,
            semantics=lm.semantics,
        )
        both.append(other)
    if request.max_length is not None:
        for named in both:
            check_length(
                named.lm.config,
                request.max_length,
                dtype=named.lm.dtype,
                mesh=named.lm.mesh,
                is_written=False,  # tasks that write need more, see `HarnessLM.generate_until`
                option="--max-length",
            )
    length = request.max_length or min(named.lm.config.max_position_embeddings for named in both)
    request = dataclasses.replace(request, max_length=length)
    labels = {**_labels(model), "base": None if against is None else _labels(both[1])}
    directory = out or model.directory
    place = _place(directory, labels, request)
    check_places(directory, "harness", f"harness/{place.name}")
    with distributed.held_by_primary(lambda: written_alone(place)):
        model_results, *base_results = [
            run_tasks(named.lm, request, name)
            for named, name in zip(both, ("model", "base"), strict=False)
        ]
    pairs = differences(model_results.samples, base_results[0].samples) if base_results else []
    base = base_results[0] if base_results else None
    return Report(labels, request, model_results, base, pairs, directory)


def _place(directory: Path, labels: dict[str, Any], request: Request) -> Path:
    """Where the results are written; the name has a fingerprint of the models and the request."""
    return directory / "harness" / f"{Path(request.tasks[0]).stem}-{fingerprint(labels, request)}"
