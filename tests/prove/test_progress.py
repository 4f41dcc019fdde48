"""Which part a proof is at, for whoever shows it."""

from types import SimpleNamespace
from typing import Any

from ctxext.progress import parts_heard_by
from ctxext.prove import readers
from ctxext.prove.reader_output import NotRun


def test_the_reader_at_work_is_named(monkeypatch):
    def not_run(artifact, inputs):
        raise NotRun("it is too large")

    monkeypatch.setattr(readers, "read_numpy", lambda artifact, inputs: "read")
    monkeypatch.setattr(readers, "OTHER_READERS", {"hf": {"transformers": not_run}})
    artifact: Any = SimpleNamespace(format="hf")
    parts: list[str] = []
    with parts_heard_by(parts.append):
        outputs, reasons = readers.read_all(artifact, [])
    assert outputs == ["read"]
    assert reasons == {"transformers": "it is too large"}
    assert parts == ["reading with numpy", "", "reading with transformers", ""]
