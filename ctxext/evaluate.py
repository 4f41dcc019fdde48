"""Evaluate a checkpoint. Records are appended one by one and never computed twice."""

import contextlib
import dataclasses
import functools
import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ctxext.evals import (
    Eval,
    EvalRecord,
    EvaluatedModel,
    GrowingWindow,
    Recovery,
    Retrieval,
    evaluated_model,
)
from ctxext.evals.base import Model
from ctxext.evals.budget import (
    SHORTEST,
    Budget,
    affordable,
    enough_texts,
    most_texts,
    of_texts,
    questions_per_text,
)
from ctxext.evals.claims import claimed
from ctxext.evals.record import AnswerRecord, parse_records, read_records
from ctxext.evals.reporting import EvaluationProgress
from ctxext.evals.suite import (
    BY_IMPORTANCE,
    CONTROLS,
    STANDARD,
    SuiteConfig,
    evaluations,
    power_statements,
)
from ctxext.evals.timing import TimedModel
from ctxext.evals.work import Call, calls_of
from ctxext.files import append_jsonl, make_parent, read_jsonl
from ctxext.parallel import distributed
from ctxext.plan.longest_text import check_length
from ctxext.progress import heard_by
from ctxext.tasks.base import bos_prefix
from ctxext.terminal import printable_line

