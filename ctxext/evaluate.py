"""Checkpoint -> evaluations -> rows: appended one by one, never computed twice."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ctxext import distributed, tasks
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
    rope: str = "",
    steps: int = 0,
    sink: Path | None = None,
    checkpoint: str = "",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """The rows of all items of `evals`, each with `checkpoint`, `method`, `rope`, `steps` and `window`, in order.

    method_label: the name of this model in tables; rope: that of its method alone; steps: the fine-tuning behind it.
    Rows are appended to `sink` as they come; items that it already has under this checkpoint and method are read, not
    computed. Progress goes to stderr. Raises ValueError for an item that cannot be built or a model that is not finite.
    """
    labels = {"checkpoint": checkpoint, "method": method_label, "rope": rope or method_label,
              "steps": steps, "window": lm.config.max_position_embeddings}  # fmt: skip
    found = distributed.once(lambda: read_jsonl(sink)) if sink else []  # the same for all, whoever is first
    old = {row["item"]: row for row in found if labels.items() <= row.items()}
    rows: list[dict[str, Any]] = []
    with _bar(progress) as bar:
        for evaluation in evals:
            items, started = evaluation.items(), time.monotonic()
            missing = [item for item in items if item not in old]
            task = bar.add_task(f"{_title(evaluation)}, {method_label}", total=len(missing))
            for row in evaluation.rows(lm, missing) if missing else ():
                old[row["item"]] = {**labels, **row}
                if sink and distributed.first():
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
        "passkey": lambda: (Passkey(**retrieval),),
        "kv": lambda: (Passkey(**retrieval, task=tasks.KeyValue()),),
        "ppl": lambda: (Perplexity(lengths, **text, source=source),),
        "controls": lambda: (Passkey(**last, condition="no-needle"), Passkey(**last, condition="needle-only")),
    }
    for name in names:
        if name not in known:
            raise ValueError(f"there is no evaluation {name!r}; known: {', '.join(known)}")
    return tuple(evaluation for name in names for evaluation in known[name]())


def evaluate_checkpoint(
    path: str | Path,
    *,
    adapter: Path | None = None,
    checkpoint: int | str = "latest",
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

    methods: frequencies, attention, a tuple of both, or None for what the checkpoint carries. adapter: a PEFT directory
    to merge. checkpoint: which one of a run, see `door.step_of`. seq_lens: by default half, one, two and four windows.
    out: directory for rows.jsonl, by default the run, or `runs/eval-<name>` for an HF directory.
    """
    from ctxext import door  # loads jax
    from ctxext.sharding import ONE_DEVICE

    where = door.locate(path)
    steps = door.step_of(where, checkpoint)  # a run that goes on may have another latest one by the time it is read
    lm = door.load(where, adapter=adapter, checkpoint=steps, dtype=dtype, trust=trust, mesh=mesh or ONE_DEVICE)
    run = door.is_run(where)
    sink = (out or (where if run else Path("runs") / f"eval-{where.resolve().name}")) / "rows.jsonl"
    window = lm.config.max_position_embeddings
    chosen = standard_evals(evals, seq_lens or (window // 2, window, 2 * window, 4 * window), budget, source=source)
    parts = (f" step {steps}" if run else "", f" + {adapter.resolve().name}" if adapter else "")
    named = where.resolve().name + "".join(parts)
    rows = []
    for method in methods:
        given = () if method is None else method if isinstance(method, tuple) else (method,)
        model = lm.with_method(*given)
        rows += evaluate(
            model, chosen, method_label=describe(model.scaling, model.attention), steps=steps, sink=sink,
            checkpoint=named, progress=progress,
        )  # fmt: skip
    return sink, rows


def describe(*methods: Any) -> str:
    """What rows call a choice of methods: `methods.label` without the identities "none" and "causal"."""
    return " + ".join(name for name in (label([m]) for m in methods) if name not in ("none", "causal")) or "none"


def _title(evaluation: Eval) -> str:
    if not isinstance(evaluation, Passkey):
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
