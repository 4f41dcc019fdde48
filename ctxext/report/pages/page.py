"""One HTML file: verdict, sections and provenance. All is escaped, nothing is fetched."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ctxext import files
from ctxext.report.analysis.results import Results
from ctxext.report.analysis.runs import RunData, read_runs
from ctxext.report.drawing.charts import Chart
from ctxext.report.drawing.svg import standalone
from ctxext.report.pages.provenance import describe_proof, facts
from ctxext.report.pages.sections import Section, all_sections
from ctxext.report.pages.verdict import Finding, Topic, findings
from ctxext.terminal import printable

HERE = Path(__file__).parent
CHART_STYLE = HERE.parent / "drawing" / "chart.css"
PAGE_STYLE = HERE / "style.css"
UNBROKEN = re.compile(r"95 % CI|(p )?[<>=] (?=\d)|\[[-+.,<> \d]{1,20}\]|(?<=\d) / (?=\d)")
"""Signs with their numbers, and intervals, which stay on one line."""
TITLES: dict[Topic, str] = {
    "how far": "How far?",
    "compared with what": "Compared with what?",
    "how sure": "How sure?",
}
"""The questions under the headline."""


def write(paths: Sequence[Path], out: Path) -> Path:
    """Read the directories, write the page in one step, and return its path."""
    files.write_text(out, render(read_runs(paths)))
    return out


def render(runs: Sequence[RunData]) -> str:
    """The page as text."""
    results = _results(runs)
    verdict = findings(results)
    return _template("page.html").render(
        title=f"Context window: {', '.join(run.name for run in runs)}",
        style=_style(CHART_STYLE, PAGE_STYLE),
        headline=[f.sentence for f in verdict if f.topic == "does it work"],
        answers=_answers(verdict),
        sections=all_sections(runs, results),
        proofs=[(run.name, describe_proof(run.proof)) for run in runs if run.proof],
        provenance=[(run.name, facts(run)) for run in runs],
        several=len(runs) > 1,
        chosen=any(len(study.trained or study.zero_shot_methods) > 1 for study in results.studies),
        more="The other variants and tasks" if len(results.studies) > 1 else "The other variants",
    )


def page_sections(paths: Sequence[Path]) -> list[Section]:
    """The sections of the page about these directories."""
    runs = read_runs(paths)
    return all_sections(runs, _results(runs))


def _results(runs: Sequence[RunData]) -> Results:
    return Results(record for run in runs for record in run.records)


def _answers(verdict: Sequence[Finding]) -> list[tuple[str, list[str], list[str]]]:
    """By question: sentences on the best variant of the first task, and the rest."""
    answers = []
    for topic, title in TITLES.items():
        about = [finding for finding in verdict if finding.topic == topic]
        main = [_unbroken(finding.sentence) for finding in about if finding.main]
        others = [_unbroken(finding.sentence) for finding in about if not finding.main]
        if about:
            answers.append((title, main, others))
    return answers


def check_drawing(out: Path) -> None:
    """Raise ValueError for a name of a drawing that ends neither in .svg nor in .html."""
    if out.suffix not in (".svg", ".html"):
        raise ValueError(
            f"cannot draw {out}; name it {out.with_suffix('.svg')} or {out.with_suffix('.html')}"
        )


def write_chart(chart: Chart, out: Path) -> Path:
    """Write one chart in one step.

    out: FILE.svg for the drawing, FILE.html for its legend and numbers too. Raises ValueError for
    another ending.
    """
    check_drawing(out)
    if out.suffix == ".svg":
        files.write_text(out, standalone(chart.svg, _style(CHART_STYLE)))
    else:
        style = _style(CHART_STYLE, PAGE_STYLE)
        files.write_text(out, _template("chart.html").render(chart=chart, style=style))
    return out


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment.get_template(name)


def _printable(value: Any) -> Any:
    """Without characters that mislead the eye; what is Markup, not plain text, is our own."""
    return printable(value) if type(value) is str else value


def _unbroken(text: str) -> str:
    return UNBROKEN.sub(lambda match: match[0].replace(" ", "\u00a0"), text)


def _style(*paths: Path) -> str:
    return "".join(path.read_text() for path in paths)


def default_out(paths: Sequence[Path]) -> Path:
    """RUN/report.html for one directory, next to them for several that are in one, else here."""
    folders = {Path(path).absolute().parent: Path(path).parent for path in paths}
    folder = Path()
    if len(paths) == 1:
        folder = Path(paths[0])
    elif len(folders) == 1:
        (folder,) = folders.values()
    return folder / "report.html"
