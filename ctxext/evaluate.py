"""Checkpoint -> evaluations -> rows: appended one by one, never computed twice."""

import dataclasses
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ctxext.evals import Eval, Retrieval
from ctxext.evals.base import Model
from ctxext.evals.suite import STANDARD, SuiteConfig, evaluations, promise
from ctxext.evals.timing import Timed
from ctxext.files import append_jsonl, read_jsonl
from ctxext.methods import label
from ctxext.parallel import distributed


@dataclasses.dataclass(frozen=True)
class Part:
    """Share `number` of `count` of the items: the first is 1. Every process takes every count-th item."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """ "2/4" is the second of four. Raises ValueError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"--part {text!r} is no share of the work; the second of four is 2/4")
        return cls(int(match[1]), int(match[2]))

    def of(self, items: Sequence[str]) -> Sequence[str]:
        return items[self.number - 1 :: self.count]


WHOLE = Part(1, 1)


def evaluate(
    lm: Model,
    evals: Iterable[Eval],
    *,
    method_label: str,
    rope: str = "",
    steps: int = 0,
    sink: Path | None = None,
    checkpoint: str = "",
    part: Part = WHOLE,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """The rows of all items of `evals`, each with `checkpoint`, `method`, `rope`, `steps` and `window`, in order.

    method_label: the name of this model in tables; rope: that of its method alone; steps: the fine-tuning behind it.
    Rows are appended to `sink` as they come; items that it already has under this checkpoint and method are read, not
    computed. part: which share of the missing items is computed here, while other processes do theirs with the same
    `sink`; what they have not written by the end is left out of the result. Progress goes to stderr. Raises ValueError
    for an item that cannot be built or a model that is not finite.
    """
    labels = {
        "checkpoint": checkpoint,
        "method": method_label,
        "rope": rope or method_label,
        "steps": steps,
        "window": lm.config.max_position_embeddings,
    }
    found = (
        distributed.broadcast_from_primary(lambda: read_jsonl(sink)) if sink else []
    )  # the same for all, whoever is first
    old = {row["item"]: row for row in found if labels.items() <= row.items()}
    evals = list(evals)
    for evaluation in evals:
        if not old.keys() >= set(part.of(evaluation.items())):
            evaluation.check(lm.tokenizer)
    with _bar(progress) as bar:
        for evaluation in evals:
            items, started, timed = evaluation.items(), time.monotonic(), Timed(lm)
            missing = [item for item in part.of(items) if item not in old]
            task = bar.add_task(f"{evaluation.title}, {method_label}", total=len(missing))
            for row in evaluation.rows(timed, missing) if missing else ():
                old[row["item"]] = {**labels, **row}
                if sink and distributed.is_primary():
                    _append(sink, old[row["item"]])
                bar.advance(task)
            if progress and (bar.disable or part != WHOLE):
                seconds = time.monotonic() - started
                outside, padding = timed.shares(seconds)
                share = (
                    f", {outside:.0%} outside the model, {padding:.0%} on padding"
                    if missing
                    else ""
                )
                print(
                    f"{evaluation.title}, {method_label}: {len(missing)} new of {len(items)} rows in "
                    f"{seconds:.1f} s{share}",
                    file=sys.stderr,
                    flush=True,
                )
    if sink and part != WHOLE:  # the others have been busy too
        old |= {row["item"]: row for row in read_jsonl(sink) if labels.items() <= row.items()}
    wanted = [item for evaluation in evals for item in evaluation.items()]
    if progress and (left := sum(item not in old for item in wanted)):
        print(
            f"{left} of {len(wanted)} rows belong to other parts and are not there yet",
            file=sys.stderr,
            flush=True,
        )
    return [old[item] for item in wanted if item in old]


def evaluate_checkpoint(
    path: str | Path,
    *,
    adapter: Path | None = None,
    checkpoint: int | str = "latest",
    methods: Sequence[Any] = (None,),
    evals: Sequence[str] = STANDARD,
    seq_lens: Sequence[int] | None = None,
    asked: SuiteConfig | None = None,
    out: Path | None = None,
    dtype: str = "float32",
    mesh: Any = None,
    part: Part = WHOLE,
    trust: bool = False,
    progress: bool = True,
) -> tuple[Path, list[dict[str, Any]]]:
    """Evaluate an HF or run directory under each of `methods`; returns the rows file and the rows.

    methods: frequencies, attention, a tuple of both, or None for what the checkpoint carries. adapter: a PEFT directory
    to merge. checkpoint: which one of a run, see `loading.checkpoint_step`.
    evals: names of `ctxext.evals.suite`, asked as `asked` says
    but for its lengths: those of `seq_lens`, by default one, two, four and eight windows. out: directory for
    records.jsonl, by default the run, or `runs/eval-<name>` for an HF directory. part: see `evaluate`.
    """
    from ctxext import loading  # loads jax
    from ctxext.parallel.mesh import ONE_DEVICE

    where = loading.locate(path)
    steps = loading.checkpoint_step(
        where, checkpoint
    )  # a run that goes on may have another latest one by the time it is read
    lm = loading.load(
        where, adapter=adapter, checkpoint=steps, dtype=dtype, trust=trust, mesh=mesh or ONE_DEVICE
    )
    sink = (out or directory(where)) / "records.jsonl"
    window = lm.config.max_position_embeddings
    lengths = tuple(seq_lens or (window * times for times in (1, 2, 4, 8)))
    asked = dataclasses.replace(asked or SuiteConfig(), seq_lens=lengths)
    chosen = evaluations(evals, asked, load=lambda source: loading.load(source, dtype=dtype))
    if progress:
        print("\n".join(promise(chosen)), file=sys.stderr)
    named = checkpoint_label(where, steps, adapter)
    rows = []
    if (
        "controls" in evals and window in lengths and None not in methods
    ):  # what the checkpoint itself reads at home
        home = evaluations(evals, dataclasses.replace(asked, seq_lens=(window,)))
        needles = [e for e in home if isinstance(e, Retrieval) and e.condition == "needle"]
        rows += evaluate(
            lm,
            needles,
            method_label=describe(lm.scaling, lm.attention),
            steps=steps,
            sink=sink,
            checkpoint=named,
            part=part,
            progress=progress,
        )
    for method in methods:
        given = () if method is None else method if isinstance(method, tuple) else (method,)
        model = lm.with_method(*given)
        rows += evaluate(
            model,
            chosen,
            method_label=describe(model.scaling, model.attention),
            steps=steps,
            sink=sink,
            checkpoint=named,
            part=part,
            progress=progress,
        )
    return sink, rows


def directory(path: Path) -> Path:
    """Where results go by default: the run itself, or `runs/eval-<name>` for an HF directory."""
    from ctxext import loading

    return path if loading.is_run(path) else Path("runs") / f"eval-{path.resolve().name}"


def checkpoint_label(path: Path, steps: int, adapter: Path | None = None) -> str:
    """What a row calls a checkpoint: the directory's name, the step of a run, and the adapter merged into it."""
    from ctxext import loading

    step = f" step {steps}" if loading.is_run(path) else ""
    return path.resolve().name + step + (f" + {adapter.resolve().name}" if adapter else "")


def describe(*methods: Any) -> str:
    """What rows call a choice of methods: `methods.label` without the identities "none" and "causal"."""
    return (
        " + ".join(name for name in (label([m]) for m in methods) if name not in ("none", "causal"))
        or "none"
    )


def _append(sink: Path, row: dict[str, Any]) -> None:
    sink.parent.mkdir(parents=True, exist_ok=True)
    try:
        append_jsonl(sink, row)
    except ValueError as error:
        raise ValueError(
            f"{row['item']}, {row['method']}: the model's output is not finite; try "
            f"--compute-dtype float32 ({error})"
        ) from error


def _bar(progress: bool) -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not (progress and console.is_terminal))
