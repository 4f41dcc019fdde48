"""The page has the numbers of planted records, is self-contained and escapes everything."""

import json
import re
import shlex
from pathlib import Path

import pytest
from scipy import stats

from ctxext.cli.main import main, parsers
from ctxext.evals.record import AnswerRecord, EvalRecord
from ctxext.model.parts import Parts
from ctxext.report import read_records, verdict, write_report
from ctxext.report.analysis.runs import RunData
from ctxext.report.pages.provenance import facts
from ctxext.serialization import to_json
from support.html_page import Element, parse, table
from support.planted import (
    EFFECTIVE_CONTEXT,
    ROPES,
    SEQ_LENS,
    passkey_record,
    planted_records,
    planted_run,
    write_records,
)
from support.records import changed

HOSTILE = "<script>alert('1')</script>\"&"
BEST = "yarn(factor=4) after 60 steps"
RECORDS = planted_records()
CONDITIONS = {"no needle (floor)": "no-needle", "needle without text": "needle-only"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_run(tmp_path_factory.mktemp("planted") / "run")


@pytest.fixture(scope="module")
def page(run: Path) -> Element:
    return parse(write_report([run]).read_text())


def select(
    rope: str,
    steps: int,
    *,
    condition: str = "needle",
    seq_len: int | None = None,
    depth: float | None = None,
) -> list[AnswerRecord]:
    return [
        record
        for record in RECORDS
        if isinstance(record, AnswerRecord)
        and (record.model.rope, record.model.steps) == (rope, steps)
        and record.question.condition == condition
        and seq_len in (None, record.seq_len)
        and depth in (None, record.question.depth)
    ]


def correct(records: list[AnswerRecord]) -> list[bool]:
    return [record.scores.correct for record in records]


def wilson(num_correct: int, n: int) -> tuple[float, float]:
    low, high = stats.binomtest(num_correct, n).proportion_ci(method="wilson")
    return low, high


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_verdict_comes_first(page: Element, run: Path) -> None:
    main_part = page.one("main")
    header = next(child for child in main_part.children if isinstance(child, Element))
    assert header.tag == "header"
    sentences = verdict(read_records([run]))
    assert header.one("p", "headline").text == sentences[0]
    texts = [e.text for e in header.all("dd") + header.all("p") if not e.all()]
    assert sorted(texts) == sorted(sentences)
    assert [dt.text for dt in header.all("dt")] == ["How far?", "Compared with what?", "How sure?"]


@pytest.mark.parametrize(("rope", "steps"), EFFECTIVE_CONTEXT)
def test_heatmaps_by_depth(page: Element, rope: str, steps: int) -> None:
    phrase = f"{rope} after {steps} steps" if steps else f"{rope}, zero-shot"
    cells = table(page, f"{phrase}, by length and depth")
    is_base = (rope, steps) == ("none", 0)
    assert len(cells) == 20 + 8 + 4 * (not is_base)
    # Only these variants have planted controls.
    has_controls = is_base or (rope, steps) == ("yarn(factor=4)", 60)
    for (row, column), cell in cells.items():
        seq_len = int(column.split(" ")[0].replace(",", ""))
        if row in CONDITIONS and not has_controls:
            assert cell.text == "not asked"
            continue
        if row == "in-window baseline" and seq_len > 256:
            assert cell.text == "\u2013"
            continue
        if row in CONDITIONS:
            records = select(rope, steps, condition=CONDITIONS[row], seq_len=seq_len)
        elif row == "in-window baseline":
            records = select("none", 0, seq_len=256)
        else:
            records = select(rope, steps, depth=float(row), seq_len=seq_len)
        num_correct = sum(correct(records))
        low, high = wilson(num_correct, len(records))
        assert cell.one("b").text == f"{num_correct}/{len(records)}"
        assert cell.one("small").text == f"{100 * low:.0f}\u2013{100 * high:.0f} %"


def test_heatmaps_by_distance_and_where_they_are_hatched(page: Element) -> None:
    cells = table(page, f"{BEST}, by length and distance")
    expected: dict[tuple[float, int], list[bool]] = {}
    for record in select("yarn(factor=4)", 60):
        assert record.question.distance is not None
        x = record.question.distance / 256
        low = max(edge for edge in (0, 0.25, 0.5, 1, 1.5, 2, 3) if edge <= x)
        expected.setdefault((low, record.seq_len), []).append(record.scores.correct)
    actual = {}
    for (name, column), cell in cells.items():
        if "none" not in cell.classes:
            key = float(name.split("\u2013")[0]), int(column.split(" ")[0].replace(",", ""))
            actual[key] = cell.one("b").text, "hatched" in cell.classes
    assert actual == {key: (f"{sum(x)}/{len(x)}", len(x) < 20) for key, x in expected.items()}
    assert {hatched for _, hatched in actual.values()} == {True, False}


def test_differences_and_significance(page: Element) -> None:
    cells = table(page, f"{BEST} minus none after 60 steps, percentage points")
    expected = {}
    p = {}
    for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
        for n in SEQ_LENS:
            unscaled = correct(select("none", 60, depth=depth, seq_len=n))
            yarn = correct(select("yarn(factor=4)", 60, depth=depth, seq_len=n))
            only_yarn = sum(y > x for x, y in zip(unscaled, yarn, strict=True))
            only_unscaled = sum(y < x for x, y in zip(unscaled, yarn, strict=True))
            discordant = only_unscaled + only_yarn
            p[depth, n] = stats.binomtest(only_yarn, discordant).pvalue if discordant else 1.0
            expected[depth, n] = (
                f"{round(100 * (only_yarn - only_unscaled) / len(yarn)):+d}",
                f"{only_yarn} : {only_unscaled} of {len(yarn)}",
            )
    significant = set()
    largest = 0.0
    for rank, key in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, (len(p) - rank) * p[key])
        if largest < 0.05:
            significant.add(key)
    assert 0 < len(significant) < len(p)
    for (depth, column), cell in cells.items():
        if depth != "all depths":
            key = float(depth), int(column.split(" ")[0].replace(",", ""))
            assert (cell.one("b").text.rstrip("\u2605"), cell.one("small").text) == expected[key]
            assert ("marked" in cell.classes) == (key in significant)
            assert ("marked" in cell.classes) == bool(cell.all("span", "star"))
    num_unscaled = sum(correct(select("none", 60, seq_len=1024)))
    num_yarn = sum(correct(select("yarn(factor=4)", 60, seq_len=1024)))
    total = cells["all depths", "1,024 (4x)"]
    assert total.one("b").text.startswith(f"{100 * (num_yarn - num_unscaled) / 60:+.0f}")
    assert "hatched" not in total.classes


