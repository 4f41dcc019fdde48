"""What scores are held against: the floor (no needle), the ceiling (needle alone), and the base at home."""

from collections.abc import Sequence

from ctxext.report.analysis.records import Question, Row, Series, cells, condition, rate, series
from ctxext.report.analysis.study import Study
from ctxext.report.drawing.charts import Style
from ctxext.report.pages.tables import NOT_ASKED, Table, grid

CONTROLS = {"no-needle": "no needle (floor)", "needle-only": "needle only (ceiling)"}
CONTROL_STYLES = {"no-needle": Style(4, control=True), "needle-only": Style(2, control=True)}
HOME = "the base at home"


def lead(study: Study) -> Series | None:
    """The variant whose controls are drawn: the best, else the first that has any."""
    who = list(dict.fromkeys(series(row) for row in study.question.controls))
    return study.best.series if study.best and study.best.series in who else who[0] if who else None


def of(question: Question, who: Series | None, kind: str, seq_len: int | None = None) -> list[Row]:
    """The control rows of an variant, of one length or of all."""
    return [
        r
        for r in question.controls
        if series(r) == who and condition(r) == kind and seq_len in (None, r["seq_len"])
    ]


def said(study: Study) -> str:
    """Where each control was asked, for the caption of a figure."""
    who, question = lead(study), study.question
    names = [variant.name for variant in question.variants if variant.series == who]
    texts = []
    for kind, name in CONTROLS.items():
        lengths = sorted({row["seq_len"] for row in of(question, who, kind)})
        at = (
            ""
            if lengths == question.seq_lens
            else f" at {', '.join(f'{n:,}' for n in lengths)} alone"
        )
        texts.append(f"{name}{at}" if lengths else f"{name} {NOT_ASKED}")
    grey = f"Grey{f', of {names[0]}' if names else ''}: {'; '.join(texts)}"
    return f"{grey}. Dotted across: {HOME}{'' if study.homes else f', {NOT_ASKED}'}."


def table(study: Study) -> Table:
    """Floor and ceiling of every variant, beside its score in the window."""
    question, window = study.question, study.question.rows[0]["window"]
    at_home = [row for row in question.rows if row["seq_len"] == window]
    found = {(c["condition"], c["seq_len"], series(c)): c for c in cells(question.controls, rate)}
    found |= {("needle", window, series(c)): c for c in cells(at_home, rate)}
    asked = {key[:2] for key in found}
    missing = [
        (kind, question.longest) for kind in CONTROLS if kind not in {kind for kind, _ in asked}
    ]
    columns = sorted(
        [*asked, *missing], key=lambda key: (["needle", *CONTROLS].index(key[0]), key[1])
    )
    bases = [home.variant for home in study.homes]
    lines = []
    for variant in question.variants:
        texts = [
            _text(found[k, n, variant.series]) if (k, n, variant.series) in found else NOT_ASKED
            for k, n in columns
        ]
        lines.append([variant.name + (" (the base)" if variant in bases else ""), *texts])
    header = [f"{CONTROLS.get(kind, 'as asked')}, {n:,}" for kind, n in columns]
    return Table(
        f"{question.name}: controls, right / asked [95 % interval, %]", ["variant", *header], lines
    )


def text(study: Study) -> str:
    """The same for the command line: a line per control and variant that was asked it, and the base at home."""
    question = study.question
    lengths = sorted({row["seq_len"] for row in [*question.rows, *question.controls]})
    lines = []
    for kind, name in CONTROLS.items():
        variants = [variant for variant in question.variants if of(question, variant.series, kind)]
        lines += [
            [
                f"{name}, {variant.name}",
                *(_length(of(question, variant.series, kind, n)) for n in lengths),
            ]
            for variant in variants
        ]
        if left := len(question.variants) - len(variants):
            who = f"{left} other variant{'s' * (left != 1)}" if variants else "every variant"
            lines.append([f"{name}, {who}", *[NOT_ASKED] * len(lengths)])
    lines += [
        [
            f"{HOME}, {home.variant.name}",
            *(_length(home.rows if n == home.variant.window else [], "") for n in lengths),
        ]
        for home in study.homes
    ] or [[HOME, *[NOT_ASKED] * len(lengths)]]
    title = f"{question.name}: controls, right / asked, % [95 % interval], p(answer)"
    return grid(title, ["", *map(str, lengths)], lines)


def rate_text(cell: Row) -> str:
    """As in: 18/20 90 [70, 97] p 0.85."""
    return (
        f"{cell['correct']}/{cell['n']} {100 * cell['rate']:.0f} [{100 * cell['low']:.0f}, "
        f"{100 * cell['high']:.0f}] p {cell['answer_probability']:.2f}"
    )


def _length(found: Sequence[Row], missing: str = NOT_ASKED) -> str:
    return rate_text(rate(list(found))) if found else missing


def _text(cell: Row) -> str:
    return f"{cell['correct']}/{cell['n']} [{100 * cell['low']:.0f},\u00a0{100 * cell['high']:.0f}]"
