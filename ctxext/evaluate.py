"""Checkpoint -> evaluations -> rows: appended one by one, never computed twice."""

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ctxext import tasks
from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals import Eval, Passkey, Perplexity
from ctxext.evals.base import Model
from ctxext.files import append_jsonl, read_jsonl
from ctxext.methods import label

Budget = Literal["small", "full"]
HELDOUT = Stdlib("heldout")


def evaluate(
    lm: Model,
    evals: Iterable[Eval],
    *,
    method_label: str,
    sink: Path | None = None,
    checkpoint: str = "",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """The rows of all items of `evals`, each with `checkpoint`, `method` and `window`, in order.

    Rows are appended to `sink` as they come; items that it already has under this checkpoint and method are read, not
    computed. Progress goes to stderr. Raises ValueError for an item that cannot be built or a model that is not finite.
    """
    labels = {"checkpoint": checkpoint, "method": method_label, "window": lm.config.max_position_embeddings}
    old = {row["item"]: row for row in (read_jsonl(sink) if sink else []) if labels.items() <= row.items()}
    rows: list[dict[str, Any]] = []
    with _bar(progress) as bar:
        for evaluation in evals:
            items, started = evaluation.items(), time.monotonic()
            missing = [item for item in items if item not in old]
            task = bar.add_task(f"{_title(evaluation)}, {method_label}", total=len(missing))
            for row in evaluation.rows(lm, missing) if missing else ():
                old[row["item"]] = {**labels, **row}
                if sink:
                    _append(sink, old[row["item"]])
                bar.advance(task)
            rows += [old[item] for item in items]
            if progress and bar.disable:
                seconds = time.monotonic() - started
                print(f"{_title(evaluation)}, {method_label}: {len(missing)} new of {len(items)} rows in "
                      f"{seconds:.1f} s", file=sys.stderr, flush=True)  # fmt: skip
    return rows


def standard_evals(
    names: Sequence[str], seq_lens: Sequence[int], budget: Budget, *, source: TextSource = HELDOUT
) -> tuple[Eval, ...]:
    """The evaluations called `names` ("passkey", "kv", "ppl"): small takes 20 questions per length, full 180.

    Raises ValueError for an unknown name.
    """
    lengths = tuple(seq_lens)
    small = budget == "small"
    depths = tuple(i / (4 if small else 8) for i in range(5 if small else 9))
    retrieval: dict[str, Any] = {"seq_lens": lengths, "depths": depths, "n": 4 if small else 20, "source": source}
    text = {"num_documents": 8, "num_windows": 1 if small else 4, "target_tokens": min(128, min(lengths) // 2)}
    known = {
        "passkey": lambda: Passkey(**retrieval),
        "kv": lambda: Passkey(**retrieval, task=tasks.KeyValue()),
        "ppl": lambda: Perplexity(lengths, **text, source=source),
    }
    for name in names:
        if name not in known:
            raise ValueError(f"there is no evaluation {name!r}; known: {', '.join(known)}")
    return tuple(known[name]() for name in names)


def evaluate_checkpoint(
    path: str | Path,
    *,
    methods: Sequence[Any] = (None,),
    evals: Sequence[str] = ("passkey", "ppl"),
    seq_lens: Sequence[int] | None = None,
    budget: Budget = "small",
    source: TextSource = HELDOUT,
    out: Path | None = None,
    dtype: str = "float32",
    mesh: Any = None,
    trust: bool = False,
    progress: bool = True,
) -> tuple[Path, list[dict[str, Any]]]:
    """Evaluate an HF or run directory under each of `methods`; returns the rows file and the rows.

    methods: frequencies, attention, a tuple of both, or None for what the checkpoint carries. seq_lens: by default
    half, one, two and four windows. out: directory for rows.jsonl, by default the run, or `runs/eval-<name>` for an HF
    directory.
    """
    from ctxext import door  # loads jax

    lm = door.load(path, dtype=dtype, trust=trust, **({} if mesh is None else {"mesh": mesh}))
    where = door.locate(path)
    run = door.is_run(where)
    sink = (out or (where if run else Path("runs") / f"eval-{where.resolve().name}")) / "rows.jsonl"
    window = lm.config.max_position_embeddings
    chosen = standard_evals(evals, seq_lens or (window // 2, window, 2 * window, 4 * window), budget, source=source)
    named = checkpoint_label(where)
    rows = []
    for method in methods:
        given = () if method is None else method if isinstance(method, tuple) else (method,)
        model = lm.with_method(*given)
        rows += evaluate(
            model, chosen, method_label=describe(model.scaling, model.attention), sink=sink, checkpoint=named,
            progress=progress,
        )  # fmt: skip
    return sink, rows


def checkpoint_label(path: Path) -> str:
    """What a row calls a checkpoint: the directory's name, and the step of a run."""
    from ctxext import checkpoint, door

    name = path.resolve().name
    if not door.is_run(path):
        return name
    from ctxext.rundir import RunDir

    return f"{name} step {checkpoint.latest_step(RunDir(path).checkpoints)}"


def describe(*methods: Any) -> str:
    """What rows call a choice of methods: `methods.label` without the identities "none" and "causal"."""
    return " + ".join(name for name in (label([m]) for m in methods) if name not in ("none", "causal")) or "none"


def _title(evaluation: Eval) -> str:
    return evaluation.task.name if isinstance(evaluation, Passkey) else evaluation.name


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
