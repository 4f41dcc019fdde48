"""The tables of the study of methods on SmolLM2 from its records, with the tests of its protocol.

    python experiments/tables/smollm2_study.py runs/study
    python experiments/tables/smollm2_study.py runs/study --markdown

Trials are told apart by the names of their directories: STAGE-METHOD, and for what is trained
STAGE-METHOD-SEED. Only trials that have finished count. What is measured, which comparisons are
made and what counts as a difference is in docs/study.md; nothing here can be chosen.
"""

import argparse
import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctxext import report
from ctxext.evals import EvalRecord
from ctxext.evals.record import AnswerRecord, LossRecord, read_records
from ctxext.evals.stats import Interval, holm, ratio_interval, sign_flip
from ctxext.report.table import Table, table_of_texts
from ctxext.rundir import RunDir

STAGES = ("zero-shot", "trained", "far")
NAME = re.compile(rf"({'|'.join(STAGES)})-(.+?)(?:-(\d+))?")
UNSCALED, YARN = "none", "yarn"
"""What every method is compared with."""
ALPHA = 0.05
NATS, POINTS = 0.01, 10.0
"""The least difference that counts, per token and in percentage points."""
NOTHING = "-"
RIGHT = "right at "
Texts = Mapping[str, tuple[float, int]]
"""Sum and count of a measure, by the name of the text."""


class Trial(NamedTuple):
    """A finished trial."""

    stage: str
    method: str
    seed: int
    records: Sequence[EvalRecord]


@dataclasses.dataclass(frozen=True)
class Measure:
    """One kind of number, of which each text has a sum and a count."""

    name: str
    margin: float
    """The least difference that counts."""
    texts: Callable[[Sequence[EvalRecord]], Texts]
    unit: float = 1.0
    """What a mean is multiplied with for people: 100 for percent."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A method minus another on the same texts, over the seeds that both have."""

    mean: Interval
    by_seed: Sequence[float]
    p: float
    margin: float
    adjusted_p: float = 1.0

    @property
    def verdict(self) -> str:
        """By the rules of the protocol: * for a difference, = for equal, ? for not decided."""
        same_sign = len({np.sign(x) for x in self.by_seed}) == 1
        value, low, high = self.mean
        if self.adjusted_p < ALPHA and abs(value) >= self.margin and same_sign:
            return "*"
        if low is not None and high is not None and max(-low, high) <= self.margin:
            return "="
        return "?"

    @property
    def text(self) -> str:
        digits = 3 if self.margin == NATS else 0
        return f"{self.mean:+z.{digits}f} p {self.adjusted_p:.2g} {self.verdict}"


@dataclasses.dataclass(frozen=True)
class Stage:
    """The finished trials of a stage, by method and seed."""

    name: str
    trials: Mapping[str, Mapping[int, Trial]]

    @cached_property
    def window(self) -> int:
        return self._records[0].model.window

    @property
    def _records(self) -> Sequence[EvalRecord]:
        return next(iter(next(iter(self.trials.values())).values())).records

    def texts(self, method: str, measure: Measure) -> dict[int, Texts]:
        """The measure of every text, by seed."""
        found = {seed: measure.texts(trial.records) for seed, trial in self.trials[method].items()}
        return {seed: texts for seed, texts in found.items() if texts}

    def difference(self, method: str, other: str, measure: Measure) -> Difference | None:
        """`method` minus `other`; None unless a seed of both has the same texts."""
        a, b = self.texts(other, measure), self.texts(method, measure)
        by_seed = [_differences(a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())]
        if not by_seed or not all(by_seed):
            return None
        names = list(by_seed[0])
        if any(list(texts) != names for texts in by_seed):
            raise ValueError(f"{method}: its seeds were asked about different texts")
        sums = np.array([[texts[name][0] for name in names] for texts in by_seed])
        counts = np.array([[texts[name][1] for name in names] for texts in by_seed])
        mean = ratio_interval(sums.sum(0), counts.sum(0)).scaled(measure.unit)
        of_seeds = (measure.unit * sums.sum(1) / counts.sum(1)).tolist()
        return Difference(mean, of_seeds, exact_p(sums.sum(0)), measure.margin)

    def family(self, measure: Measure) -> dict[tuple[str, str], Difference]:
        """Every method minus the unscaled one, and every other minus YaRN, p-values adjusted."""
        pairs = [(method, UNSCALED) for method in self.trials if method != UNSCALED]
        pairs += [(method, YARN) for method in self.trials if method not in (UNSCALED, YARN)]
        found = {
            pair: difference
            for pair in pairs
            if pair[1] in self.trials and (difference := self.difference(*pair, measure))
        }
        adjusted = holm([difference.p for difference in found.values()]) if found else []
        return {
            pair: dataclasses.replace(difference, adjusted_p=p)
            for (pair, difference), p in zip(found.items(), adjusted, strict=True)
        }


