"""The verdict in words: sentences that follow from rows, each left out where its data are missing."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ctxext.evals.stats import Effective, Interval
from ctxext.report.analysis.comparisons import Comparison
from ctxext.report.analysis.records import Row, Variant, latest, questions, signed
from ctxext.report.analysis.study import TAU, Study, adjusted, between


class Finding(NamedTuple):
    """A sentence and the question it answers: works, far, compared, sure."""

    answers: str
    text: str
    main: bool = True
    """False for what is said of other variants than the best, and of other tasks than the first."""


def verdict(rows: Iterable[Row]) -> list[str]:
    """Does it work, how far, compared with what, how sure: one sentence each and per variant, the answer first."""
    return [finding.text for finding in findings(latest(rows))]


def findings(rows: Sequence[Row], studies: Sequence[Study] | None = None) -> list[Finding]:
    """The verdict with the question that each sentence answers; all retrieval tasks, p-values adjusted over all."""
    if not rows:
        return [Finding("works", "There are no rows: nothing was evaluated.")]
    studies = [Study(q) for q in questions(rows)] if studies is None else studies
    if not studies:
        return [
            Finding(
                "works",
                "No retrieval was asked; perplexity alone does not say how far a model reads.",
            )
        ]
    made = adjusted(studies)
    total = sum(map(len, made))
    found = []
    for i, (study, mine) in enumerate(zip(studies, made, strict=True)):
        prefix = f"{study.question.name}: " if len(studies) > 1 else ""
        found += [
            Finding(f.answers, prefix + f.text, f.main and i == 0)
            for f in _about(study, mine, total)
        ]
    return found


def _about(study: Study, made: Sequence[Comparison], total: int) -> list[Finding]:
    scaled = [variant for variant in study.trained if not variant.plain]
    return [
        *_works(study, made, total),
        *(Finding("far", text) for text in _far(study)),
        *(
            Finding("compared", _against_unscaled(c, total), c.b == study.best)
            for variant in scaled
            if (c := between(made, study.unscaled(variant), variant))
        ),
        *(Finding("compared", text) for text in _others(study, made, total)),
        *(
            Finding("compared", _training(c, total), c.b == (study.best or study.trained[0]))
            for variant in study.trained
            if (c := between(made, study.zero_shot(variant), variant))
        ),
        *(Finding("sure", text) for text in _asked(study, made)),
    ]


def _works(study: Study, made: Sequence[Comparison], total: int) -> list[Finding]:
    """The first sentence: does the best trained variant read beyond the window, and more than training alone would give?"""
    best, length = study.best, study.question.longest
    if best is None:
        return [Finding("works", _no_best(study))]
    far = study.reaches.get(best)
    against = between(made, study.unscaled(best), best)
    beyond = far is not None and far.low > best.window
    more = against is not None and against.shown and against.points.value > 0
    if far is None:
        start = f"No bar for {best.words}, so no answer to how far it reads"
    elif beyond:
        start = f"Yes: {best.words} reads beyond the window"
    else:
        start = f"Not shown: {best.words} may read no further than the window"
    joint = ", and" if beyond and more else ", but" if beyond or more else ";"
    if against is None:
        end = "; the same training without scaling is not here to compare with"
    elif more:
        end = f"{joint} answers more at {length:,} tokens than the same training without scaling"
    elif against.shown:
        end = f"{joint} answers less at {length:,} tokens than the same training without scaling"
    else:
        end = (
            f"{joint} no difference to the same training without scaling is shown at {length:,} tokens "
            f"({could(against, total)})"
        )
    return [Finding("works", f"{start}{end}.")]


def _no_best(study: Study) -> str:
    if any(variant.steps is None for variant in study.question.variants):
        return "These rows do not say which variants were trained (an older version wrote them): no variants are compared."
    if any(variant.trained for variant in study.question.variants):
        return f"No trained variant with a method was asked at {study.question.longest:,} tokens."
    return "No variant here was trained: these are zero-shot measurements."


def _far(study: Study) -> list[str]:
    focus = study.trained or list(study.reaches)
    found = [(variant, study.reaches[variant]) for variant in focus if variant in study.reaches]
    return [reach_text(variant, far) for variant, far in sorted(found, key=lambda x: -x[1].value)]


def reach_text(variant: Variant, far: Effective) -> str:
    """As in: yarn(factor=4) after 60 steps reads to > 4.0x the window [3.0, > 4.0]."""
    value = f"{far.censored} {far.value / variant.window:.1f}".strip()
    return f"{variant.words} reads to {value}x the window {bounds(far, variant)}."


def bounds(far: Effective, variant: Variant) -> str:
    """The interval in windows, open on the side where the lengths asked do not bound it."""
    low, high = ("< " if far.censored == "<" else ""), ("> " if far.censored == ">" else "")
    return f"[{low}{far.low / variant.window:.1f}, {high}{far.high / variant.window:.1f}]"


def _against_unscaled(c: Comparison, total: int) -> str:
    return (
        f"{c.b.words}: {c.right_b}/{c.n} against {c.right_a}/{c.n} of the same training without scaling, "
        f"{points(c.points)}, exact {p_text(c.p)}, {adjusted_text(c)} over {total} "
        f"comparison{'s' * (total != 1)}."
    )


def _others(study: Study, made: Sequence[Comparison], total: int) -> list[str]:
    """The best variant against the other methods with the same training: which it beats, which it does not."""
    if study.best is None:
        return []
    variants = [variant for variant in study.trained if variant != study.best and not variant.plain]
    others = [c for variant in variants if (c := between(made, study.best, variant))]
    texts = []
    for shown, start in (True, "Answering less than"), (False, "Not distinguishable from"):
        told = [(c, "" if shown else f"; {could(c, total)}") for c in others if c.shown == shown]
        names = "; ".join(
            f"{c.b.words} ({points(c.points)}, {adjusted_text(c)}{more})" for c, more in told
        )
        texts += [f"{start} the best here, {study.best.words}: {names}."] if names else []
    return texts


def _training(c: Comparison, total: int) -> str:
    if c.shown:
        said = "training helped" if c.points.value > 0 else "training hurt"
    else:
        said = f"no effect of training is shown ({could(c, total)})"
    return (
        f"{c.b.words}: {c.right_b}/{c.n} against {c.right_a}/{c.n} of the same method zero-shot, "
        f"{points(c.points)}, {adjusted_text(c)}: {said}."
    )


def _asked(study: Study, made: Sequence[Comparison]) -> list[str]:
    question = study.question
    sizes = sorted(
        {
            len(rows)
            for variant in question.variants
            for n in question.seq_lens
            if (rows := question.of(variant, n))
        }
    )
    many = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    depths = len({row.get("depth") for row in question.rows})
    lengths = _list([f"{n:,}" for n in question.seq_lens])
    text = (
        f"Asked: {many} questions ({question.task}, {depths} depth{'s' * (depths != 1)}) of every variant at each of "
        f"{lengths} tokens"
    )
    texts = [
        f"{text}; differences are at {question.longest:,} tokens." if study.trained else f"{text}."
    ]
    for home in study.homes:
        score = f"{home.right}/{len(home.rows)} at its window of {home.variant.window:,} tokens"
        if home.right:
            which = f" ({home.variant.series[0]})" if len(study.homes) > 1 else ""
            texts.append(f"The bar is {TAU:g} of what the base{which} answers at home, {score}.")
        else:
            texts.append(f"The base answers {score}: there is no bar, and no effective context.")
    if not study.homes and any(variant.steps is None for variant in question.variants):
        texts.append(
            "Nor do the rows say which variant is the base: there is no bar, and no effective context."
        )
    elif not study.homes:
        texts.append(
            "The base without scaling was not asked at its window: there is no bar, and no effective context."
        )
    if made:
        n, (low, high) = (
            max(c.n for c in made),
            (round(f(c.independent for c in made)) for f in (min, max)),
        )
        texts.append(
            f"Answers about one document go together: {n} pairs count as {low} to {high} independent ones."
            if low < high
            else f"{n} pairs count as {low} independent ones."
        )
    if study.trained:
        texts.append(
            "Intervals cover chance in questions and texts, not in training: every trained variant is one run."
        )
    return texts


def points(x: Interval) -> str:
    """As in: +68 points [+52, +80]."""
    bounds = "" if x.low is None or x.high is None else f" [{signed(x.low)}, {signed(x.high)}]"
    return f"{signed(x.value)} points{bounds}"


def could(c: Comparison, total: int) -> str:
    """What a comparison without a shown difference was able to show, as in: 14 points would have been."""
    seen = c.seen(total)
    return (
        f"{math.ceil(seen - 1e-9)} points would have been"
        if seen <= 100
        else "no difference could have been"
    )


def p_text(p: float, name: str = "p") -> str:
    """As in: p = 0.012; p < 0.0001."""
    return f"{name} < 0.0001" if p < 0.0001 else f"{name} = {p:.2g}"


def adjusted_text(c: Comparison) -> str:
    return p_text(c.adjusted, "Holm-adjusted p")


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
