"""One HTML file: sections of rows and run directories put into page.html; all is escaped, nothing is fetched."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ctxext import files
from ctxext.report.analysis import published, runs, wavelengths
from ctxext.report.analysis.losses import estimator, is_perplexity
from ctxext.report.analysis.provenance import facts, proof_table
from ctxext.report.analysis.records import Row, Variant, group, questions, settings, variants
from ctxext.report.analysis.study import Study
from ctxext.report.drawing import heatmap
from ctxext.report.drawing.appearance import identity, looks, method_styles
from ctxext.report.drawing.charts import Chart, Style, standalone
from ctxext.report.pages import figures, sections
from ctxext.report.pages.sections import Section
from ctxext.report.pages.verdict import Finding, findings

HERE = Path(__file__).parent
STYLES = (HERE.parent / "drawing" / "chart.css", HERE / "style.css")
UNBROKEN = re.compile(r"(p )?[<>=] (?=\d)|\[[-+.,<> \d]{1,20}\]|(?<=\d) / (?=\d)")
"""Signs with their numbers, and intervals, which stay on one line."""
CHART_FILES = (".svg", ".html")
ASKED = {"far": "How far?", "compared": "Compared with what?", "sure": "How sure?"}


def write(paths: Sequence[Path], out: Path) -> Path:
    """Read the directories, write the page in one step, return where it is."""
    found = runs.read(paths)
    files.write_text(out, render(found))
    return out


def render(found: Sequence[runs.RunData]) -> str:
    """The page as text."""
    rows = [row for run in found for row in run.rows]
    studies = [Study(question) for question in questions(rows)]
    said = findings(rows, studies)
    return _template("page.html").render(
        title=f"Context window: {', '.join(run.name for run in found)}",
        style=_style(*STYLES),
        headline=[f.text for f in said if f.answers == "works"],
        answers=[
            (title, *texts) for key, title in ASKED.items() if any(texts := _texts(said, key))
        ],
        sections=[part for part in _sections(found, rows, studies) if part.filled],
        proofs=[(run.name, proof_table(run.proof)) for run in found if run.proof],
        provenance=[(run.name, facts(run)) for run in found],
        several=len(found) > 1,
        more="The other variants" if len(studies) < 2 else "The other variants and tasks",
    )


def page_sections(paths: Sequence[Path]) -> list[Section]:
    """The parts of the page of these directories."""
    found = runs.read(paths)
    rows = [row for run in found for row in run.rows]
    return list(_sections(found, rows, [Study(question) for question in questions(rows)]))


def write_chart(chart: Chart, out: Path) -> Path:
    """One chart in one step: FILE.svg is the drawing, FILE.html has its legend and numbers too.

    Raises ValueError for another ending.
    """
    if out.suffix not in CHART_FILES:
        raise ValueError(
            f"cannot draw {out}; name it {out.with_suffix('.svg')} or {out.with_suffix('.html')}"
        )
    if out.suffix == ".svg":
        files.write_text(out, standalone(chart.svg, _style(STYLES[0])))
    else:
        files.write_text(out, _template("chart.html").render(chart=chart, style=_style(*STYLES)))
    return out


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment.get_template(name)


def _unbroken(text: str) -> str:
    return UNBROKEN.sub(lambda found: found[0].replace(" ", "\u00a0"), text)


def _style(*paths: Path) -> str:
    return "".join(path.read_text() for path in paths)


def _texts(said: Sequence[Finding], key: str) -> tuple[list[str], list[str]]:
    """What is said of the best variant and the first task, and the rest; a sign stays with its number."""
    found = [(f.main, _unbroken(f.text)) for f in said if f.answers == key]
    return [text for main, text in found if main], [text for main, text in found if not main]


def _sections(
    found: Sequence[runs.RunData], rows: Sequence[Row], studies: Sequence[Study]
) -> Iterator[Section]:
    known = variants(rows)
    curves = {
        _called(name, run, found): steps for run in found for name, steps in run.losses.items()
    }
    spectra = {s.method: s for run in found for s in run.spectra}
    styles = method_styles([*map(identity, known), *curves, *spectra])
    look = looks(known, styles)
    yield sections.far(studies, rows, look)
    yield sections.expected(
        [outcome for run in found for outcome in published.outcomes(run)], len(found) > 1
    )
    maps = Section(
        "where",
        "Where answers are found",
        "Right / asked with 95 % Wilson intervals in percent, yellow "
        "for all right. Depth 0 is the beginning of the text; distance is counted from the needle to the "
        "end, in windows of pre-training. Hatched: fewer than 20 questions, too few to say much. A dash: "
        "nothing was asked.",
    )
    for study in studies:
        task = f"{study.question.name}: " if len(studies) > 1 else ""
        shown, folded = sections.split(study)
        maps.heats += [
            replace(h, caption=task + h.caption)
            for variant in shown
            for h in _heats(study, variant)
        ]
        maps.folded += [
            replace(h, caption=task + h.caption)
            for variant in folded
            for h in _heats(study, variant)
        ]
    yield maps
    pairs = [(study, a, b) for study in studies for a, b in _contrasts(study, found)]
    yield Section(
        "difference",
        "Where two variants differ",
        "The same questions asked of both, so that only the variants "
        "differ. Blue: the first named is better, orange: the second. Hatched: fewer than 20 pairs.",
        [c for i, x in enumerate(pairs) if (c := figures.difference(*x, look, f"difference{i}"))],
        [h for study, a, b in pairs if (h := heatmap.difference(study.question, a, b))],
    )
    yield sections.wrong(studies)
    yield _perplexity(rows, known, look)
    yield sections.rates(studies, look)
    yield sections.achieved_lengths(studies)
    yield _training(found, curves, list(spectra.values()), styles)


def _called(name: str, run: runs.RunData, found: Sequence[runs.RunData]) -> str:
    return f"{name} ({run.name})" if len(found) > 1 else name


def _heats(study: Study, variant: Variant) -> list[heatmap.Heat]:
    distance = heatmap.by_distance(study.question, variant)
    depth = [heatmap.by_depth(study, variant)] if study.question.has_depth else []
    return [*depth, *([distance] if distance else [])]


def _contrasts(study: Study, found: Sequence[runs.RunData]) -> list[tuple[Variant, Variant]]:
    """(a, b): the best of the second run against that of the first, else the best against no scaling and the next."""
    if len(found) > 1:
        best = [
            next((a for a in study.trained if a.series[0] == run.name), None) for run in found[:2]
        ]
        if best[0] and best[1]:
            return [(best[0], best[1])]
    if study.best is None:
        return []
    second = next(
        (variant for variant in study.trained if not variant.plain and variant != study.best), None
    )
    others = [study.unscaled(study.best) or study.zero_shot(study.best), second]
    return [(other, study.best) for other in others if other]


def _perplexity(rows: Sequence[Row], known: Sequence[Variant], look: figures.Looks) -> Section:
    made = Section(
        "perplexity",
        "Perplexity",
        "Each estimator by its name: for one model their values differ, so they "
        "are never put together; and the loss by position in the longest text. Lower is better; low "
        "perplexity alone does not show that far text is read.",
    )
    for i, found in enumerate(group(filter(is_perplexity, rows), settings).values()):
        if not any(row["count"] for row in found):
            made.notes.append(f"{estimator(found[0])}: no document has one, so there is no number.")
            continue
        made.charts.append(figures.perplexities(found, known, look, f"ppl{i}"))
        if binned := [row for row in found if "by_position" in row]:
            made.charts.append(figures.positions(binned, known, look, f"position{i}"))
    return made


def _training(
    found: Sequence[runs.RunData],
    curves: dict[str, list[Row]],
    spectra: Sequence[wavelengths.Spectrum],
    styles: dict[str, Style],
) -> Section:
    shapes = dict.fromkeys((s.window, len(s.wavelengths)) for s in spectra)
    same = [[s for s in spectra if (s.window, len(s.wavelengths)) == shape] for shape in shapes]
    charts = [wavelengths.wavelengths(some, styles, f"waves{i}") for i, some in enumerate(same)]
    loss = [figures.losses(curves, styles, "loss")] if curves else []
    return Section(
        "training",
        "Training and frequencies",
        "What was trained, on the same axes; and what each method "
        "does to the rotary pairs. A pair turns once per wavelength: one above the window never made a "
        "whole turn in pre-training, so that positions beyond the window are new to it.",
        loss + charts,
        notes=[_called(note, run, found) for run in found for note in run.notes],
    )


def default_out(paths: Sequence[Path]) -> Path:
    """RUN/report.html for one directory, ./report.html for several."""
    return Path(paths[0]) / "report.html" if len(paths) == 1 else Path(os.curdir) / "report.html"
