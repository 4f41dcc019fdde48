"""The page in a browser: no wider than a phone, light and dark, and it fetches nothing."""

import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from ctxext.report import write_report
from support.planted import planted_run

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((name for name in NAMES if shutil.which(name)), None)
pytestmark = [
    pytest.mark.check,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"),
]
DARK = "--blink-settings=preferredColorScheme=0"
MEASURE = """<script>{
const all = selector => [...document.querySelectorAll(selector)];
const right = Math.max(...all("main > *").map(e => Math.round(e.getBoundingClientRect().right)));
const texts = all("h2, p, dd, dt, li, summary").filter(e => e.clientWidth > 0);
const spilled = texts.filter(e => e.scrollWidth > e.clientWidth + 1).length;
const width = document.documentElement.scrollWidth;
const tables = all("#effective-context .scroll");
const scrolling = tables.filter(e => e.scrollWidth > e.clientWidth).length;
const charts = all("svg.chart").length;
parent.postMessage([width, innerWidth, charts, right, spilled, scrolling].join(" "), "*");
}</script></body>"""
"""Sends the widths of the page and its frame, the number of charts, what overflows, and how many
tables of effective contexts scroll."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([planted_run(tmp_path_factory.mktemp("planted") / "run")])


def browse(folder: Path, *options: str) -> str:
    """What the browser prints when it opens a page with these options, headless."""
    fixed = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run "
        "--hide-scrollbars"
    ).split()
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [str(BROWSER), *fixed, profile, *options]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout


def pixels(png: Path) -> tuple[int, int, list[bytes]]:
    """Width, height, and the lines as they are filtered in the file, which is enough for tests."""
    data = png.read_bytes()
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert (depth, kind) in ((8, 2), (8, 6))
    body = b""
    at = 8
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        if name == b"IDAT":
            body += data[at + 8 : at + 8 + size]
        at += size + 12
    raw = zlib.decompress(body)
    step = 1 + width * (3 if kind == 2 else 4)
    return width, height, [raw[i * step : (i + 1) * step] for i in range(height)]


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path, width: int) -> None:
    # A browser window has a minimum width; a frame in it has none.
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text()).replace("</body>", MEASURE)
    (tmp_path / "measured.html").write_text(text)
    (tmp_path / "frame.html").write_text(
        "<title>waiting</title><iframe src='measured.html' "
        f"style='border:0;width:{width}px;height:900px'></iframe>"
        "<script>onmessage = e => { document.title = e.data }</script>"
    )
    output = browse(
        tmp_path,
        "--window-size=1400,1000",
        "--virtual-time-budget=5000",
        "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    )
    title = re.search(r"<title>([\d ]+)</title>", output)
    assert title, output
    page_width, frame_width, charts, right, spilled, scrolling = map(int, title[1].split())
    assert frame_width == width
    assert page_width <= width
    assert right <= width
    assert charts == 12
    assert spilled == 0
    assert scrolling == 0 or width < 1280


@pytest.mark.parametrize(("name", "options"), [("light", []), ("dark", [DARK])])
def test_it_is_drawn(page: Path, tmp_path: Path, name: str, options: list[str]) -> None:
    shot = tmp_path / f"{name}.png"
    browse(tmp_path, *options, "--window-size=1280,1600", f"--screenshot={shot}", page.as_uri())
    width, height, lines = pixels(shot)
    assert (width, height) == (1280, 1600)
    # The first line is background; the filter of its first pixel has nothing to refer to.
    background = {"light": bytes([255, 255, 255]), "dark": bytes([0x14, 0x16, 0x1A])}
    assert lines[0][1:4] == background[name]
    # Text, charts and cells: the page is not blank.
    assert len(set(lines)) > 400


def test_it_prints(page: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "page.pdf"
    browse(tmp_path, DARK, f"--print-to-pdf={pdf}", page.as_uri())
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 12
