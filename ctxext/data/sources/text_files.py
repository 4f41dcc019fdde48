"""Text on disk, in files of every kind that `ctxext.data.documents` reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from ctxext.data import documents
from ctxext.data.corpus import Corpus
from ctxext.data.sources.base import TextOnDisk, TextSource
from ctxext.data.token_files import file_hash, is_prepared, open_prepared
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class Files(TextSource):
    """Files of text, JSON lines, JSON, CSV or tables, a directory of them, or a saved dataset.

    A plain text (.txt, .md and others) is one document; an entry, line or row of another file is
    one. Text may be compressed (.gz, .bz2, .xz, .zst). A saved dataset is what
    `datasets.Dataset.save_to_disk` wrote. A directory that `ctxext prepare` wrote is its training
    part, so that --data.path may name either.
    """

    suffixes: ClassVar[tuple[str, ...]] = documents.SUFFIXES
    path: str
    """A file or directory."""
    field: str = "text"
    """The key or column of the text."""
    parse_special: bool = False
    """Whether special tokens that are written out in the text, such as "</s>", are those tokens."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("the path of the text is empty: name a file or directory")

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        if is_prepared(root):
            return False
        try:
            return bool(documents.find_files(root).files)
        except ValueError:
            return False

    @classmethod
    def as_haystack(cls, name: str) -> Self:
        return cls(name)

    def text_on_disk(self) -> Iterator[TextOnDisk]:
        yield TextOnDisk(self.path, field=self.field)

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        root = Path(self.path).expanduser()
        if is_prepared(root):
            return open_prepared(root, "train", tokenizer)
        found = documents.find_files(root)
        texts = documents.read_texts(found, documents.Field(self.field))
        hashes = {name: file_hash(path) for name, path in found.files.items()}
        return Corpus.from_texts(texts, tokenizer, files=hashes, parse_special=self.parse_special)
