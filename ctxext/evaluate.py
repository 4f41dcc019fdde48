"""Evaluate a checkpoint. Records are appended one by one and never computed twice."""

import dataclasses
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ctxext.evals import Eval, EvalRecord, EvaluatedModel, Retrieval, evaluated_model
from ctxext.evals.base import Model
from ctxext.evals.record import parse_records, read_records
from ctxext.evals.suite import STANDARD, SuiteConfig, evaluations, power_statements
from ctxext.evals.timing import TimedModel
from ctxext.files import append_jsonl, read_jsonl
from ctxext.parallel import distributed

if TYPE_CHECKING:
    from ctxext.model.lm import LM


@dataclasses.dataclass(frozen=True)
class Shard:
    """Share `number` (from 1) of `count` of the items: every process takes every count-th item."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "2/4" as the second of four. Raises ValueError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(
                f"--shard {text!r} is not a share of the work; the second of four is 2/4"
            )
        return cls(int(match[1]), int(match[2]))

    def select(self, items: Sequence[str]) -> Sequence[str]:
        return items[self.number - 1 :: self.count]


WHOLE = Shard(1, 1)


def evaluate(
    lm: Model,
    evals: Iterable[Eval],
    *,
    model: EvaluatedModel | None = None,
    sink: Path | None = None,
    shard: Shard = WHOLE,
    progress: bool = True,
) -> list[EvalRecord]:
    """The records of all items of `evals`, in order.

    model: describes `lm` in the records; by default its methods, without checkpoint or training.
    sink: records are appended to this file as they come; those that it already holds for this model
    are read, not computed. shard: the share of the missing items that is computed here, while other
    processes do theirs with the same `sink`; what they have not written by the end is left out of
    the result. Progress goes to stderr.

    Raises ValueError for an item that cannot be built or a model whose output is not finite.
    """
    model = model or evaluated_model(lm)
    evals = list(evals)
    known = _read(sink, model)
    for evaluation in evals:
        if not known.keys() >= set(shard.select(evaluation.items())):
            evaluation.check(lm.tokenizer)
    with _bar(progress) as bar:
        for evaluation in evals:
            items = evaluation.items()
            missing = [item for item in shard.select(items) if item not in known]
            task = bar.add_task(f"{evaluation.title}, {model.label}", total=len(missing))
            timed = TimedModel(lm)
            started = time.monotonic()
            for record in evaluation.records(timed, missing, model) if missing else ():
                known[record.item] = record
                if sink and distributed.is_primary():
                    _append(sink, record)
                bar.advance(task)
            if progress and (bar.disable or shard != WHOLE):
                seconds = time.monotonic() - started
                message = f"{len(missing)} new of {len(items)} records in {seconds:.1f} s"
                if missing:
                    outside, padding = timed.shares(seconds)
                    message += f", {outside:.0%} outside the model, {padding:.0%} on padding"
                _print(f"{evaluation.title}, {model.label}: {message}")
    if sink and shard != WHOLE:  # other processes have been busy too
        known |= {record.item: record for record in read_records(sink) if record.model == model}
    all_items = [item for evaluation in evals for item in evaluation.items()]
    num_left = sum(item not in known for item in all_items)
    if progress and num_left:
        _print(
            f"{num_left} of {len(all_items)} records belong to other shards and are not there yet"
        )
    return [known[item] for item in all_items if item in known]


def _read(sink: Path | None, model: EvaluatedModel) -> dict[str, EvalRecord]:
    """The records of a model that are there, by item; the same in every process."""
    if sink is None:
        return {}
    # Only the primary process reads, as the file may grow meanwhile.
    values = distributed.broadcast_from_primary(lambda: read_jsonl(sink))
    records = parse_records(values, sink)
    return {record.item: record for record in records if record.model == model}


def evaluate_checkpoint(
    path: str | Path,
    *,
    adapter: Path | None = None,
    checkpoint: int | str = "latest",
    methods: Sequence[Any] = (None,),
    evals: Sequence[str] = STANDARD,
    seq_lens: Sequence[int] | None = None,
    config: SuiteConfig | None = None,
    out: Path | None = None,
    dtype: str = "float32",
    mesh: Any = None,
    shard: Shard = WHOLE,
    trust: bool = False,
    progress: bool = True,
) -> tuple[Path, list[EvalRecord]]:
    """Evaluate an HF or run directory under each of `methods`.

    Returns the records file and the records.

    adapter: a PEFT directory to merge. checkpoint: which one of a run, see
    `loading.checkpoint_step`. methods: frequencies, attention, a tuple of both, or None for what
    the checkpoint carries. evals: names of `ctxext.evals.suite`. seq_lens: by default one, two,
    four and eight windows. config: the other settings of the suite. out: directory for
    records.jsonl, by default the run, or `runs/eval-<name>` for an HF directory. shard: see
    `evaluate`.
    """
    from ctxext import loading  # loads jax
    from ctxext.parallel.mesh import ONE_DEVICE

    source = loading.locate(path)
    # Of a run that is still training, the latest checkpoint may change until it is read.
    steps = loading.checkpoint_step(source, checkpoint)
    lm = loading.load(
        source, adapter=adapter, checkpoint=steps, dtype=dtype, trust=trust, mesh=mesh or ONE_DEVICE
    )
    sink = (out or default_directory(source)) / "records.jsonl"
    window = lm.config.max_position_embeddings
    config = dataclasses.replace(
        config or SuiteConfig(),
        seq_lens=tuple(seq_lens or (window * times for times in (1, 2, 4, 8))),
        load=lambda name: loading.load(name, dtype=dtype),
    )
    chosen = evaluations(evals, config)
    if progress:
        print("\n".join(power_statements(chosen)), file=sys.stderr)

    todo: list[tuple[LM, Sequence[Eval]]] = []
    if "controls" in evals and window in config.seq_lens and None not in methods:
        todo.append((lm, _in_window_baseline(evals, config, window)))
    for method in methods:
        parts = method if isinstance(method, tuple) else (method,)
        model = lm.with_method(*(part for part in parts if part is not None))
        todo.append((model, chosen))
    name = checkpoint_label(source, steps, adapter)
    records = []
    for model, model_evals in todo:
        description = evaluated_model(model, checkpoint=name, steps=steps)
        records += evaluate(
            model, model_evals, model=description, sink=sink, shard=shard, progress=progress
        )
    return sink, records


def _in_window_baseline(evals: Sequence[str], config: SuiteConfig, window: int) -> list[Retrieval]:
    """The questions for the checkpoint itself in its own window, which methods compare with."""
    in_window = evaluations(evals, dataclasses.replace(config, seq_lens=(window,)))
    return [e for e in in_window if isinstance(e, Retrieval) and e.condition == "needle"]


def default_directory(path: Path) -> Path:
    """Where results go by default: the run itself, or `runs/eval-<name>` for an HF directory."""
    from ctxext import loading

    return path if loading.is_run(path) else Path("runs") / f"eval-{path.resolve().name}"


def checkpoint_label(path: Path, steps: int, adapter: Path | None = None) -> str:
    """A checkpoint's name in records: directory, step of a run, and the adapter merged into it."""
    from ctxext import loading

    step = f" step {steps}" if loading.is_run(path) else ""
    return path.resolve().name + step + (f" + {adapter.resolve().name}" if adapter else "")


def _append(sink: Path, record: EvalRecord) -> None:
    sink.parent.mkdir(parents=True, exist_ok=True)
    try:
        append_jsonl(sink, record.to_json())
    except ValueError as error:
        raise ValueError(
            f"{record.item}, {record.model.label}: the model's output is not finite; try "
            f"--compute-dtype float32 ({error})"
        ) from error


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _bar(progress: bool) -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not (progress and console.is_terminal))
