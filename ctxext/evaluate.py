"""Evaluate a checkpoint. Records are appended one by one and never computed twice."""

import contextlib
import dataclasses
import functools
import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

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
from ctxext.progress import heard_by, now_at
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
    parts = [Part(lm, evaluation, model) for evaluation in evals]
    return evaluate_parts(parts, sink=sink, shard=shard, progress=progress)


class Part(NamedTuple):
    """An evaluation that a model is asked, as its records describe the model."""

    lm: Model
    evaluation: Eval
    model: EvaluatedModel

    @property
    def title(self) -> str:
        return f"{self.evaluation.title}, {self.model.label}"


def evaluate_parts(
    parts: Sequence[Part],
    *,
    sink: Path | None = None,
    shard: Shard = WHOLE,
    progress: bool = True,
) -> list[EvalRecord]:
    """The records of all items of several evaluations of several models, in order; see `evaluate`.

    The time left is that of all of them together.
    """
    models = list(dict.fromkeys(part.model for part in parts))
    known = {model: _read(sink, model) for model in models}

    def missing_in(part: Part) -> list[str]:
        items = shard.select(part.evaluation.items())
        return [item for item in items if item not in known[part.model]]

    for part in parts:
        of_model = known[part.model]
        records = [of_model[item] for item in part.evaluation.items() if item in of_model]
        _check_same_text(part.evaluation, records, sink)
        if missing_in(part):
            part.evaluation.check_attention(part.lm.attention)
            part.evaluation.check(part.lm.tokenizer)
    with contextlib.ExitStack() as stack:
        for model in models:
            missing = {item for p in parts if p.model == model for item in missing_in(p)}
            if sink and missing:
                claim = functools.partial(claimed, sink, model, missing)
                stack.enter_context(distributed.held_by_primary(claim))
                known[model] |= _read(sink, model)  # what another process has written until then
        missing_of = [missing_in(part) for part in parts]
        weigh = functools.partial(_weights, parts, missing_of)
        label = models[0].label if len(models) == 1 else ""
        shown = EvaluationProgress(label, weigh, enabled=progress)
        stack.enter_context(shown)
        stack.enter_context(heard_by(shown.heard))

        def num_kept() -> tuple[int, int]:
            kept = sum(
                item in known[part.model]
                for part, items in zip(parts, missing_of, strict=True)
                for item in items
            )
            return kept, sum(map(len, missing_of))

        stack.enter_context(_saying_what_is_kept(sink, num_kept, enabled=progress))
        for part in parts:
            of_model = known[part.model]
            missing = missing_in(part)
            shown.begin(part.title, len(missing))
            timed = TimedModel(part.lm, on_call=shown.call_done)
            started = time.monotonic()
            for record in part.evaluation.records(timed, missing, part.model) if missing else ():
                of_model[record.item] = record
                if sink and distributed.is_primary():
                    _append(sink, record)
                shown.record_done()
            shown.end()
            if progress and (shown.prints_lines or shard != WHOLE):
                seconds = time.monotonic() - started
                num_items = len(part.evaluation.items())
                _print(f"{part.title}: {_progress_text(len(missing), num_items, seconds, timed)}")
    if sink and shard != WHOLE:  # other processes have been busy too
        for record in read_records(sink):
            if record.model in known:
                known[record.model][record.item] = record
    all_items = [(part.model, item) for part in parts for item in part.evaluation.items()]
    num_left = sum(item not in known[model] for model, item in all_items)
    if progress and num_left:
        _print(
            f"{num_left} of {len(all_items)} records belong to other shards and are not there yet"
        )
    return [known[model][item] for model, item in all_items if item in known[model]]


def _weights(parts: Sequence[Part], missing_of: Sequence[Sequence[str]]) -> list[list[float]]:
    """How long the calls of each evaluation take, compared with each other."""
    from ctxext.price import weight  # loads jax

    def weight_of(lm: Model, call: Call) -> float:
        if hasattr(lm, "params"):
            return weight(cast("LM", lm), call)
        return float(sum(call.lengths) + call.continuations * call.new_tokens)  # an oracle

    return [
        [weight_of(p.lm, call) for call in calls_of(p.evaluation, p.lm, missing, p.model)]
        for p, missing in zip(parts, missing_of, strict=True)
    ]


