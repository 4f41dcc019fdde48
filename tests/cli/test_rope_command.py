"""`ctxext rope` with several methods: counts worked out by hand, and the numbers of the plot."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from ctxext.cli.main import main
from ctxext.methods import Custom, Linear, Resonance, Yarn
from ctxext.report.analysis.wavelengths import spectrum
from ctxext.rope import RopeBase, Unscaled
from support import families
from support.html_page import parse

SVG = "{http://www.w3.org/2000/svg}"
LLAMA2 = RopeBase(128, 10000.0, 4096)
WAVES = [2 * math.pi * 10000 ** (i / 64) for i in range(64)]
ARGV = ["rope", "none", "linear", "ntk", "yarn", "--factor", "2"]


def output(capsys: pytest.CaptureFixture, *argv: object) -> str:
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_llama2_counts():
    """A turn is 2 pi 10000^(i / 64) tokens: 4,080 for pair 45, 4,712 for pair 46."""
    plain, half = (spectrum(method, LLAMA2, 8192) for method in (Unscaled(), Linear(2.0)))
    assert plain.slow.sum() == 18
    assert plain.slow.tolist() == [i >= 46 for i in range(64)]
    assert plain.extrapolated(8192).tolist() == [i >= 46 for i in range(64)]
    assert plain.extrapolated(4096).sum() == 0
    assert plain.extrapolated(4097).sum() == 18
    assert half.seen.sum() == 46
    assert half.slow.sum() == 23, "2 x 2,294 tokens for pair 41"
    assert half.extrapolated(8192).sum() == 0
    assert half.extrapolated(8193).sum() == 18


@pytest.mark.parametrize("factor", [1.1, 3.0, 7.0, 31.7])
def test_interpolation_extrapolates_nothing_at_any_factor(factor: float):
    for theta in (1e4, 5e5, 1e6):
        assert Linear(factor).rope(LLAMA2, 1).inv_freq[0] == 1 / factor
        waves = spectrum(Linear(factor), RopeBase(128, theta, 4096), 4096)
        assert waves.extrapolated(math.floor(factor * 4096)).sum() == 0
        unseen = (~waves.seen).sum()
        assert unseen > 0
        assert waves.extrapolated(math.ceil(factor * 4096) + 1).sum() == unseen


def test_wavelengths_in_whole_tokens_extrapolate_nothing():
    """Rounded down, a pair turns less than a token farther than in pre-training."""
    rounded = spectrum(Resonance(inner=Yarn(4.0)), LLAMA2, 16384)
    exact = spectrum(Yarn(4.0), LLAMA2, 16384)
    shorter = ~exact.seen & (rounded.wavelengths < exact.wavelengths)
    assert shorter.sum() == 7
    assert rounded.extrapolated(16384).sum() == 0
    assert rounded.extrapolated(16386).sum() == 18
    assert spectrum(Resonance(), LLAMA2, 4096).extrapolated(4096).sum() == 0


def test_pairs_that_slow_down_or_turn_faster():
    """100 tokens, theta 10000, 4 pairs: waves 6.3, 63, 628, 6283; divisors 1, 20, 0.5, 1e9."""
    base = RopeBase(8, 10000.0, 100)
    waves = spectrum(Custom((1.0, 20.0, 0.5, 1e9), 1.0), base, 100)
    assert waves.seen.tolist() == [True, True, False, False]
    assert waves.slow.tolist() == [False, True, True, True]
    assert waves.extrapolated(100).tolist() == [False, False, True, False], (
        "a pair that turned in pre-training and is slower now is not new"
    )
    assert waves.extrapolated(50).sum() == 0
    assert waves.extrapolated(51).sum() == 1


def test_text_counts_per_method(capsys):
    text = output(capsys, *ARGV)
    assert "target 8,192" in text.splitlines()[0]
    counts = re.findall(
        r"^(\S+): attention.*\n  (\d+) of 64 pairs never turn in 4,096 tokens; (\d+) never did in "
        r"pre-training; (\d+) are extrapolated at 8,192$",
        text,
        re.MULTILINE,
    )
    assert counts[:2] == [("none", "18", "18", "18"), ("linear(factor=2)", "23", "18", "0")]
    assert [name for name, *_ in counts[2:]] == ["ntk(factor=2)", "yarn(factor=2)"]
    assert counts[2][3] == "17", "NTK is interpolation at the last pair alone"
    rows = [line.split() for line in text.splitlines()[-64:]]
    assert rows[46] == ["46", "4711.7*", "9423.4", "7815.9*", "9423.4"]
    assert rows[45][1] == "4080.2"
    unscaled = output(capsys, "rope", "none", "--seq-len", 8192)
    assert "18 of 64 pairs never turn in 4,096 tokens; 18 never" in unscaled
    assert "18 are extrapolated at 8,192" in unscaled
    assert "--seq-len" in output(capsys, "rope", "none").splitlines()[0]


def test_json_is_an_object_per_method(capsys):
    methods = json.loads(output(capsys, *ARGV, "--json"))
    names = "none linear(factor=2) ntk(factor=2) yarn(factor=2)"
    assert [method["method"] for method in methods] == names.split()
    yarn = json.loads(output(capsys, "rope", "yarn", "--factor", 2, "--json"))
    assert methods[3] == yarn
    fields = "method inv_freq attention_factor leading_positions sliding hf_config"
    assert set(yarn) == set(fields.split())


def test_the_drawing_shows_the_numbers(tmp_path: Path, capsys):
    """The ticks of the axes turn pixels back into pairs and tokens."""
    out = tmp_path / "new" / "waves.svg"
    assert output(capsys, *ARGV, "--plot", out).splitlines()[-1] == f"plot: {out}"
    assert [p.name for p in out.parent.iterdir()] == ["waves.svg"]
    root = ET.parse(out).getroot()
    assert root.tag == f"{SVG}svg"
    title, description, style = root[:3]
    assert title.tag == f"{SVG}title"
    summary = description.text or ""
    assert "18 of none, 0 of linear(factor=2), 17 of ntk(factor=2), 0 of yarn" in summary
    assert "46 of 64 pairs turned" in summary
    assert "--c1:" in (style.text or "")
    ticks = {t.text: t.attrib for t in root.findall(f"{SVG}g[@class='axes']/{SVG}text")}
    x0, x60 = (float(ticks[name]["x"]) for name in ("0", "60"))
    y10, y10k = (float(ticks[name]["y"]) - 4 for name in ("10", "10k"))

    def points(path: ET.Element) -> np.ndarray:
        numbers = np.array(re.findall(r"[\d.]+", path.attrib["d"]), float).reshape(-1, 2)
        pairs = (numbers[:, 0] - x0) / (x60 - x0) * 60
        powers = 1 + 3 * (numbers[:, 1] - y10) / (y10k - y10)
        return np.stack([pairs, powers], 1)

    lines = {
        g.attrib["class"]: g
        for g in root.findall(f"{SVG}g")
        if g.find(f"{SVG}path[@class='line']") is not None
    }
    assert list(lines) == ["c0", "c1", "c2", "c3"]
    for css, divisor, shaded in (
        ("c0", 1, range(46, 64)),
        ("c1", 2, range(0)),
        ("c2", None, range(46, 63)),
    ):
        drawn = points(lines[css].findall(f"{SVG}path[@class='line']")[0])
        np.testing.assert_allclose(drawn[:, 0], np.arange(64), atol=0.03)
        if divisor:
            np.testing.assert_allclose(drawn[:, 1], np.log10(divisor * np.array(WAVES)), atol=2e-3)
        shades = [points(path) for path in lines[css].findall(f"{SVG}path[@class='shade']")]
        # A shade closes with its last pair once more.
        shaded_pairs = [round(pair) for shade in shades for pair in shade[:-1, 0]]
        assert shaded_pairs == list(shaded)
    marks = [p.attrib["d"] for p in root.findall(f"{SVG}g[@class='mark']/{SVG}path")]
    heights = np.array([float(d.split()[1].split("H")[0]) for d in marks if "H" in d])
    tokens = 10 ** (1 + 3 * (heights - y10) / (y10k - y10))
    np.testing.assert_allclose(tokens, [4096, 8192], rtol=5e-3)
    (vertical,) = (float(re.findall(r"[\d.]+", d)[0]) for d in marks if "V" in d)
    assert abs((vertical - x0) / (x60 - x0) * 60 - 45.5) < 0.03


def test_the_page_has_the_drawing_and_its_table(tmp_path: Path, capsys):
    output(capsys, *ARGV, "--plot", tmp_path / "waves.html")
    root = parse((tmp_path / "waves.html").read_text())
    assert len(root.all("svg", "chart")) == 1
    assert len(root.all("svg", "swatch")) == 4
    rows = [
        [cell.text for cell in row.children if not isinstance(cell, str)] for row in root.all("tr")
    ]
    assert rows[0] == ["method", "pair", "tokens per turn", "windows", "angles"]
    assert len(rows) == 1 + 4 * 64
    assert rows[1 + 45] == ["none", "45", "4,080.2", "0.996", "seen"]
    assert rows[1 + 46] == ["none", "46", "4,711.7", "1.15", "extrapolated"]
    assert rows[1 + 64 + 46] == ["linear(factor=2)", "46", "9,423.4", "2.3", "within what was seen"]
    assert "://" not in (tmp_path / "waves.html").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--head-dim", 2],
        ["--theta", 1e30],
        ["--original", 1],
        ["--original", 10**6],
        ["--seq-len", 1],
    ],
)
def test_odd_shapes_are_drawn_too(tmp_path: Path, capsys, options: list):
    output(capsys, "rope", "none", "linear", "--factor", 2, *options, "--plot", tmp_path / "x.svg")
    root = ET.parse(tmp_path / "x.svg").getroot()
    assert root.find(f".//{SVG}path[@class='line']") is not None


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, capsys):
    line = refused(capsys, *ARGV, "--plot", tmp_path / "waves.png")
    assert "waves.svg" in line
    assert "waves.html" in line
    assert "did you mean --factor" in refused(capsys, *ARGV, "--factr", 2)
    assert "needs factor" in refused(capsys, "rope", "none", "linear")
    assert "pose" in refused(capsys, "rope", "none", "pose", "--max-position-embeddings", 64)
    dynamic = ["rope", "none", "dynamic-ntk", "--factor", 2, "--plot", tmp_path / "x.svg"]
    assert "--seq-len" in refused(capsys, *dynamic)
    with pytest.raises(SystemExit, match="2"):
        main(["rope", "none", "--seq-len", "0"])
    assert "--seq-len: must be at least 1, got 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_layers_that_do_not_rotate_are_named(capsys, tmp_path):
    cases = families.cases()
    smollm3 = families.write_golden(tmp_path / "smollm3", cases["smollm3"])
    header, *_ = output(capsys, "rope", "none", "--init", smollm3).splitlines()
    assert "theta 10000, 2 of 4 layers do not rotate (NoPE), window 64" in header
    mpt = families.write_golden(tmp_path / "mpt", cases["mpt-h4"])
    line = refused(capsys, "rope", "none", "--init", mpt)
    assert "has no rotary embedding: model_type mpt has ALiBi" in line
    without = cases["smollm3"] | {
        "params": cases["smollm3"]["params"] | {"no_rope_layers": [0] * 4}
    }
    nowhere = families.write_golden(tmp_path / "nowhere", without)
    line = refused(capsys, "rope", "none", "--init", nowhere)
    assert "has no rotary embedding: model_type smollm3 has no positions (NoPE)" in line
