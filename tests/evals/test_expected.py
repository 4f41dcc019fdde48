"""Published numbers: refused if nothing measures them, and judged by both intervals."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from ctxext.cli.main import main
from ctxext.evals import Expected, Perplexity, Retrieval, RollingPerplexity
from ctxext.evals.record import Cluster, LossEstimator, LossRecord, LossScores, WindowLosses
from ctxext.evals.stats import Interval, ratio_interval
from ctxext.files import write_json
from ctxext.report import expectations, write_report
from ctxext.report.analysis.published import Outcome
from ctxext.report.pages.expected import outcome_text
from ctxext.rundir import RunDir
from ctxext.serialization import from_json, to_json
from support.html_page import parse, table
from support.planted import experiment, model, passkey_record, planted_run

PAPER = dict(what="YaRN s = 2, proof-pile", source="arXiv:2309.00071, table 1")
TRUNCATE = RollingPerplexity((512, 1024), "truncate", num_documents=2)
NUMBER = Expected("ppl:truncate", 1024, 3.35, 0.05, **PAPER)
YARN = "yarn(factor=4)"


def expecting(*expect, evals=(TRUNCATE,)):
    return dataclasses.replace(experiment(YARN), evals=evals, expect=expect)


def test_a_measured_number_is_accepted_and_written():
    passkey = Retrieval((256,), n=1)
    # A control of the same name measures something else.
    floor = Retrieval((256,), n=1, condition="no-needle")
    accuracy = Expected("passkey", 256, 94.3, 5.0, metric="accuracy", **PAPER)
    expected = expecting(NUMBER, accuracy, evals=(TRUNCATE, Perplexity((512,)), passkey, floor))
    assert from_json(json.loads(json.dumps(to_json(expected)))) == expected


@pytest.mark.parametrize(
    ("expect", "evals", "message"),
    [
        (
            dataclasses.replace(NUMBER, seq_len=2048),
            (TRUNCATE,),
            "none of evals measures perplexity of ppl:truncate at "
            "2048; measured: perplexity of ppl:truncate at 512; perplexity of ppl:truncate at 1024",
        ),
        (
            dataclasses.replace(NUMBER, metric="accuracy"),
            (TRUNCATE,),
            "accuracy of ppl:truncate at 1024; measured",
        ),
        (
            dataclasses.replace(NUMBER, evaluation="ppl"),
            (TRUNCATE,),
            "perplexity of ppl at 1024; measured",
        ),
        (
            dataclasses.replace(NUMBER, evaluation="passkey", metric="accuracy"),
            (Retrieval((1024,), n=1, condition="needle-only"),),
            "measured: nothing",
        ),
        (NUMBER, (), "measured: nothing"),
        (
            NUMBER,
            (TRUNCATE, dataclasses.replace(TRUNCATE, seed=1)),
            "2 of evals measure perplexity of ppl:truncate",
        ),
    ],
)
def test_a_number_that_nothing_measures_is_refused(expect, evals, message):
    with pytest.raises(ValueError) as error:
        expecting(expect, evals=evals)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tolerance": 0.0}, "tolerance above 0"),
        ({"value": math.nan}, "finite"),
        ({"source": ""}, "source"),
        ({"metric": "bleu"}, "choose accuracy or perplexity"),
    ],
)
def test_a_number_without_sense_or_source_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NUMBER, **wrong)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (Interval(3.35, 3.31, 3.39), "agrees"),
        (Interval(3.31, 3.301, 3.399), "agrees"),
        (Interval(3.41, 3.36, 3.46), "not distinguishable from agreement"),
        # The value alone would have agreed.
        (Interval(3.35, 3.00, 4.00), "not distinguishable from agreement"),
        (Interval(3.45, 3.40, 3.50), "not distinguishable from agreement"),
        (Interval(3.45, 3.41, 3.50), "disagrees"),
        (Interval(3.20, 3.10, 3.29), "disagrees"),
        (Interval(3.35, None, None), "no interval"),
        (None, "not measured"),
    ],
)
def test_the_verdict(measured, verdict):
    assert Outcome("run", NUMBER, measured).verdict == verdict


def test_the_sentence_about_an_expected_number():
    outcome = Outcome("run", NUMBER, Interval(3.41, 3.36, 3.46))
    assert outcome_text(outcome) == (
        "ppl:truncate at 1,024 tokens: expected 3.35 ± 0.05 (YaRN s = 2, proof-pile; "
        "arXiv:2309.00071, table 1), measured 3.41 [3.36, 3.46]: "
        "not distinguishable from agreement."
    )


NLL = [math.log(3.2), math.log(3.3), math.log(3.4), math.log(3.5)]


def ppl_record(rope, steps, document, nll):
    item = f"ppl:truncate/cc/1024/{document}"
    windows = WindowLosses((nll * 1000,), (1000,))
    return LossRecord(
        model=model(rope, steps),
        evaluation="ppl:truncate",
        item=item,
        settings="cc",
        seq_len=1024,
        cluster=Cluster(document, item),
        estimator=LossEstimator("truncate", mean="window"),
        scores=LossScores(nll=nll * 1000, count=1000, num_bytes=3000, windows=windows),
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The trained variant, with others that fit better and must not be mistaken for it."""
    records = [ppl_record(YARN, 60, i, nll) for i, nll in enumerate(NLL)]
    records += [
        ppl_record(rope, steps, i, math.log(9.0))
        for i in range(4)
        for rope, steps in ((YARN, 0), ("none", 60))
    ]
    records += [passkey_record(YARN, 60, 1024, 0.5, i, i < 12) for i in range(16)]
    records += [
        passkey_record(YARN, 60, 1024, 0.5, i, False, condition="no-needle") for i in range(16)
    ]
    path = planted_run(tmp_path / "run", records)
    accuracy = Expected("passkey", 1024, 20.0, 1.0, metric="accuracy", **PAPER)
    evals = (TRUNCATE, Retrieval((1024,), n=1))
    later = Expected("ppl:truncate", 512, 3.4, 0.05, **PAPER)
    write_json(path / "config.json", to_json(expecting(NUMBER, accuracy, later, evals=evals)))
    return path


