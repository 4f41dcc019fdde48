"""A data source is one file: what a new one gets without any other file being touched."""

import sys
from pathlib import Path

import pytest

from ctxext import requirements, serialization
from ctxext.data import Files, Mix, Prepared, Stdlib, haystack, sources, text_on_disk
from ctxext.data.sources import TextOnDisk, recognize, text_sources
from ctxext.evals import RollingPerplexity
from support.tiny_train import ByteTokenizer, tiny_experiment

FILE = '''
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ctxext.data.corpus import Corpus
from ctxext.data.sources.base import TextOnDisk, TextSource


@dataclass(frozen=True)
class Wiki(TextSource):
    """A file of wiki text."""

    suffixes: ClassVar[tuple[str, ...]] = (".wiki",)
    path: str

    @classmethod
    def as_haystack(cls, name):
        return cls(name)

    def text_on_disk(self):
        yield TextOnDisk(self.path)

    def open(self, tokenizer):
        return Corpus.from_texts([Path(self.path).read_text()], tokenizer)
'''


@pytest.fixture
def new_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "wiki.py").write_text(FILE)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "package")])
    text_sources.cache_clear()
    serialization.tagged_classes.cache_clear()
    yield
    sys.modules.pop("ctxext.data.sources.wiki", None)
    vars(sources).pop("wiki", None)
    text_sources.cache_clear()
    serialization.tagged_classes.cache_clear()


def test_a_new_file_is_a_source_everywhere(new_source, tmp_path: Path) -> None:
    path = tmp_path / "notes.wiki"
    path.write_text("# Notes")
    source = haystack(str(path))
    assert type(source).__name__ == "Wiki"
    assert source.open(ByteTokenizer()).provenance()["documents"] == 1
    assert serialization.from_json(serialization.to_json(source)) == source
    path.unlink()
    (missing,) = requirements.missing(tiny_experiment(source))
    assert f"data reads {path}, which" in missing


def test_sources_declare_the_text_that_they_read() -> None:
    mix = Mix(((1, Files("a")), (2, Mix(((1, Files("b", "body")), (1, Prepared("c", "heldout")))))))
    expected = [
        TextOnDisk("a"),
        TextOnDisk("b", field="body"),
        TextOnDisk("c", "heldout", None),
    ]
    assert list(text_on_disk(mix)) == expected
    assert list(text_on_disk(Stdlib("train"))) == []
    evaluation = RollingPerplexity((128,), "truncate", source=Files("d"))
    assert list(text_on_disk((mix, evaluation))) == [*expected, TextOnDisk("d")]


def test_a_prepared_directory_is_recognized_although_it_lists_rejects(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "rejects.jsonl").write_text("")
    assert recognize(tmp_path) is Prepared