if TYPE_CHECKING:
    from ctxext.model.generation import Semantics
    from ctxext.model.lm import LM
    from ctxext.price import Price, Speed, Work


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

    Raises ValueError for an item that cannot be built, for a model whose output is not finite, and
    if another process is computing the same records for `sink`.
    """
    model = model or evaluated_model(lm)
    evals = list(evals)
    known = _read(sink, model)
    for evaluation in evals:
        items = evaluation.items()
        _check_same_text(evaluation, [known[item] for item in items if item in known], sink)
        if not known.keys() >= set(shard.select(items)):
            evaluation.check(lm.tokenizer)
    with contextlib.ExitStack() as stack:
        wanted = {item for evaluation in evals for item in shard.select(evaluation.items())}
        if sink and not known.keys() >= wanted:
            claim = functools.partial(claimed, sink, model, wanted - known.keys())
            stack.enter_context(distributed.held_by_primary(claim))
            known |= _read(sink, model)  # what another process has written until then
        missing_of = [
            [item for item in shard.select(evaluation.items()) if item not in known]
            for evaluation in evals
        ]
        weigh = functools.partial(_weights, lm, evals, missing_of, model)
        shown = EvaluationProgress(model.label, weigh, enabled=progress)
        stack.enter_context(shown)
        stack.enter_context(heard_by(shown.heard))
        stack.enter_context(_saying_what_is_kept(sink, known, missing_of, enabled=progress))
        for evaluation, missing in zip(evals, missing_of, strict=True):
            items = evaluation.items()
            missing = [item for item in missing if item not in known]
            title = f"{evaluation.title}, {model.label}"
            shown.begin(title, len(missing))
            timed = TimedModel(lm, on_call=shown.call_done)
            started = time.monotonic()
            for record in evaluation.records(timed, missing, model) if missing else ():
                known[record.item] = record
                if sink and distributed.is_primary():
                    _append(sink, record)
                shown.record_done()
            shown.end()
            if progress and (shown.prints_lines or shard != WHOLE):
                seconds = time.monotonic() - started
                _print(f"{title}: {_progress_text(len(missing), len(items), seconds, timed)}")
    if sink and shard != WHOLE:  # other processes have been busy too
        known |= {record.item: record for record in read_records(sink) if record.model == model}
    all_items = [item for evaluation in evals for item in evaluation.items()]
    num_left = sum(item not in known for item in all_items)
    if progress and num_left:
        _print(
            f"{num_left} of {len(all_items)} records belong to other shards and are not there yet"
        )
    return [known[item] for item in all_items if item in known]


def _weights(
    lm: Model, evals: Sequence[Eval], missing_of: Sequence[Sequence[str]], model: EvaluatedModel
) -> list[list[float]]:
    """How long the calls of each evaluation take, compared with each other."""
    from ctxext.price import weight  # loads jax

    def weight_of(call: Call) -> float:
        if hasattr(lm, "params"):
            return weight(cast("LM", lm), call)
        return float(sum(call.lengths) + call.continuations * call.new_tokens)  # an oracle

    return [
        [weight_of(call) for call in calls_of(evaluation, lm, missing, model)]
        for evaluation, missing in zip(evals, missing_of, strict=True)
    ]


@contextlib.contextmanager
def _saying_what_is_kept(
    sink: Path | None,
    known: Mapping[str, EvalRecord],
    missing_of: Sequence[Sequence[str]],
    *,
    enabled: bool,
) -> Iterator[None]:
    """Say at Ctrl-C how many records are kept, and what is to be read again."""
    try:
        yield
    except KeyboardInterrupt:
        if enabled:
            missing = [item for items in missing_of for item in items]
            new = sum(item in known for item in missing)
            kept = f"are kept in {sink}" if sink else "are lost: they were not to be written"
            _print(
                f"interrupted: {new} of {len(missing)} missing records {kept}; the text that was "
                "being read is read again from its beginning"
            )
        raise


def _check_same_text(evaluation: Eval, records: Sequence[EvalRecord], sink: Path | None) -> None:
    """Raise ValueError for records of the same items about another text."""
    text = evaluation.protocol.get("text")
    for record in records:
        if record.protocol.get("text") != text:
            raise ValueError(
                f"{sink}: the records of {evaluation.title} are about another text "
                f"({record.protocol.get('text')}, now {text}): the standard library of another "
                "version of Python? Evaluate with that version, into another directory, or move "
                "the file away"
            )


def _progress_text(num_new: int, num_items: int, seconds: float, timed: TimedModel) -> str:
    text = f"{num_new} new of {num_items} records in {seconds:.1f} s"
    if not num_new:
        return text
    outside, padding = timed.shares(seconds)
    return f"{text}, {outside:.0%} outside the model, {padding:.0%} on padding"


def _read(sink: Path | None, model: EvaluatedModel) -> dict[str, EvalRecord]:
    """The records of a model that are there, by item; the same in every process."""
    if sink is None:
        return {}
    # Only the primary process reads, as the file may grow meanwhile.
    values = distributed.broadcast_from_primary(lambda: read_jsonl(sink))
    records = parse_records(values, sink)
    return {record.item: record for record in records if record.model == model}


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """A model with what its weights are, and where its results go by default."""

    lm: "LM"
    weights: EvaluatedModel
    """The checkpoint as it is: its name, its training and the methods that it carries."""
    directory: Path
    """The run itself, or `runs/eval-<name>` for an HF directory."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        methods: tuple[Any, ...] = (),
        adapter: Path | None = None,
        checkpoint: int | str = "latest",
        dtype: str = "float32",
        mesh: Any = None,
        trust: bool = False,
        bos: bool | None = None,
        semantics: "Semantics" = "incremental",
        allow_shorter: bool = False,
    ) -> "NamedModel":
        """The model of a run or an HF directory; arguments and errors are those of `load`."""
        from ctxext import loading  # loads jax
        from ctxext.parallel.mesh import ONE_DEVICE

        path = loading.locate(source)
        # Of a run that is still training, the latest checkpoint may change until it is read.
        steps = loading.checkpoint_step(path, checkpoint)
        lm = loading.load(
            path,
            adapter=adapter,
            checkpoint=steps,
            dtype=dtype,
            mesh=mesh or ONE_DEVICE,
            trust=trust,
            bos=bos,
            semantics=semantics,
        )
        is_run = loading.is_run(path)
        name = path.resolve().name
        weights = dataclasses.replace(
            evaluated_model(lm, steps=steps),
            checkpoint=name,
            weights=_checksum(lm),
            train_seq_len=_train_seq_len(path) if is_run else None,
            adapter=adapter.resolve().name if adapter else "",
        )
        directory = path if is_run else Path("runs") / f"eval-{name}"
        changed = lm.with_method(*methods, allow_shorter=allow_shorter)
        return cls(changed, weights, directory)

    def describe(self, lm: Model, *, directory: Path | None = None) -> EvaluatedModel:
        """`lm`, which has these weights, for the records in a directory.

        A run that keeps the records itself is described as by its own evaluations, without a name.
        """
        as_it_is = self.weights
        model = evaluated_model(lm)
        is_as_trained = not as_it_is.steps or model.method == as_it_is.method
        described = dataclasses.replace(
            as_it_is,
            rope=model.rope,
            base_rope=model.base_rope,
            attention=model.attention,
            semantics=model.semantics,
            trained_with="" if is_as_trained else as_it_is.method,
        )
        is_run = as_it_is.train_seq_len is not None and not as_it_is.adapter
        if is_run and directory is not None and directory.resolve() == self.directory.resolve():
            return dataclasses.replace(described, checkpoint="", weights="")
        return described


