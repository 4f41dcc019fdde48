"""All tasks of an variant in one table: what to read first."""

from collections.abc import Sequence

from ctxext.report.analysis.measures import chance, choice, right, score
from ctxext.report.analysis.records import Question, Row, Variant
from ctxext.report.analysis.study import Study
from ctxext.report.pages.tables import between, grid


def overview(asked: Sequence[Question]) -> list[str]:
    """A table per variant: percent right by task and length, how far it reads, and where only the choice is above chance.

    Nothing for a single task, and for variants that were asked at one length alone.
    """
    variants = {variant.series: variant for question in asked for variant in question.variants}
    sizes = {
        key: {row["seq_len"] for question in asked for row in question.of(variant)}
        for key, variant in variants.items()
    }
    return [
        _table(variant, asked)
        for key, variant in variants.items()
        if len(asked) > 1 and len(sizes[key]) > 1
    ]


def _table(variant: Variant, asked: Sequence[Question]) -> str:
    mine = [(question, Study(question)) for question in asked if question.of(variant)]
    lengths = sorted({n for question, _ in mine for n in question.seq_lens})
    lines = [
        [question.name, *(_cell(question.of(variant, n)) for n in lengths), _reach(study, variant)]
        for question, study in mine
    ]
    title = f"{variant.name}: % right [95 %]; c: the right one of K chosen, above chance, where it was not written"
    return grid(
        title,
        ["", *(f"{n}{'*' * (n > variant.window)}" for n in lengths), "reads to, windows"],
        lines,
    )


def _cell(rows: list[Row]) -> str:
    if not rows:
        return "-"
    found = score(rows) or right(rows)
    text = between(found, ".0f") if found else "-"
    chosen, level = choice(rows), chance(rows)
    lost = found is not None and found.high is not None and found.high < 50
    if lost and chosen and level is not None and chosen.low is not None and chosen.low > level:
        return f"{text} c {chosen.value:.0f} of {level:.0f}"
    return text


def _reach(study: Study, variant: Variant) -> str:
    far = study.reaches.get(variant)
    if far is None:
        return "nothing read at home" if study.homes else "no base at home"
    low, high = far.low / variant.window, far.high / variant.window
    return f"{far.censored} {far.value / variant.window:.1f} [{low:.1f}, {high:.1f}]".strip()