def test_effective_contexts_and_controls(
    page: Element, run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["report", str(run), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    contexts = table(page, "passkey: effective context")
    assert len(contexts) == 2 * len(data["effective"])
    by_threshold = table(page, "passkey: effective context by threshold, windows [95 % interval]")
    assert len(by_threshold) == 5 * len(data["effective"])
    for entry in data["effective"]:
        windows = f"{entry['censored']} {entry['value'] / 256:.2f} [".strip()
        assert contexts[entry["method"], "windows [95 % interval]"].text.startswith(windows)
        tokens = f"{entry['censored']} {entry['value']:,.0f}".strip()
        assert contexts[entry["method"], "tokens"].text == tokens
        usual = by_threshold[entry["method"], "at 0.85"].text
        assert usual == contexts[entry["method"], "windows [95 % interval]"].text
        for threshold, length in entry["by_threshold"].items():
            windows = f"{length['censored']} {length['value'] / 256:.2f} [".strip()
            assert by_threshold[entry["method"], f"at {threshold}"].text.startswith(windows)
    controls = table(
        page, "passkey: controls, right / asked, % [95 % interval], probability of the right answer"
    )
    records = select("yarn(factor=4)", 60, condition="no-needle", seq_len=512)
    num_correct = sum(correct(records))
    low, high = wilson(num_correct, len(records))
    cell = controls["no needle (floor), yarn(factor=4), 60 steps at 1024", "512"]
    rate = f"{100 * num_correct / len(records):.0f} [{100 * low:.0f}, {100 * high:.0f}]"
    assert cell.text.startswith(f"{num_correct}/{len(records)} {rate} prob. ")
    assert controls["needle without text, 6 other variants", "256"].text == "not asked"
    baseline = sum(correct(select("none", 0, seq_len=256)))
    cell = controls["in-window baseline, none, zero-shot", "256"]
    assert cell.text.startswith(f"{baseline}/60 ")
    tables = {t.one("caption").text: t for t in page.all("table")}
    perplexity = tables["Perplexity of the same tokens with more context"].all("tr")[1:]
    for tr, cell in zip(perplexity, data["perplexity"], strict=True):
        texts = [element.text for element in tr.children if isinstance(element, Element)]
        assert texts[0] == cell["method"]
        assert texts[2] == f"{cell['perplexity']:.2f}"
        assert texts[4] == f"{cell['bits_per_byte']:.3f}"


def test_training_export_and_provenance(page: Element) -> None:
    tables = {t.one("caption").text: t for t in page.all("table")}
    waves = tables["Wavelength of every rotary pair"].all("tr")[1:]
    pairs = {(tr.one("th").text, tr.all("td")[0].text): tr.all("td")[1].text for tr in waves}
    assert len(pairs) == 16 * len(ROPES)
    assert pairs["none", "0"] == "6.3"
    assert pairs["linear(factor=4)", "0"] == "25.1"
    assert pairs["none", "15"] == f"{2 * 3.141592653589793 * 1e4 ** (15 / 16):,.1f}"
    losses = {tr.one("th").text for tr in tables["Training loss"].all("tr")[1:]}
    assert losses == set(ROPES)
    verdict_of_proof = (
        "EQUAL to the model that was exported, read by numpy 2.4.6 (bfloat16 weights)."
    )
    assert verdict_of_proof in {b.text for b in page.all("b")}
    facts = {x.one("dt").text: x.one("dd").text for x in page.one("dl", "facts").all("div")}
    assert facts["training"] == "60 steps x 4 rows x 1,024 tokens = 245,760 tokens, float32"
    assert facts["commit"] == "2588a9100000-dirty"
    assert facts["tokenizer"] == "d34bb20655eb"
    assert facts["data"] == "text 181 documents 2,131,688 tokens 1fc34e6e938f"
    assert facts["to reproduce"] == "ctxext run run/config.json --run-dir NEW"
    _, by_command = parsers()
    for name in ("this page", "to reproduce"):
        program, command, *words = shlex.split(facts[name])
        known, rest = by_command[command].split(words)
        by_command[command].read(known, rest)  # exits if it does not accept them
        assert (program, rest) == ("ctxext", [])


def test_charts_are_named_and_have_their_numbers(page: Element) -> None:
    charts = page.all("svg", "chart")
    assert len(charts) == 12
    for chart in charts:
        title = chart.one("title")
        description = chart.one("desc")
        assert chart.attributes["role"] == "img"
        assert title.text
        assert description.text
        ids = [title.attributes["id"], description.attributes["id"]]
        assert chart.attributes["aria-labelledby"].split() == ids
        assert chart.parent
        assert chart.parent.one("details").all("td")
    named = {chart.one("title").text: chart for chart in charts}
    # Colour and marker of every method, dashes for what was not trained.
    styles = {
        (line.attributes["class"], line.all("path", "marker")[0].attributes["d"])
        for line in named["passkey: right answers by length"].all("g")
        if line.all("path", "marker")
    }
    # The controls of the best are lines too.
    assert len(styles) == len(EFFECTIVE_CONTEXT) + 2


def test_landmarks(page: Element) -> None:
    assert page.one("html").attributes["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert len(page.all("main")) == len(page.all("nav")) == 1
    order = [e.tag for e in page.all() if re.fullmatch("h[1-6]", e.tag)]
    assert order[0] == "h1"
    assert set(order[1:]) == {"h2"}
    ids = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    links = [a.attributes["href"] for a in page.one("nav").all("a")]
    assert [link[1:] for link in links] == [
        e.attributes["id"] for e in page.all() if e.tag in ("header", "section")
    ]
    for heat in page.all("table"):
        assert all(th.attributes["scope"] in ("col", "row") for th in heat.all("th"))
        assert heat.one("caption").text


def test_nothing_comes_from_outside(page: Element, run: Path) -> None:
    text = (run / "report.html").read_text()
    assert not re.search(
        r"https?://|//[a-z]|url\(|@import|<script|<link|<img|<iframe|javascript:", text
    )
    forbidden = {"src", "srcset", "onload", "onclick", "action", "background", "poster"}
    for element in page.all():
        assert not forbidden & set(element.attributes)
        for name in ("href", "xlink:href"):
            if name in element.attributes:
                assert element.attributes[name].startswith("#")
    text.encode("ascii", "xmlcharrefreplace")
    assert len(text) < 1_000_000


def test_text_can_be_read_on_its_colour(page: Element, run: Path) -> None:
    cells = page.all("td", "cell")
    found = [re.findall(r"#[0-9a-f]{6}", cell.attributes["style"]) for cell in cells]
    pairs = {tuple(colours[i : i + 2]) for colours in found for i in range(0, len(colours), 2)}
    assert len(pairs) > 20
    assert min(contrast(*pair) for pair in pairs) >= 4.5
    style = page.one("style").text
    blocks = re.findall(r":root \{([^}]*)\}", style)
    assert len(blocks) == 3, "light, dark, print"
    for block in blocks:
        names = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for name in ("ink", "soft", "link", *(f"c{i}" for i in range(8))):
            for background in ("bg", "panel"):
                colours = (names[name], names[background])
                assert contrast(*colours) >= 4.5, (name, background, colours)


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    records: list[EvalRecord] = []
    for n in (256, 1024):
        for i in range(4):
            records.append(passkey_record("none", 0, n, 0.5, i, True))
            records.append(passkey_record(HOSTILE, 9, n, 0.5, i, i > 1, checkpoint=HOSTILE))
    records += [
        changed(record, task=HOSTILE, settings="zz", item=f"{HOSTILE}/zz/{i}")
        for i, record in enumerate(records)
    ]
    run = planted_run(tmp_path / "<b onclick=x>&amp;'\"", records, name=HOSTILE)
    (run / "baselines" / "<i>").mkdir()
    (run / "baselines" / "<i>" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    root = parse(write_report([run], tmp_path / "page.html").read_text())
    assert not root.all("script")
    assert not root.all("i")
    assert not [element for element in root.all() if "onclick" in element.attributes]
    assert "<b onclick=x>&amp;'\"" in root.one("h1").text
    assert any(HOSTILE in th.text for th in root.all("th"))
    assert any(HOSTILE in text.text for text in root.all("text"))
    assert any(HOSTILE in dd.text for dd in root.one("dl", "facts").all("dd"))


@pytest.mark.parametrize(
    ("keep", "sections"),
    [
        (
            lambda record: True,
            [
                "effective-context",
                "where",
                "difference",
                "mistakes",
                "perplexity",
                "controls",
                "lengths",
            ],
        ),
        (lambda record: record.kind == "losses", ["perplexity"]),
        (
            lambda record: (
                record.kind == "answer" and record.model.steps == 0 and record.model.rope != "none"
            ),
            ["where", "mistakes", "controls", "lengths"],
        ),
        (lambda record: False, []),
    ],
    ids=["records only", "perplexity only", "no base", "nothing"],
)
def test_sections_without_data_are_left_out(tmp_path: Path, keep, sections: list[str]) -> None:
    write_records(tmp_path / "hf", [record for record in planted_records(2) if keep(record)])
    root = parse(write_report([tmp_path / "hf"]).read_text())
    assert [s.attributes["id"] for s in root.all("section")] == [*sections, "provenance", "reading"]
    assert root.one("p", "headline").text


def test_code_of_others_is_not_run(tmp_path: Path) -> None:
    run = planted_run(tmp_path / "run", planted_records(2))
    config = json.loads((run / "config.json").read_text())
    bomb = tmp_path / "bomb.py"
    bomb.write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\n")
    config["rope"] = {"__type__": f"{bomb}:Bomb", "factor": 4.0}
    (run / "config.json").write_text(json.dumps(config))
    root = parse(write_report([run]).read_text())
    assert not (tmp_path / "exploded").exists()
    notes = [p.text for p in root.all("p", "note")]
    assert any("wavelengths left out" in note and "bomb.py" in note for note in notes)


@pytest.mark.parametrize(
    ("parts", "drawn", "note"),
    [
        (Parts(alibi_exponent=8.0), False, "no wavelengths: the model has ALiBi in place of"),
        (Parts(rotary=(False,) * 4), False, "the model has no positions (NoPE) in place of"),
        (Parts(rotary=(True, True, True, False)), True, "1 of 4 layers do not rotate (NoPE)"),
    ],
    ids=["ALiBi", "no positions", "NoPE"],
)
def test_no_frequencies_are_drawn_that_a_model_lacks(parts, drawn, note, tmp_path: Path) -> None:
    run = planted_run(tmp_path / "run", planted_records(2))
    file = run / "base" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"parts": to_json(parts)}))
    root = parse(write_report([run]).read_text())
    (section,) = (s for s in root.all("section") if s.attributes["id"] == "training")
    assert ("Wavelength of every rotary pair" in section.text) == drawn
    assert ("rotary pairs" in section.text) == drawn
    assert sum(note in p.text for p in section.all("p", "note")) == 1


def test_questions_about_the_whole_text_have_no_depth_or_distance(tmp_path: Path) -> None:
    no_place = {"depth": None, "depth_achieved": None, "distance": None}
    records = [
        changed(record, **no_place) for record in planted_records(2) if record.kind == "answer"
    ]
    write_records(tmp_path, records)
    root = parse(write_report([tmp_path]).read_text())
    ids = [section.attributes["id"] for section in root.all("section")]
    assert "where" not in ids
    assert "controls" in ids
    assert not [caption for caption in root.all("caption") if "distance" in caption.text]


@pytest.mark.check
def test_several_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    chosen = [r for r in RECORDS if r.model.steps == 0 or r.model.rope == "ntk(factor=4)"]
    second_run = planted_run(tmp_path / "other", chosen, name="other")
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), str(second_run)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(verdict(read_records([run, second_run]))[0])
    assert out.endswith("page: report.html\n")
    root = parse((tmp_path / "report.html").read_text())
    names = {th.text for th in root.all("th") if th.attributes["scope"] == "row"}
    assert "ntk(factor=4), 60 steps at 1024 (run)" in names
    assert "ntk(factor=4), 60 steps at 1024 (other)" in names
    # Both runs have the same answers of the base, which are shown once.
    assert "none, zero-shot (run)" in names
    assert "none, zero-shot (other)" not in names
    captions = [c.text for c in root.all("caption")]
    assert f"ntk(factor=4) after 60 steps (other) minus {BEST} (run), percentage points" in captions
    assert {"yarn(factor=4) (run)", "yarn(factor=4) (other)"} <= names
    assert len(root.all("dl", "facts")) == 2


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "deep" / "page.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    sentences = verdict(read_records([run]))
    assert text.splitlines()[: len(sentences)] == sentences
    assert "passkey: right / asked" in text
    assert out.is_file()
    # No temporary file stays.
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert main(["report", str(tmp_path)]) == 2
    assert "has no records.jsonl" in capsys.readouterr().err


