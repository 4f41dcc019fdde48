"""No text of a stranger commands the terminal: on the command line, in bars, pages and cards."""

import contextlib
import io
import json
import os
import re
import signal
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ctxext
from ctxext.cli.commands import all_commands
from ctxext.cli.heartbeat import sign_of_life
from ctxext.cli.main import main
from ctxext.evals.record import EvaluatedModel, read_records
from ctxext.evals.reporting import EvaluationProgress
from ctxext.interop.lazy_tensor import LazyTensor
from ctxext.interop.model_card import BEGIN, END, code_block, model_card, with_proof
from ctxext.interop.safetensors_files import write_tensors
from ctxext.progress import Meter, left_text, now_at, part, parts_heard_by
from ctxext.progress_bar import CountedWork, TerminalBar
from ctxext.report import tables, write_report
from ctxext.report.pages import page
from ctxext.rope import Unscaled
from ctxext.rundir import RunDir
from ctxext.stages.clock import StageClock
from ctxext.stages.estimate import Estimate, Stage
from ctxext.terminal import (
    PrintableStream,
    printable,
    printable_line,
    printable_output,
    write_model_text,
)
from ctxext.training.progress import TrainProgress
from support.hf_files import write_hf
from support.llamas import TINY, random_params, tokenizer
from support.planted import planted_records, write_records
from support.records import changed

TITLE = "\x1b]0;owned\x07"
CLEAR = "\x1b[2J"
REVERSED = "\u202egnp.exe\u2069"
HOSTILE = f"{TITLE}{CLEAR}\x9b31m{REVERSED}\u200b\rmodel"
SPELLED = r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2069\u200b\rmodel"
VISIBLE_FORMAT = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2")
VISIBLE_FORMAT |= {"\U000110bd", "\U000110cd"}
"""Signs of Arabic, Syriac and Kaithi that have a shape, though Unicode calls them formats."""


FORBIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of controls, formats, surrogates and separators of lines."""
SHAPELESS = re.compile("FILLER|JOINER|VARIATION SELECTOR|VOWEL (INHERENT|SEPARATOR)")
"""Names of letters and marks without a shape."""


def is_harmless(text: str) -> bool:
    return not any(
        unicodedata.category(character) in FORBIDDEN for character in set(text) - {*"\n\t"}
    )


def test_controls_and_invisible_characters_are_spelled_and_nothing_else():
    everything = [chr(code) for code in range(sys.maxunicode + 1)]
    kept = set(printable("".join(everything)))
    for character in everything:
        category = unicodedata.category(character)
        if category in FORBIDDEN and character not in VISIBLE_FORMAT:
            assert (character in kept) == (character in "\n\t"), hex(ord(character))
        elif category != "Cn" and character not in kept:
            assert SHAPELESS.search(unicodedata.name(character)), hex(ord(character))
    assert printable(HOSTILE) == SPELLED
    assert printable(SPELLED) == SPELLED
    assert printable("\u0645\u06cc\u200c\u0634\u0648\u062f", joiners=True)[2] == "\u200c"
    assert printable_line("a\n\tb") == r"a\n\tb"


def test_errors_of_every_command_are_spelled(tmp_path: Path, capsys):
    file = tmp_path / f"{HOSTILE}.gguf"
    for command in (["report"], ["prove"], ["generate", "--prompt", "x"], ["export", "--out", "x"]):
        assert main([command[0], str(file), *command[1:]]) == 2
        error = capsys.readouterr().err
        assert is_harmless(error)
        assert SPELLED.split("\\r")[0] in error
    with pytest.raises(SystemExit):  # by argparse
        main([HOSTILE])
    assert is_harmless(capsys.readouterr().err)


def test_names_of_tensors_are_spelled(tmp_path: Path, capsys):
    write_hf(tmp_path / "m", TINY, random_params(), Unscaled(), tokenizer(), dtype="float32")
    file = tmp_path / "m" / "model.safetensors"
    save_file(load_file(file) | {HOSTILE: np.zeros(1, np.float32)}, file)
    assert main(["generate", str(tmp_path / "m"), "--prompt", "x"]) == 2
    error = capsys.readouterr().err
    assert is_harmless(error)
    assert SPELLED.partition(r"\r")[0] in error


def test_names_of_adapters_and_messages_of_templates_are_spelled(tmp_path: Path, capsys):
    adapter = tmp_path / HOSTILE
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": HOSTILE}))
    template = tmp_path / "template.jinja"
    template.write_text(f"{{{{ raise_exception({HOSTILE!r}) }}}}")
    chat = ["--chat", "--chat-template", str(template)]
    for options in (["--adapter", str(adapter)], chat):
        assert main(["generate", "tiny-llama", "--prompt", "x", *options]) == 2
        error = capsys.readouterr().err
        assert is_harmless(error)
        assert SPELLED.partition(r"\r")[0] in error


def test_the_python_api_gives_texts_as_they_are(tmp_path: Path):
    """Its caller decides where they go; `printable` spells them."""
    with pytest.raises(ValueError) as raised:
        ctxext.load(tmp_path / HOSTILE)
    assert HOSTILE in str(raised.value)
    assert HOSTILE in EvaluatedModel(window=64, rope=HOSTILE).label
    assert is_harmless(printable(str(raised.value)))


def test_labels_are_spelled_in_tables_pages_charts_and_json(tmp_path: Path, capsys):
    label = f"{HOSTILE}\nproof: EQUAL <b>"
    records = [changed(record, rope=label, adapter=label) for record in planted_records()[:60]]
    write_records(tmp_path / "run", records)
    assert main(["report", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert is_harmless(output)
    assert SPELLED in output
    assert "\nproof: EQUAL" not in output
    assert main(["report", str(tmp_path / "run"), "--json"]) == 0
    assert is_harmless(capsys.readouterr().out)
    assert is_harmless(tables(read_records(tmp_path / "run" / "records.jsonl")))
    html = write_report([tmp_path / "run"]).read_text()
    assert is_harmless(html)
    assert SPELLED in html
    assert "EQUAL &lt;b&gt;" in html
    assert "EQUAL <b>" not in html
    charts = [
        chart for section in page.page_sections([tmp_path / "run"]) for chart in section.charts
    ]
    assert charts
    for chart in charts:
        ET.fromstring(chart.svg)  # a control character is an error there
        assert is_harmless(chart.svg)


class Terminal:
    """A pseudo-terminal as a stream, and what was written to it."""

    def __init__(self) -> None:
        self._reader, writer = os.openpty()
        self.stream = os.fdopen(writer, "w")

    def read(self) -> str:
        self.stream.flush()
        self.stream.close()
        data = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while chunk := os.read(self._reader, 1 << 16):
                data += chunk
        os.close(self._reader)
        return data.decode().replace("\r\n", "\n")


def test_generated_text_is_spelled_on_a_terminal_and_raw_in_a_pipe(monkeypatch):
    text = f"{HOSTILE} \u0645\u06cc\u200c\u0634\u0648\u062f"
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    with printable_output():
        write_model_text(text)
    assert pipe.getvalue() == text
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    with printable_output():
        write_model_text(text)
    assert terminal.read() == f"{SPELLED}{text[-7:]}"


def test_a_bar_draws_and_what_is_printed_above_it_is_spelled(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with printable_output():
        streams = (sys.stdout, sys.stderr)
        with TerminalBar(enabled=True) as bar:
            task = bar.add_task(f"[red]{printable_line(HOSTILE)}", total=2)
            print(f"warning {HOSTILE}", file=sys.stderr)
            bar.advance(task)
        assert (sys.stdout, sys.stderr) == streams
    text = terminal.read()
    assert TITLE not in text
    assert CLEAR not in text
    assert "\u202e" not in text
    assert f"warning {SPELLED}" in text
    assert f"[red]{SPELLED}" in text
    assert "1/2" in text
    assert "\x1b[" in text  # the bar itself draws
    assert (
        not TerminalBar(enabled=False).console.is_interactive or TerminalBar(enabled=False).disable
    )


def test_the_bar_of_a_training_shows_what_is_known(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with printable_output():
        parts = []
        with parts_heard_by(parts.append):
            progress = TrainProgress("tiny", 0, 3, enabled=True)
            progress.start()
            progress.update({"step": 1, "loss": 2.5})
            progress.update({"step": 2, "loss": 2.25, "tokens_per_second": 4321.0})
            progress.update({"step": 3, "loss": 2.0})
            progress.stop()
    steps = [f"after step {step} of 3" for step in (1, 2, 3)]
    assert parts == ["compiling the first step", *steps, ""]
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.read())
    first, *_, last = re.findall("tiny[^\r\n]*", text)
    assert "compiling ..." in first
    assert "nan" not in first and "tokens/s" not in first
    assert "loss 2.0000  4,321 tokens/s" in last


@pytest.mark.parametrize("seconds", [0.05, 2.0, 100.0])
def test_the_time_left_of_a_steady_stream_is_right_to_a_factor_of_two(seconds):
    """Also where one step takes minutes."""
    now = 0.0
    bar = TerminalBar(enabled=False)
    bar.get_time = lambda: now
    bar.add_task("steps", total=100)
    (task,) = bar.tasks
    for done in range(1, 100):
        now += seconds
        bar.advance(task.id)
        if done >= 3:
            left = (100 - done) * seconds
            assert task.time_remaining is not None
            assert left / 2 <= task.time_remaining <= max(2 * left, 1)


def test_only_a_line_that_began_so_is_drawn_again():
    stream = io.StringIO()
    output: Any = PrintableStream(stream)
    print("\r 10 %", end="", file=output)
    print("\r 20 %", end="", file=output)
    print("\ndone", "\rEQUAL", file=output)
    assert stream.getvalue() == "\r 10 %\r 20 %\ndone \\rEQUAL\n"
    assert output.isatty() is False


def test_a_traceback_is_spelled(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(RuntimeError) as raised, printable_output():
        raise RuntimeError(HOSTILE)
    sys.excepthook(type(raised.value), raised.value, raised.tb)
    assert is_harmless(stream.getvalue())
    assert f"RuntimeError: {SPELLED}" in stream.getvalue()


def test_a_model_card_has_no_markup_of_strangers():
    settings = {
        "rope_parameters": {"rope_type": "default"},
        "max_position_embeddings": 64,
        "dtype": "float32",
    }
    facts = {
        "method": f"{HOSTILE}\n# Proof\n<script>[x](http://y) `z` {END}",
        "summary": f"table\n```\n<script>{END}\n````\n{CLEAR}",
    }
    card = model_card(settings, TINY, facts)
    assert is_harmless(card)
    assert "\n# Proof" not in card
    line = card.partition("- method: ")[2].partition("\n")[0]
    assert "<" not in line
    assert r"\[x\](http://y) \`z\`" in line
    measured = card.partition("## Measured\n\n")[2]
    assert measured.startswith("`````\ntable\n```\n<script>")
    assert card.count(END) == card.count(BEGIN) == 1
    proven = with_proof(card, code_block(f"EQUAL {END} {CLEAR}"))
    assert proven.count(END) == 1
    assert with_proof(proven, "again").endswith(f"{BEGIN}\nagain\n{END}\n")


def test_a_sign_of_life_breaks_a_long_silence_in_a_log(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with printable_output():
        with sign_of_life("export", interval=60):
            print("at work", file=sys.stderr)
        assert log.getvalue() == "at work\n"
        with sign_of_life("export", interval=0.01):
            deadline = time.monotonic() + 30
            while log.getvalue().count("\n") < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
        about = "exp\x1b[2Jort"
        with sign_of_life("prove", about, interval=0.01), part("reading with \x1b[2J"):
            Meter(total=4.0).add(1.0)
            deadline = time.monotonic() + 30
            while "reading" not in log.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
    lines = log.getvalue().splitlines()
    for line in lines[1:3]:
        assert re.fullmatch(r"ctxext export: at work for \d+ s", line)
    at_work = r"ctxext prove exp\\x1b\[2Jort: at work for \d+ s, reading with \\x1b\[2J, 25%"
    at_work += r", about \d+ s left of it"
    assert re.fullmatch(at_work, next(line for line in lines if "reading" in line))


def test_parts_of_work_are_told_and_the_outer_one_again():
    told = []
    now_at("nobody hears it")
    with parts_heard_by(told.append), part("proof"):
        with part("reader"):
            now_at("layer")
        with pytest.raises(KeyError), part("comparison"):
            raise KeyError
    assert told == ["proof", "reader", "layer", "proof", "comparison", "proof", ""]
    with parts_heard_by(told.append), part("evaluate yarn"):
        with EvaluationProgress("yarn", list, enabled=False) as progress:
            progress.begin("passkey, yarn", 3)
    assert told[7:] == ["evaluate yarn", "passkey, yarn", "evaluate yarn", ""]
    assert (left_text(30.0, 0.25), left_text(0.0, 0.25), left_text(9.0, 1.0)) == (
        ", about 2 min left of it",
        "",
        "",
    )


def test_a_stage_without_a_bar_of_its_own_shows_its_part(monkeypatch, tmp_path):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    stages = (Stage("train", "train tiny", "1 step"), Stage("export", "export", "hf"))
    clock = StageClock(Estimate(stages, "not timed"), RunDir(tmp_path))
    with printable_output():
        for stage in stages:
            with clock.stage(stage.kind):
                now_at(f"writing {stage.kind}.safetensors")
    text = terminal.read()
    assert "export: writing export.safetensors" in text
    assert "writing train" not in text


def test_counted_work_is_a_line_a_minute_without_a_terminal(capsys):
    """Of tasks that take a minute and a half each, and of requests of which many take a second."""
    now = 0.0
    with CountedWork("ruler", 4, "tasks", clock=lambda: now) as work:
        for name in ("niah", "vt", "cwe"):
            work.begin(name)
            now += 90
            work.advance()
    with CountedWork("base, answers", 2000, "requests", clock=lambda: now) as work:
        for _ in range(100):
            now += 1
            work.advance(10)
    with CountedWork("quiet", 1, "requests", enabled=False, clock=lambda: now) as work:
        now += 100
        work.advance()
    assert capsys.readouterr().err.splitlines() == [
        "ruler: 1 of 4 tasks",
        "ruler: 2 of 4 tasks, about 3 min left",
        "ruler: 3 of 4 tasks, about 2 min left",
        "base, answers: 600 of 2,000 requests, about 2 min left",
    ]


def test_a_long_command_has_a_bar_on_a_terminal(monkeypatch, tmp_path):
    """While safetensors are written, by their bytes; it is gone when the command ends."""
    terminal = Terminal()
    shares = []
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr("ctxext.progress_bar.TerminalBar.update", shown_by(shares))
    zeros = {"a": np.zeros((3, 8), np.float32), "b": np.zeros(8, np.float32)}
    tensors = {
        name: LazyTensor(value.shape, "float32", lambda index=..., value=value: value[index])
        for name, value in zeros.items()
    }
    with printable_output(), sign_of_life("export"):
        write_tensors(tmp_path, tensors, "float32", max_shard_size=96)
    assert shares == [0.5, 1.0]
    assert "ctxext export" in terminal.read()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def shown_by(shares):
    """A stand-in for the bar's update that notes what it is given."""

    def update(bar, task, *, completed, total, left):
        assert total == 1
        assert bool(left) == (completed < 1)
        shares.append(completed)

    return update


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "my file.py"],
            "every checkpoint is kept; go on with: ctxext train 'my file.py'",
        ),
        (
            ["methods"],
            "nothing is kept, and no file was left half-written; begin again with: ctxext methods",
        ),
    ],
)
def test_an_interrupted_command_says_what_is_kept_and_how_to_go_on(
    words, message, how, monkeypatch, capsys
):
    def interrupt(args, rest):
        if how == "Ctrl-C":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(all_commands()[words[0]], "run", interrupt)
    assert main(words) == {"Ctrl-C": 130, "SIGTERM": 143}[how]
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == f"ctxext: interrupted: {message}\n"
