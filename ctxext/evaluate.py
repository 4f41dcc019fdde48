"""Checkpoint -> evaluations -> rows: appended one by one, never computed twice."""

import dataclasses
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ctxext import distributed, tasks
from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals import Eval, Perplexity, Retrieval
from ctxext.evals.base import Model
from ctxext.evals.timing import Timed
from ctxext.files import append_jsonl, read_jsonl
from ctxext.methods import label

Budget = Literal["small", "full"]


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
HELDOUT = Stdlib("heldout")


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
    labels = {"checkpoint": checkpoint, "method": method_label, "rope": rope or method_label,
              "steps": steps, "window": lm.config.max_position_embeddings}  # fmt: skip
    found = distributed.once(lambda: read_jsonl(sink)) if sink else []  # the same for all, whoever is first
    old = {row["item"]: row for row in found if labels.items() <= row.items()}
    evals = list(evals)
    with _bar(progress) as bar:
        for evaluation in evals:
            items, started, timed = evaluation.items(), time.monotonic(), Timed(lm)
            missing = [item for item in part.of(items) if item not in old]
            task = bar.add_task(f"{_title(evaluation)}, {method_label}", total=len(missing))
            for row in evaluation.rows(timed, missing) if missing else ():
                old[row["item"]] = {**labels, **row}
                if sink and distributed.first():
                    _append(sink, old[row["item"]])
                bar.advance(task)
            if progress and (bar.disable or part != WHOLE):
                seconds = time.monotonic() - started
                outside, padding = timed.shares(seconds)
                share = f", {outside:.0%} outside the model, {padding:.0%} on padding" if missing else ""
                print(f"{_title(evaluation)}, {method_label}: {len(missing)} new of {len(items)} rows in "
                      f"{seconds:.1f} s{share}", file=sys.stderr, flush=True)  # fmt: skip
    if sink and part != WHOLE:  # the others have been busy too
        old |= {row["item"]: row for row in read_jsonl(sink) if labels.items() <= row.items()}
    wanted = [item for evaluation in evals for item in evaluation.items()]
    if progress and (left := sum(item not in old for item in wanted)):
        print(f"{left} of {len(wanted)} rows belong to other parts and are not there yet", file=sys.stderr, flush=True)
    return [old[item] for item in wanted if item in old]


def standard_evals(
    names: Sequence[str], seq_lens: Sequence[int], budget: Budget, *, source: TextSource = HELDOUT
) -> tuple[Eval, ...]:
    """The evaluations called `names`: "passkey", "kv" (small takes 20 questions per length, full 180), "ppl", and
    "controls": passkeys at the longest length with the needle left out, and with the haystack left out.


    Raises ValueError for an unknown name.
    """
    lengths = tuple(seq_lens)
    small = budget == "small"
    depths = tuple(i / (4 if small else 8) for i in range(5 if small else 9))
    retrieval: dict[str, Any] = {"seq_lens": lengths, "depths": depths, "n": 4 if small else 20, "source": source}
    text = {"num_documents": 8, "num_windows": 1 if small else 4, "target_tokens": min(128, min(lengths) // 2)}
    last: dict[str, Any] = {**retrieval, "seq_lens": (max(lengths),)}
    known: dict[str, Callable[[], tuple[Eval, ...]]] = {
        "passkey": lambda: (Retrieval(**retrieval),),
        "kv": lambda: (Retrieval(**retrieval, task=tasks.KeyValue()),),
        "ppl": lambda: (Perplexity(lengths, **text, source=source),),
        "controls": lambda: (Retrieval(**last, condition="no-needle"), Retrieval(**last, condition="needle-only")),
    }
    for name in names:
        if name not in known:
            raise ValueError(f"there is no evaluation {name!r}; known: {', '.join(known)}")
    return tuple(evaluation for name in names for evaluation in known[name]())


def evaluate_checkpoint(
    path: str | Path,
    *,
    adapter: Path | None = None,
    methods: Sequence[Any] = (None,),
    evals: Sequence[str] = ("passkey", "ppl"),
    seq_lens: Sequence[int] | None = None,
    budget: Budget = "small",
    source: TextSource = HELDOUT,
    out: Path | None = None,
    dtype: str = "float32",
    mesh: Any = None,
    part: Part = WHOLE,
    trust: bool = False,
    progress: bool = True,
) -> tuple[Path, list[dict[str, Any]]]:
    """Evaluate an HF or run directory under each of `methods`; returns the rows file and the rows.

    methods: frequencies, attention, a tuple of both, or None for what the checkpoint carries. adapter: a PEFT directory
    to merge. seq_lens: by default half, one, two and four windows. out: directory for rows.jsonl, by default the run,
    or `runs/eval-<name>` for an HF directory. part: see `evaluate`.
    """
    from ctxext import door  # loads jax
    from ctxext.sharding import ONE_DEVICE

    lm = door.load(path, adapter=adapter, dtype=dtype, trust=trust, mesh=mesh or ONE_DEVICE)
    where = door.locate(path)
    sink = (out or directory(where)) / "rows.jsonl"
    window = lm.config.max_position_embeddings
    chosen = standard_evals(evals, seq_lens or (window // 2, window, 2 * window, 4 * window), budget, source=source)
    named = checkpoint_label(where, adapter)
    steps = trained_steps(where)
    rows = []
    for method in methods:
        given = () if method is None else method if isinstance(method, tuple) else (method,)
        model = lm.with_method(*given)
        rows += evaluate(
            model, chosen, method_label=describe(model.scaling, model.attention), steps=steps, sink=sink,
            checkpoint=named, part=part, progress=progress,
        )  # fmt: skip
    return sink, rows


def directory(path: Path) -> Path:
    """Where results go by default: the run itself, or `runs/eval-<name>` for an HF directory."""
    from ctxext import door

    return path if door.is_run(path) else Path("runs") / f"eval-{path.resolve().name}"


def checkpoint_label(path: Path, adapter: Path | None = None) -> str:
    """What a row calls a checkpoint: the directory's name, the step of a run, and the adapter merged into it."""
    steps, name = trained_steps(path), path.resolve().name
    return (f"{name} step {steps}" if steps else name) + (f" + {adapter.resolve().name}" if adapter else "")


def trained_steps(path: Path) -> int:
    """Steps behind the newest checkpoint of a run; 0 for an HF directory."""
    from ctxext import checkpoint, door
    from ctxext.rundir import RunDir

    return checkpoint.latest_step(RunDir(path).checkpoints) if door.is_run(path) else 0


def describe(*methods: Any) -> str:
    """What rows call a choice of methods: `methods.label` without the identities "none" and "causal"."""
    return " + ".join(name for name in (label([m]) for m in methods) if name not in ("none", "causal")) or "none"


def _title(evaluation: Eval) -> str:
    if not isinstance(evaluation, Retrieval):
        return evaluation.name
    return evaluation.task.name + (f", {evaluation.condition}" if evaluation.condition != "needle" else "")


def _append(sink: Path, row: dict[str, Any]) -> None:
    sink.parent.mkdir(parents=True, exist_ok=True)
    try:
        append_jsonl(sink, row)
    except ValueError as error:
        raise ValueError(f"{row['item']}, {row['method']}: the model's output is not finite; try "
                         f"--compute-dtype float32 ({error})") from error  # fmt: skip


def _bar(progress: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not (progress and console.is_terminal))