def test_what_is_no_run_among_several_is_left_out_and_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As of `runs/sweep/*`: a trial, one that failed at its start, a log and the outcomes."""
    sweep = tmp_path / "sweep"
    (sweep / "lost").mkdir(parents=True)
    (sweep / "yarn").symlink_to(run)
    for name in ("lost/config.json", "sweep.json", "yarn.log"):
        (sweep / name).write_text("{}")
    paths = sorted(map(str, sweep.iterdir()))
    assert main(["report", *paths, "--out", str(tmp_path / "page.html")]) == 0
    of_all = capsys.readouterr()
    assert of_all.err.splitlines() == [
        f"left out, each no run: {sweep / 'sweep.json'}, {sweep / 'yarn.log'}",
        f"left out, a run without records yet: {sweep / 'lost'}",
    ]
    assert main(["report", str(sweep / "yarn"), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == of_all.out
    assert main(["report", *paths, str(tmp_path / "tpyo")]) == 2
    assert f"{tmp_path / 'tpyo'} has no records.jsonl" in capsys.readouterr().err
    assert main(["report", *paths[1::2]]) == 2
    assert f"{paths[1]} has no records.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("ctxext run 'a b.py' --seed 3", "ctxext run 'a b.py' --seed 3"),
        ("ctxext run x; rm -rf $(echo ~) <b>", "ctxext run 'x;' rm -rf '$(echo' '~)' '<b>'"),
        ("ctxext run x\nrm -rf y", "ctxext run x rm -rf y"),
        ("an open 'quote", None),
        (["ctxext"], None),
    ],
)
def test_a_command_on_a_page_is_one_call_whatever_a_run_records_or_is_called(
    tmp_path: Path, recorded: object, shown: str | None
) -> None:
    """A reader pastes it into a shell."""
    name = "a; touch x $(id) <b>'"
    run = RunData(tmp_path / name, name, [], provenance={"command": recorded})
    commands = dict(facts(run))
    assert shlex.split(commands["this page"]) == ["ctxext", "report", name]
    assert commands.get("to reproduce") == shown
