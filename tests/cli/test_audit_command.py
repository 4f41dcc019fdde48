"""`ctxext audit` from the command line: findings, exit status, data and drawing."""

import json
from pathlib import Path

import pytest

import ctxext.audit
from ctxext.audit import Audit, Subject, audit
from ctxext.cli.audit_view import AuditView
from ctxext.cli.main import main
from support.html_page import parse

STRING_PREFILL = """
import dataclasses
from ctxext.attention import Attention, Band, Piece
from ctxext.attention.maps import Shifted


@dataclasses.dataclass(frozen=True)
class StringPrefill(Attention):
    shifted_offset: int
    local_value: int

    def pieces(self, seq_len):
        far = Shifted(self.local_value - self.shifted_offset)
        near = Band(0, self.shifted_offset + 1)
        return Piece(near), Piece(Band(self.shifted_offset), far)
"""


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command for a method in a file that counts keys twice, as in golden case string-01."""
    file = tmp_path_factory.mktemp("method") / "mine.py"
    file.write_text(STRING_PREFILL)
    fields = "--shifted-offset 13 --local-value 4 --original 40 --seq-len 40 --head-dim 8"
    argv = ["audit", f"{file}:StringPrefill", *fields.split(), "--layers", "2"]
    return argv, file.with_name("seen.html")


def test_a_users_method_with_a_flaw(doubled, capsys, monkeypatch):
    argv, page = doubled
    results = []

    def kept(subject: Subject) -> Audit:
        results.append(audit(subject))
        return results[0]

    monkeypatch.setattr(ctxext.audit, "audit", kept)
    assert main([*argv, "--json", "--plot", str(page)]) == 1
    data = json.loads(capsys.readouterr().out)
    kinds = [finding["kind"] for finding in data["findings"]]
    assert kinds == ["twice", "kernel", "kernel"]
    by_kernel = {kernel["name"]: kernel["result"] for kernel in data["kernels"]}
    assert by_kernel["blocked"] == by_kernel["ring"] == "different"
    assert data["cache"]["result"] == "same"
    (view,) = data["views"]
    last = view["queries"][-1]
    assert last["visible"] == [[[26, 39]], [[0, 26]]]
    assert (last["counted_twice"], last["future"], last["keys"]) == ([[26, 26]], [], [14, 27])
    assert data["receptive_field"]["tokens_by_layer"] == [40, 40]
    assert "counted twice" in parse(page.read_text()).text

    text = AuditView(results[0], "theta 10000").text()
    lines = text.splitlines()
    assert lines[0].startswith(
        "string-prefill(shifted_offset=13, local_value=4): 40 tokens; window"
    )
    assert lines[2] == "findings:"
    assert lines[3].startswith(
        "- Keys are counted twice in one softmax: query 39 has key 26 in pieces"
    )


def test_an_experiment_and_its_methods_are_looked_at(capsys, monkeypatch):
    """The experiment of the demo trains YaRN at 1,024 tokens; flags give it other attention."""
    subjects = []

    def seen(subject: Subject) -> None:
        subjects.append(subject)
        raise ValueError("seen")

    monkeypatch.setattr(ctxext.audit, "audit", seen)
    flags = ["--method", "self-extend", "--neighbor-window", "64", "--group-size", "4"]
    assert main(["audit", "experiments/demo.py", *flags]) == 2
    assert main(["audit", "linear", "--factor", "2", "--init", "tiny-llama"]) == 2
    of_experiment, of_checkpoint = subjects
    assert (
        of_experiment.name
        == "self-extend(group_size=4, neighbor_window=64) + yarn(factor=4, beta_fast=8)"
    )
    assert (of_experiment.seq_len, of_experiment.window) == (1024, 256)
    assert (of_checkpoint.name, of_checkpoint.seq_len) == ("causal + linear(factor=2)", 512)
    assert len(of_checkpoint.layers) == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name a method or an experiment, as in: ctxext audit yarn --factor 4"),
        (
            [
                "self-extend",
                "lm-infinite",
                "--group-size",
                2,
                "--neighbor-window",
                9,
                "--window",
                9,
            ],
            "name one attention method and one for frequencies at most",
        ),
        (["pose", "--max-position-embeddings", 64], "chooses positions in training"),
        (
            ["yarn", "--factor", 2, "--init", "tiny-llama", "--original", 9],
            "--init names a checkpoint; leave out --head-dim, --theta, --original and --layers",
        ),
        (["experiments/demo.py", "--layers", 9], "experiments/demo.py is an experiment"),
        (["experiments/demo.py", "yarn"], "methods that replace its own with --method"),
        (["causal", "--seq-len", 64, "--plot", "seen.png"], "name it seen.svg or seen.html"),
    ],
)
def test_bad_input_is_refused_in_one_line(argv, message, capsys):
    assert main(["audit", *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
