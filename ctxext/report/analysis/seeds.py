"""Runs that differ in the training seed alone, put together: every seed's count, and paired differences over all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxext.evals.stats import Interval, ratio_bootstrap
from ctxext.report.analysis.comparisons import paired, pairs
from ctxext.report.analysis.records import Question, Row, document, group, questions
from ctxext.report.analysis.runs import read_one
from ctxext.report.drawing.charts import Axis, Chart, Line, Point, Style, dot_chart
from ctxext.report.pages.tables import grid, points


@dataclass(frozen=True)
class SeedArm:
    """One method with one training, at the longest length: `right` by seed and length, and the rate over all seeds."""

    name: str
    right: dict[int, dict[int, int]]
    """length -> seed -> right answers."""
    asked: dict[int, int]
    """length -> questions per seed."""
    rate: Interval
    """Percent at the longest length, over documents."""
    over_plain: Interval | None
    """Percentage points over plain fine-tuning, over documents; None for that itself."""


@dataclass(frozen=True)
class Seeds:
    """A retrieval task answered by the same variants under several training seeds."""

    task: str
    seeds: tuple[int, ...]
    plain: str
    variants: tuple[SeedArm, ...]
    twins: tuple[tuple[str, str, Interval], ...]
    """(variant, variant, points of the second over the first) of one method trained in two ways, at the longest length."""

    @property
    def seq_lens(self) -> list[int]:
        return sorted({n for variant in self.variants for n in variant.asked})

    @property
    def data(self) -> dict[str, Any]:
        """The same as JSON."""
        variants = [
            {
                "name": variant.name,
                "right": variant.right,
                "asked": variant.asked,
                "rate": variant.rate._asdict(),
                "over_plain": variant.over_plain and variant.over_plain._asdict(),
            }
            for variant in self.variants
        ]
        twins = [{"a": a, "b": b, "points": interval._asdict()} for a, b, interval in self.twins]
        return {
            "task": self.task,
            "seeds": self.seeds,
            "plain": self.plain,
            "variants": variants,
            "twins": twins,
        }

    @property
    def text(self) -> str:
        """A line per variant: right answers of every seed at each length, and the difference to plain fine-tuning."""
        lengths, most = self.seq_lens, self.seq_lens[-1]
        lines = [
            [
                variant.name,
                *(_counts(variant, n) for n in lengths),
                points(variant.over_plain) if variant.over_plain else "",
            ]
            for variant in self.variants
        ]
        title = (
            f"{self.task}: right answers with training seeds {', '.join(map(str, self.seeds))}; percentage points "
            f"over {self.plain!r} at {most:,} [95 % paired interval over documents, not adjusted]"
        )
        table = grid(title, ["", *(f"{n:,}" for n in lengths), "points"], lines)
        twins = [[b, "over", a, points(interval)] for a, b, interval in self.twins]
        return "\n\n".join(
            [
                table,
                *(
                    [grid("one method, two trainings", ["", "", "", "points"], twins)]
                    if twins
                    else []
                ),
            ]
        )

    @property
    def chart(self) -> Chart:
        """A dot per variant: percent right at the longest length."""
        most = self.seq_lens[-1]
        title = f"{self.task} at {most:,} tokens after training, mean of {len(self.seeds)} seeds"
        text = "Dots with 95 % intervals over documents; percent right."
        dots = [
            (
                Line(
                    "",
                    variant.name,
                    Style(0 if variant.name == self.plain else 1),
                    [Point(variant.rate.value, 0, variant.rate.low, variant.rate.high)],
                ),
                "",
            )
            for variant in self.variants
        ]
        axis = Axis("right answers, %", 0, 100, [(v, str(v)) for v in (0, 25, 50, 75, 100)])
        svg = dot_chart(title, text, dots, axis, key="seeds")
        rows = [
            [variant.name, _counts(variant, most), f"{variant.rate.value:.0f}"]
            for variant in self.variants
        ]
        return Chart(title, text, svg, ["variant", "right, by seed", "%"], rows)


def _counts(variant: SeedArm, length: int) -> str:
    if length not in variant.asked:
        return "-"
    return f"{', '.join(map(str, variant.right[length].values()))} of {variant.asked[length]}"


def across_seeds(paths: Sequence[Path]) -> list[Seeds]:
    """The tasks of runs, trained variants alone, best first.

    Raises ValueError for fewer than two seeds, for a seed given twice with the same variant, without an variant that was
    trained plainly (no scaling), or if the seeds of an variant were asked different questions.
    """
    rows: list[Row] = []
    seen: dict[tuple[int, str], Path] = {}
    for path in paths:
        run = read_one(path)
        if "seed" not in run.config:
            raise ValueError(f"{path} has no config.json with a seed; give run directories")
        seed, trained = run.config["seed"], [row for row in run.rows if row.get("steps")]
        for method in dict.fromkeys(row["method"] for row in trained):
            if other := seen.get((seed, method)):
                raise ValueError(
                    f"{other} and {path} both hold {method!r} with seed {seed}; give one of them"
                )
            seen[seed, method] = path
        rows += [{**row, "checkpoint": str(seed)} for row in trained]
    return [_question(question) for question in questions(rows)]


def _question(question: Question) -> Seeds:
    by_arm = {
        method: group(rows, lambda row: int(row["checkpoint"]))
        for method, rows in group(question.rows, lambda row: row["method"]).items()
    }
    seeds = tuple(sorted({seed for found in by_arm.values() for seed in found}))
    if len(seeds) < 2:
        raise ValueError(
            f"these runs have the training seed {', '.join(map(str, seeds))} alone; give runs of several"
        )
    for method, found in by_arm.items():
        asked = {
            frozenset((row["item"], row["prompt_sha256"]) for row in rows)
            for rows in found.values()
        }
        if len(asked) > 1 or len(found) < len(seeds):
            raise ValueError(
                f"{method}: not every one of the seeds {', '.join(map(str, seeds))} was asked the same "
                "questions; let the runs finish, or leave out the seed that lacks them"
            )
    plain = next((variant.series[1] for variant in question.variants if variant.plain), None)
    if plain is None:
        raise ValueError(
            "no variant was trained without scaling, which the others are held against; add Unscaled() to "
            "the baselines of the experiment"
        )
    variants = [_arm(method, by_arm[method], by_arm[plain], plain) for method in by_arm]
    same = group(
        {variant.series[1]: variant for variant in question.variants}.values(),
        lambda variant: (variant.what, variant.rope),
    ).values()
    twins = [
        (a, b.series[1], _over(by_arm[a], by_arm[b.series[1]], question.longest))
        for first, *others in same
        for a in [first.series[1]]
        for b in others
    ]
    return Seeds(
        question.name,
        seeds,
        plain,
        tuple(sorted(variants, key=lambda variant: -variant.rate.value)),
        tuple(twins),
    )


def _arm(
    method: str, found: dict[int, list[Row]], plain: dict[int, list[Row]], plain_name: str
) -> SeedArm:
    by_length = group(
        [row for seed in sorted(found) for row in found[seed]], lambda row: row["seq_len"]
    )
    right = {
        n: {
            seed: sum(row["correct"] for row in found[seed] if row["seq_len"] == n)
            for seed in sorted(found)
        }
        for n in sorted(by_length)
    }
    most = max(by_length)
    answers = [100 * row["correct"] for row in by_length[most]]
    rate = ratio_bootstrap(answers, [1] * len(answers), [document(row) for row in by_length[most]])
    over = None if method == plain_name else _over(plain, found, most)
    return SeedArm(
        method, right, {n: len(rows) // len(found) for n, rows in by_length.items()}, rate, over
    )


def _over(a: dict[int, list[Row]], b: dict[int, list[Row]], seq_len: int) -> Interval:
    """Percentage points of b over a at one length, the same questions and seeds."""

    def at(rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if row["seq_len"] == seq_len]

    return paired([pair for seed in sorted(b) for pair in pairs(at(a[seed]), at(b[seed]))])