def _differences(a: Texts, b: Texts) -> Texts:
    """Per text that both have, b minus a in the unit of the sums, and the count."""
    both = {}
    for name in sorted(a.keys() & b.keys()):
        (sum_a, count), (sum_b, count_b) = a[name], b[name]
        if count != count_b:
            raise ValueError(f"{name} was asked {count} and {count_b} times; let the trials finish")
        both[name] = (sum_b - sum_a, count)
    return both


def exact_p(sums: np.ndarray) -> float:
    """Two-sided p-value of the sums of texts, by flipping the sign of each."""
    if np.all(sums == np.round(sums)):
        return sign_flip(sums.astype(int).tolist(), range(len(sums)))
    signs = np.array(list(itertools.product((1, -1), repeat=len(sums))))
    totals = np.abs(signs @ sums)
    return float((totals >= abs(sums.sum()) * (1 - 1e-9)).mean())


def loss_between(first: float, last: float) -> Callable[[Sequence[EvalRecord]], Texts]:
    """Nats of each book from `first` to `last` windows of tokens on, one value per book."""

    def texts(records: Sequence[EvalRecord]) -> Texts:
        found = {}
        for record in records:
            bins = record.scores.by_position if isinstance(record, LossRecord) else None
            if bins is None or record.evaluation != "growing-window":
                continue
            window = record.model.window
            within = [first * window <= edge < last * window for edge in bins.edges[:-1]]
            nll = sum(itertools.compress(bins.nll, within))
            if count := sum(itertools.compress(bins.count, within)):
                found[record.item] = (nll / count, 1)
        return found

    return texts


def right_at(
    seq_len: int | None, *, condition: str = "needle", task: str | None = None
) -> Callable[[Sequence[EvalRecord]], Texts]:
    """Right answers and questions of each text; None: at any length or of any task."""

    def texts(records: Sequence[EvalRecord]) -> Texts:
        found: dict[str, tuple[float, int]] = {}
        for record in records:
            if (
                isinstance(record, AnswerRecord)
                and record.question.condition == condition
                and seq_len in (None, record.seq_len)
                and task in (None, record.question.task)
            ):
                right, count = found.get(record.cluster.text, (0.0, 0))
                found[record.cluster.text] = (right + record.scores.correct, count + 1)
        return found

    return texts


def short_text(source: str) -> Callable[[Sequence[EvalRecord]], Texts]:
    """Nats per token of each short text whose source begins like this."""

    def texts(records: Sequence[EvalRecord]) -> Texts:
        return {
            record.item: (record.scores.nll / record.scores.count, 1)
            for record in records
            if isinstance(record, LossRecord)
            and record.evaluation == "ppl"
            and str(record.protocol.get("source", "")).startswith(source)
        }

    return texts


def measures(stage: str, window: int) -> list[Measure]:
    """Those that are tested, a family each."""
    longest = 4 * window if stage == "far" else 2 * window
    tested = [
        Measure("loss beyond", NATS, loss_between(1, longest / window)),
        Measure("loss at home", NATS, loss_between(0.5, 1)),
        Measure(f"{RIGHT}{longest:,}", POINTS, right_at(longest), 100.0),
    ]
    if stage != "far":
        tested += [
            Measure(f"{RIGHT}{window:,}", POINTS, right_at(window), 100.0),
            Measure("short novels", NATS, short_text("Files")),
            Measure("short code", NATS, short_text("Stdlib")),
        ]
    return tested


def counted(stage: str, window: int) -> list[Measure]:
    """The controls, and the tasks apart, which are only counted."""
    longest = 4 * window if stage == "far" else 2 * window
    tasks = [
        Measure(f"{task} {n:,}", POINTS, right_at(n, task=task), 100.0)
        for task in ("passkey", "niah")
        for n in sorted({longest} if stage == "far" else {window, longest})
        if stage != "far" or task == "passkey"
    ]
    controls = [Measure("no needle", POINTS, right_at(None, condition="no-needle"), 100.0)]
    if stage != "far":
        controls.append(Measure("alone", POINTS, right_at(None, condition="needle-only"), 100.0))
    return [*tasks, *controls]