def _checksum(lm: "LM") -> str:
    """Of the parameters and of the tokenizer, without which they say nothing about a text."""
    from ctxext.training.checksums import parameter_checksum  # loads jax

    both = f"{parameter_checksum(lm.params)} {lm.tokenizer.sha256}"
    return hashlib.sha256(both.encode()).hexdigest()


def _train_seq_len(run: Path) -> int:
    """Tokens per training row of a run."""
    from ctxext.rundir import RunDir

    return RunDir(run).settings()["train"]["seq_len"]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A model with the evaluations that it is asked, as its records describe it."""

    lm: "LM"
    evals: Sequence[Eval]
    described: EvaluatedModel


Counted = dict[tuple[Eval, tuple[str, ...]], tuple[list[Call], float]]
"""The calls for some items of an evaluation, and the seconds that counting them took."""


def works_of(
    asked: Asked, sink: Path | None, *, shard: Shard = WHOLE, counted: Counted | None = None
) -> list["Work"]:
    """The calls that each evaluation of a model still needs; prompts are built but not read.

    counted: what was counted before for other methods on the same base, which read the same.
    """
    from ctxext.price import Work  # loads jax

    counted = {} if counted is None else counted
    known = _read(sink, asked.described)
    works = []
    for evaluation in asked.evals:
        items = shard.select(evaluation.items())
        missing = tuple(item for item in items if item not in known)
        if (evaluation, missing) not in counted:
            if missing:
                evaluation.check(asked.lm.tokenizer)  # reads the text, which happens only once
            started = time.perf_counter()
            calls = calls_of(evaluation, asked.lm, missing, asked.described)
            counted[evaluation, missing] = calls, time.perf_counter() - started
        calls, outside = counted[evaluation, missing]
        title = f"{evaluation.full_title}, {asked.described.label}"
        works.append(Work(printable_line(title), asked.lm, calls, outside))
    return works


@dataclasses.dataclass(frozen=True)
class Questions:
    """Everything that one command asks, of which some records may be there already."""

    sink: Path
    models: Sequence[Asked]
    shard: Shard = WHOLE
    speed: "Speed | None" = None
    """Of this device, if it was measured before."""
    basis: str = ""
    """When and how the speed was measured, in words."""

    @classmethod
    def of(
        cls,
        named: NamedModel,
        *,
        methods: Sequence[Any] = (None,),
        evals: Sequence[str] = STANDARD,
        config: SuiteConfig | None = None,
        out: Path | None = None,
        shard: Shard = WHOLE,
        allow_shorter: bool = False,
    ) -> "Questions":
        """The questions to a checkpoint under each of `methods`; see `evaluate_checkpoint`."""
        from ctxext import loading  # loads jax

        lm = named.lm
        load_other = functools.cache(
            functools.partial(loading.load, dtype=lm.dtype, bos=lm.tokenizer.adds_bos)
        )
        sink = (out or named.directory) / "records.jsonl"
        window = lm.config.max_position_embeddings
        variants = [_with_methods(lm, method, allow_shorter) for method in methods]
        config = config or SuiteConfig()
        config = dataclasses.replace(
            config,
            seq_lens=config.seq_lens or _default_lengths_of(variants, config.budget.shortest),
            count_tokens=lambda text: len(bos_prefix(lm.tokenizer) + lm.tokenizer.encode(text)),
            load=load_other,
            checksum=lambda name: _checksum(load_other(name)),
        )
        chosen = tuple(e.fitted(lm.tokenizer) for e in evaluations(evals, config))
        check_length(
            lm.config,
            max(config.seq_lens),
            dtype=lm.dtype,
            mesh=lm.mesh,
            is_written=any(isinstance(e, Retrieval | Recovery) for e in chosen),
            option="--seq-len",
        )
        models: list[tuple[LM, Sequence[Eval]]] = []
        if "controls" in evals and window in config.seq_lens and None not in methods:
            models.append((lm, _in_window_baseline(evals, config, window)))
        models += [(variant, chosen) for variant in variants]
        asked = [
            Asked(model, evals, named.describe(model, directory=sink.parent))
            for model, evals in models
        ]
        return cls(sink, asked, shard)

    def price(self, *, measured: bool = False) -> "Price":
        """What is still to be read, and how long that takes.

        measured: time this device with two short readings even if there is little to read.
        """
        from ctxext.price import WORTH_MEASURING, Price, measure_now

        works = [
            work for asked in self.models for work in works_of(asked, self.sink, shard=self.shard)
        ]
        price = Price(works, self.speed, self.basis)
        lengths = [call.padded[1] for work in works for call in work.calls]
        is_worth_it = measured or price.operations >= WORTH_MEASURING
        if self.speed is None and lengths and is_worth_it:
            speed, basis = measure_now(self.models[-1].lm, max(lengths))
            return Price(works, speed, basis)
        return price

    def notes(self) -> list[str]:
        """Lines that say what is asked and how it is read."""
        from ctxext.model.generation import SEMANTICS

        evals = self.models[-1].evals
        lines = [self.models[-1].lm.tokenizer.bos_note, *power_statements(evals)]
        lines += [e.note for e in evals if isinstance(e, GrowingWindow)]
        # The checkpoint in its own window, which methods are compared with, is asked less.
        of_methods = [asked.lm for asked in self.models if asked.evals is evals]
        for lm in of_methods:
            if lm.context.is_plain(lm.scaling):
                continue
            lines.append(f"context: {lm.context.text(lm.scaling)}")
            if lm.depends_on_length:
                lines.append(f"{lm.semantics}: {SEMANTICS[lm.semantics]} (--semantics)")
        return lines

    def introduction(self) -> list[str]:
        """The lines to be printed before anything is read: `notes`, and the price."""
        return [*self.notes(), self.price().sentence()]

    def records(self, *, progress: bool = True) -> list[EvalRecord]:
        """Evaluate what is not there yet; all records, in order.

        The last ones are in-window baselines of the same questions that were measured before.
        """
        records = []
        for asked in self.models:
            records += evaluate(
                asked.lm,
                asked.evals,
                model=asked.described,
                sink=self.sink,
                shard=self.shard,
                progress=progress,
            )
        return records + _known_baseline(self.sink, records)


Ask = Callable[[Budget, Sequence[str]], Questions]
"""Makes the questions of a budget, about the evaluations of these names."""


def questions_within(
    minutes: float, ask: Ask, *, window: int, names: Sequence[str] = (), shortest: int | None = None
) -> tuple[Questions, str]:
    """The most questions whose estimated time is within `minutes`, and a line that says how many.

    names: the evaluations; by default those of the standard suite for which there is time, with
    at least `budget.ENOUGH_QUESTIONS` per length where a task can share texts, without those that
    the shortest length cannot hold. window: of pre-training, tokens. shortest: tokens of the
    shortest length, if lengths were chosen. Raises ValueError if even one text per length takes
    longer.
    """
    per_text = questions_per_text(shortest or min(SHORTEST, window))
    first = ask(of_texts(1, per_text), names or BY_IMPORTANCE[:1]).price(measured=True)

    def priced(questions: Questions) -> Questions:
        return dataclasses.replace(questions, speed=first.speed, basis=first.basis)

    left_out: list[str] = []
    too_large: dict[str, str] = {}
    if not names:
        enough = of_texts(enough_texts(per_text), per_text)
        seconds: dict[str, float] = {}
        for name in BY_IMPORTANCE:
            try:
                seconds[name] = priced(ask(enough, [name, CONTROLS])).price().seconds or 0.0
            except ValueError as error:
                too_large[name] = str(error)
        chosen, left_out = affordable(minutes, list(seconds), seconds)
        names = [*chosen, CONTROLS]

    def seconds_of(num_texts: int) -> float:
        return priced(ask(of_texts(num_texts, per_text), names)).price().seconds or 0.0

    num_texts = most_texts(minutes, seconds_of)
    line = (
        f"{minutes:g} minutes allow {num_texts} texts per length, with {per_text} questions about "
        "each where a task can ask several"
    )
    if left_out:
        line += f"; no time for {', '.join(left_out)} (--evals chooses)"
    for error in too_large.values():
        line += f"; left out, as it does not fit: {error}"
    return priced(ask(of_texts(num_texts, per_text), names)), line


def evaluate_checkpoint(
    named: NamedModel,
    *,
    methods: Sequence[Any] = (None,),
    evals: Sequence[str] = STANDARD,
    config: SuiteConfig | None = None,
    out: Path | None = None,
    shard: Shard = WHOLE,
    allow_shorter: bool = False,
    progress: bool = True,
) -> tuple[Path, list[EvalRecord]]:
    """Evaluate a checkpoint under each of `methods`.

    Returns the records file and the records.

    methods: frequencies, attention, a tuple of both, or None for what the checkpoint carries;
    `allow_shorter` accepts a factor that gives less context than it declares. evals: names of
    `ctxext.evals.suite`. config: the settings of the suite; its lengths are by default those of
    `default_lengths`. out: directory for records.jsonl, in place of that of the model. shard:
    see `evaluate`. The price is said before anything is read.
    """
    questions = Questions.of(
        named,
        methods=methods,
        evals=evals,
        config=config,
        out=out,
        shard=shard,
        allow_shorter=allow_shorter,
    )
    if progress:
        print("\n".join(questions.introduction()), file=sys.stderr, flush=True)
    return questions.sink, questions.records(progress=progress)


def _with_methods(lm: "LM", method: Any, allow_shorter: bool) -> "LM":
    """`lm` under one of the `methods` of `evaluate_checkpoint`."""
    parts = method if isinstance(method, tuple) else (method,)
    given = [part for part in parts if part is not None]
    return lm.with_method(*given, allow_shorter=allow_shorter)


def default_lengths(window: int, target: int) -> tuple[int, ...]:
    """The lengths that are asked about by default, in tokens.

    target: the context that the method makes, or that the checkpoint declares as it is. One window
    of pre-training, and a quarter, half and all of a longer target; without one, one, two, four and
    eight windows.
    """
    if target <= window:
        return tuple(window * times for times in (1, 2, 4, 8))
    parts = [target // part for part in (4, 2, 1)]
    return (window, *(part for part in parts if part > window))


def _default_lengths_of(variants: Sequence["LM"], shortest: int | None = None) -> tuple[int, ...]:
    """The default lengths of all variants of a checkpoint together.

    shortest: go on by halves down to this.
    """
    lengths: set[int] = set()
    for lm in variants:
        window = lm.config.max_position_embeddings
        lengths.update(default_lengths(window, lm.context.export_length(lm.scaling, window)))
    while shortest is not None and min(lengths) // 2 >= shortest:
        lengths.add(min(lengths) // 2)
    return tuple(sorted(lengths))


def _known_baseline(sink: Path, records: Sequence[EvalRecord]) -> list[EvalRecord]:
    """The in-window baselines of the same questions that `sink` holds from before.

    With them, what was asked without controls can be compared with the base too.
    """
    asked = {(record.evaluation, record.settings) for record in records}
    known = {(record.item, record.model) for record in records}
    models = {record.model for record in records}

    def is_of_same_base(base: EvaluatedModel) -> bool:
        return any(
            (base.checkpoint, base.dtype, base.bos) == (model.checkpoint, model.dtype, model.bos)
            and (model.is_trained or base.weights == model.weights)
            for model in models
        )

    return [
        record
        for record in read_records(sink)
        if isinstance(record, AnswerRecord)
        and record.question.condition == "needle"
        and record.seq_len == record.model.window
        and record.model.is_plain
        and not record.model.is_trained
        and (record.evaluation, record.settings) in asked
        and (record.item, record.model) not in known
        and is_of_same_base(record.model)
    ]


def _in_window_baseline(evals: Sequence[str], config: SuiteConfig, window: int) -> list[Retrieval]:
    """The questions for the checkpoint itself in its own window, which methods compare with."""
    in_window = evaluations(evals, dataclasses.replace(config, seq_lens=(window,)))
    return [e for e in in_window if isinstance(e, Retrieval) and e.condition == "needle"]


def _append(sink: Path, record: EvalRecord) -> None:
    make_parent(sink)
    try:
        append_jsonl(sink, record.to_json())
    except ValueError as error:
        raise ValueError(
            f"{record.item}, {record.model.label}: the model's output is not finite; try "
            f"--compute-dtype float32 ({error})"
        ) from error


def _print(text: str) -> None:
    print(printable_line(text), file=sys.stderr, flush=True)