@contextlib.contextmanager
def _saying_what_is_kept(
    sink: Path | None, num_kept: Callable[[], tuple[int, int]], *, enabled: bool
) -> Iterator[None]:
    """Say at Ctrl-C how many records are kept, and what is to be read again.

    num_kept: how many of the missing records are there now, and how many were missing.
    """
    try:
        yield
    except KeyboardInterrupt:
        if enabled:
            new, missing = num_kept()
            kept = f"are kept in {sink}" if sink else "are lost: they were not to be written"
            _print(
                f"interrupted: {new} of {missing} missing records {kept}; the text that was "
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
        from ctxext.interop.gguf import is_gguf
        from ctxext.interop.gguf_container import quantized_types
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
        name = loading.name_of(source)
        weights = dataclasses.replace(
            evaluated_model(lm, steps=steps),
            checkpoint=name,
            weights=_checksum(lm),
            train_seq_len=_train_seq_len(path) if is_run else None,
            adapter=adapter.resolve().name if adapter else "",
            quantized=quantized_types(path) if is_gguf(path) else "",
        )
        if bos is False and lm.tokenizer.bos_id is not None:
            weights = dataclasses.replace(weights, without_bos="--no-bos was given")
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
    is_control: bool = False
    """Whether it is only asked for comparison: the same weights without the method."""

    def control_note(self, evals: Sequence[Eval]) -> str:
        """A line that says which of the evaluations `evals` of a method this model is asked too."""
        window = self.lm.config.max_position_embeddings
        places = {
            "in the same texts": [e for e in self.evals if e in evals],
            f"at its window of {window:,} tokens alone": [e for e in self.evals if e not in evals],
        }
        asked = [f"{place}: {_titles(chosen)}" for place, chosen in places.items() if chosen]
        who = "the base without the method"
        if self.described.adapter:
            who = f"the model with the adapter {self.described.adapter}, without the method,"
        elif self.described.is_trained:
            who = f"the run as it was trained ({self.described.label})"
        return f"control: {who} is asked, {'. And '.join(asked)}"


def _titles(evals: Iterable[Eval]) -> str:
    """The titles of evaluations, those without needles or texts as one."""

    def title(evaluation: Eval) -> str:
        is_control = isinstance(evaluation, Retrieval) and evaluation.condition != "needle"
        return CONTROLS if is_control else evaluation.full_title

    return "; ".join(dict.fromkeys(map(title, evals)))


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
        if missing:
            evaluation.check_attention(asked.lm.attention)
        if (evaluation, missing) not in counted:
            if missing:
                evaluation.check(asked.lm.tokenizer)  # reads the text, which happens only once
            started = time.perf_counter()
            calls = calls_of(evaluation, asked.lm, missing, asked.described)
            counted[evaluation, missing] = calls, time.perf_counter() - started
        calls, outside = counted[evaluation, missing]
        title = f"{evaluation.full_title}, {asked.described.label}"
        works.append(Work(printable_line(title), asked.lm, calls, outside, asked.is_control))
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
        base: Sequence[str] = (),
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
        asked = [
            Asked(variant, chosen, named.describe(variant, directory=sink.parent))
            for variant in variants
        ]
        unchanged = named.describe(lm, directory=sink.parent)
        if unchanged not in [variant.described for variant in asked]:
            names = [name for name in evals if name in base]
            control = [e.fitted(lm.tokenizer) for e in evaluations(names, config)]
            if CONTROLS in evals and window in config.seq_lens:
                others = [name for name in evals if name not in base]
                control += _in_window_baseline(others, config, window)
            if control:
                asked.insert(0, Asked(lm, control, unchanged, is_control=True))
        return cls(sink, asked, shard)

    def price(self, *, measured: bool = False) -> "Price":
        """What is still to be read, and how long that takes.

        measured: time this device with two short readings even if there is little to read.
        """
        from ctxext.price import WORTH_MEASURING, Price, measure_now

        counted: Counted = {}
        now_at("counting what is to be read")
        works = [
            work
            for asked in self.models
            for work in works_of(asked, self.sink, shard=self.shard, counted=counted)
        ]
        now_at("")
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
        lines += [asked.control_note(evals) for asked in self.models if asked.is_control]
        for lm in [asked.lm for asked in self.models if not asked.is_control]:
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
        records = evaluate_parts(self.parts(), sink=self.sink, shard=self.shard, progress=progress)
        return records + _known_baseline(self.sink, records)

    def parts(self) -> list[Part]:
        """What is asked, in this order: each evaluation of all models before the next.

        An evaluation that is interrupted has compared with the base what it has asked of a method.
        """
        order = {e.full_title: i for i, e in enumerate(self.models[-1].evals)}
        parts = [Part(asked.lm, e, asked.described) for asked in self.models for e in asked.evals]
        return sorted(parts, key=lambda part: order[part.evaluation.full_title])


class Ask(Protocol):
    """Makes the questions of a budget, about the evaluations of these names.

    base: the names of those that the base is asked too.
    """

    def __call__(
        self, budget: Budget, names: Sequence[str], *, base: Sequence[str]
    ) -> Questions: ...


def questions_within(
    minutes: float,
    ask: Ask,
    *,
    window: int,
    names: Sequence[str] = (),
    shortest: int | None = None,
    base: bool = True,
) -> tuple[Questions, str]:
    """The most questions whose estimated time is within `minutes`, and a line that says how many.

    names: the evaluations; by default those of the standard suite for which there is time, with
    at least `budget.ENOUGH_QUESTIONS` per length where a task can share texts, without those that
    the shortest length cannot hold. window: of pre-training, tokens. shortest: tokens of the
    shortest length, if lengths were chosen. base: ask the base the same, of the default suite as
    far as there is time. Raises ValueError if even one text per length takes longer.
    """
    per_text = questions_per_text(shortest or min(SHORTEST, window))
    first = ask(of_texts(1, per_text), names or BY_IMPORTANCE[:1], base=())
    first_price = first.price(measured=True)

    def priced(budget: Budget, names: Sequence[str], base: Sequence[str]) -> Questions:
        questions = ask(budget, names, base=base)
        return dataclasses.replace(questions, speed=first_price.speed, basis=first_price.basis)

    def seconds(budget: Budget, names: Sequence[str], base: Sequence[str]) -> float:
        return priced(budget, names, base).price().seconds or 0.0

    of_base: Sequence[str] = names if base else ()
    left_out: list[str] = []
    without_base: list[str] = []
    too_large: dict[str, str] = {}
    if not names:
        enough = of_texts(enough_texts(per_text), per_text)
        of_method: dict[str, float] = {}
        of_both: dict[str, float] = {}
        for name in BY_IMPORTANCE:
            try:
                of_method[name] = seconds(enough, [name, CONTROLS], ())
                if base:
                    of_both[name] = seconds(enough, [name, CONTROLS], [name])
            except ValueError as error:
                too_large[name] = str(error)
        chosen = affordable(minutes, of_method, of_both)
        names = [*chosen.names, CONTROLS]
        of_base = chosen.of_base
        left_out = chosen.left_out
        without_base = [name for name in chosen.names if base and name not in of_base]
    _explain_refusal(minutes, priced(of_texts(1, per_text), names, of_base).price())
    num_texts = most_texts(minutes, lambda n: seconds(of_texts(n, per_text), names, of_base))
    line = (
        f"{minutes:g} minutes allow {num_texts} texts per length, with {per_text} questions about "
        "each where a task can ask several"
    )
    if left_out:
        line += f"; no time for {', '.join(left_out)} (--evals chooses)"
    if without_base:
        line += f"; no time to ask the base {', '.join(without_base)} too"
    for error in too_large.values():
        line += f"; left out, as it does not fit: {error}"
    return priced(of_texts(num_texts, per_text), names, of_base), line


def _explain_refusal(minutes: float, smallest: "Price") -> None:
    """Print the price of one text per length if even that takes longer than `minutes`."""
    if (smallest.seconds or 0.0) > 60 * minutes:
        print(
            f"one text per length does not fit into {minutes:g} minutes (the weights are loaded, "
            f"which does not count):\n{smallest.text()}",
            file=sys.stderr,
            flush=True,
        )


def evaluate_checkpoint(
    named: NamedModel,
    *,
    methods: Sequence[Any] = (None,),
    evals: Sequence[str] = STANDARD,
    config: SuiteConfig | None = None,
    base: Sequence[str] = (),
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
    `default_lengths`. base: those of `evals` that the checkpoint is asked without `methods` too, in
    the same texts, as their control. out: directory for records.jsonl, in place of that of the
    model. shard: see `evaluate`. The price is said before anything is read.
    """
    questions = Questions.of(
        named,
        methods=methods,
        evals=evals,
        config=config,
        base=base,
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