def read_trials(paths: Sequence[Path]) -> tuple[list[Trial], list[str]]:
    """The finished trials of a sweep's directory or of run directories, and the unfinished names.

    Raises ValueError for a directory whose name is not that of a trial.
    """
    found, unfinished = report.run_directories(paths)
    trials = []
    for path in found:
        match = NAME.fullmatch(path.resolve().name)
        if not match:
            raise ValueError(f"{path} is not called STAGE-METHOD or STAGE-METHOD-SEED")
        stage, method, seed = match.groups()
        records = read_records(RunDir(path).records_file)
        if records:
            trials.append(Trial(stage, method, int(seed or 0), records))
    return trials, unfinished


def stages(trials: Sequence[Trial]) -> Iterator[Stage]:
    """The stages that have finished trials; the methods in order of appearance."""
    for name in STAGES:
        of_stage: dict[str, dict[int, Trial]] = {}
        for trial in trials:
            if trial.stage == name:
                of_stage.setdefault(trial.method, {})[trial.seed] = trial
        if of_stage:
            yield Stage(name, of_stage)


def tables(stage: Stage) -> Iterator[Table[Sequence[str]]]:
    """A table per measure with its tests, and one of what is only counted."""
    for measure in measures(stage.name, stage.window):
        family = stage.family(measure)
        lines = [_line(stage, method, measure, family) for method in stage.trials]
        lines = [line for line in lines if line[1] != NOTHING]
        unit = "percent right" if measure.unit == 100 else "nats per token"
        yield table_of_texts(
            f"{stage.name}: {measure.name}, {unit}",
            ["method", "value", "n", "over none", f"over {YARN}"],
            lines,
            [
                f"95 % intervals over texts, not adjusted; p exact, adjusted for the {len(family)} "
                f"comparisons of this table. * a difference of at least {measure.margin:g}, = "
                "equal within that, ? not decided."
            ],
        )
    columns = counted(stage.name, stage.window)
    lines = [
        [method, *(_count(stage, method, each) for each in columns)] for method in stage.trials
    ]
    yield table_of_texts(
        f"{stage.name}: right of asked", ["method", *(each.name for each in columns)], lines
    )


def _line(
    stage: Stage, method: str, measure: Measure, family: Mapping[tuple[str, str], Difference]
) -> list[str]:
    by_seed = stage.texts(method, measure)
    if not by_seed:
        return [method, *4 * [NOTHING]]
    means = [
        measure.unit * sum(s for s, _ in texts.values()) / sum(n for _, n in texts.values())
        for texts in by_seed.values()
    ]
    digits = 3 if measure.margin == NATS else 0
    num_texts = len(next(iter(by_seed.values())))
    num = sum(count for _, count in next(iter(by_seed.values())).values())
    asked = f"{num_texts} texts" if num == num_texts else f"{num} in {num_texts} texts"
    seeds = f", {len(means)} seeds" if len(means) > 1 else ""
    over = [family.get((method, other)) for other in (UNSCALED, YARN)]
    return [
        method,
        ", ".join(f"{mean:.{digits}f}" for mean in means),
        asked + seeds,
        *(difference.text if difference else NOTHING for difference in over),
    ]


def _count(stage: Stage, method: str, measure: Measure) -> str:
    """Such as "31, 29 of 72", a number per seed."""
    by_seed = stage.texts(method, measure)
    if not by_seed:
        return NOTHING
    right = ", ".join(f"{sum(s for s, _ in texts.values()):.0f}" for texts in by_seed.values())
    return f"{right} of {sum(n for _, n in next(iter(by_seed.values())).values())}"


def to_markdown(table: Table[Sequence[str]]) -> str:
    """The same as a Markdown table under its title."""
    rule = ["---"] * len(table.header)
    lines = [f"| {' | '.join(cells)} |" for cells in (table.header, rule, *table.cells)]
    return "\n".join([f"**{table.title}**", "", *lines, "", *table.notes])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 2 for what cannot be done, which one line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="DIR", help="The directory of the sweep, or of runs."
    )
    parser.add_argument("--markdown", action="store_true", help="Print Markdown tables.")
    args = parser.parse_args(argv)
    try:
        trials, unfinished = read_trials(args.runs)
        made = [table for stage in stages(trials) for table in tables(stage)]
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    word = to_markdown if args.markdown else Table.to_text
    print("\n\n".join(word(table) for table in made))
    if unfinished:
        print(f"\nnot finished, and left out: {', '.join(unfinished)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
