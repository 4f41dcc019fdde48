"""All tasks of an arm in one table: what to read first."""

from collections.abc import Sequence

from ctxext.report.analysis.measures import chance, choice, right, score
from ctxext.report.analysis.records import Arm, Question, Row
from ctxext.report.analysis.study import Study
from ctxext.report.pages.tables import between, grid


def overview(asked: Sequence[Question]) -> list[str]:
    """A table per arm: percent right by task and length, how far it reads, and where only the choice is above chance.

    Nothing for a single task, and for arms that were asked at one length alone.
    """
    arms = {arm.series: arm for question in asked for arm in question.arms}
    sizes = {
        key: {row["seq_len"] for question in asked for row in question.of(arm)}
        for key, arm in arms.items()
    }
    return [
        _table(arm, asked) for key, arm in arms.items() if len(asked) > 1 and len(sizes[key]) > 1
    ]


def _table(arm: Arm, asked: Sequence[Question]) -> str:
    mine = [(question, Study(question)) for question in asked if question.of(arm)]
    lengths = sorted({n for question, _ in mine for n in question.seq_lens})
    lines = [
        [question.name, *(_cell(question.of(arm, n)) for n in lengths), _reach(study, arm)]
        for question, study in mine
    ]
    title = f"{arm.name}: % right [95 %]; c: the right one of K chosen, above chance, where it was not written"
    return grid(
        title, ["", *(f"{n}{'*' * (n > arm.window)}" for n in lengths), "reads to, windows"], lines
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


def _reach(study: Study, arm: Arm) -> str:
    far = study.reaches.get(arm)
    if far is None:
        return "nothing read at home" if study.homes else "no base at home"
    low, high = far.low / arm.window, far.high / arm.window
    return f"{far.censored} {far.value / arm.window:.1f} [{low:.1f}, {high:.1f}]".strip()