def test_the_report_shows_outcomes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--json"]) == 0
    ppl, passkey, later = json.loads(capsys.readouterr().out)["expected"]
    interval = ratio_interval(NLL, [1] * 4, range(4))
    value, low, high = map(math.exp, interval)  # pyright: ignore[reportArgumentType]
    assert value == pytest.approx(math.exp(sum(NLL) / 4))
    assert low < 3.3 < 3.4 < high
    assert ppl["measured"] == pytest.approx({"value": value, "low": low, "high": high})
    assert ppl["verdict"] == "not distinguishable from agreement"
    assert passkey["measured"]["value"] == 75.0
    assert passkey["verdict"] == "disagrees"
    assert later["measured"] is None
    assert later["verdict"] == "not measured"
    assert main(["report", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"measured {value:.2f} [{low:.2f}, {high:.2f}]: not distinguishable" in " ".join(lines)
    assert any(line.startswith("passkey (%) at 1,024 tokens: expected 20 ± 1 (") for line in lines)
    cells = table(parse(write_report([run]).read_text()), "Expected and measured")
    name = "passkey (%) at 1,024 tokens"
    assert cells[name, "expected"].text == "20 ± 1"
    assert cells[name, "measured [95 % interval]"].text == "75 [50.5, 89.8]"
    assert cells[name, "source"].text == "YaRN s = 2, proof-pile; arXiv:2309.00071, table 1"
    verdicts = [cell.text for (_, column), cell in cells.items() if column == "verdict"]
    assert verdicts == [ppl["verdict"], "disagrees", "not measured"]


def test_expectations_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    first = expecting(NUMBER)
    second = expecting(dataclasses.replace(NUMBER, tolerance=0.1))
    assert first.fingerprint == second.fingerprint == expecting().fingerprint
    RunDir(tmp_path).open(first)
    stored = json.loads(RunDir(tmp_path).open(second).config_file.read_text())
    assert from_json(stored) == second


def test_without_expectations_the_report_has_no_such_section(tmp_path: Path) -> None:
    path = planted_run(tmp_path / "run")
    assert expectations([path]) == []
    assert "As published?" not in write_report([path]).read_text()
