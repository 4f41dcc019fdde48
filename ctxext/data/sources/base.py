"""The contract of data sources: frozen descriptions for experiments; `open` tokenizes.

A source is one file in this package. It declares the text on disk that it reads, and a source of
documents how `--haystack` recognizes it.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from ctxext.data.content import content_sha256
from ctxext.data.corpus import Corpus, Rows
from ctxext.tokenization.protocol import TokenizerLike


class TextOnDisk(NamedTuple):
    """A file or directory that a source reads, and its split where it is a prepared directory.

    field: the key or column of the text; None: only a prepared directory will do. chat_template: by
    what chat and instruction records are written, as in `Files`; None: it holds text.
    """

    path: str
    split: str = "train"
    field: str | None = "text"
    chat_template: str | None = None


@dataclass(frozen=True)
class Source(abc.ABC):
    """A description of data; nothing is read before `open`."""

    type_tag: ClassVar[str] = "data/"

    @abc.abstractmethod
    def open(self, tokenizer: TokenizerLike) -> Rows:
        """Read and tokenize. Raises ValueError with the file, and the line where there is one."""

    def text_on_disk(self) -> Iterator[TextOnDisk]:
        """The texts that must exist before it is opened; by default those of its fields."""
        for field in dataclasses.fields(self):
            yield from text_on_disk(getattr(self, field.name))

    def training_part(self, share: float) -> "Source":
        """The same data without the documents that are held out of training.

        share: of the documents of files of text; other sources have their own.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts = {name: _training_part(value, share) for name, value in values.items()}
        return self if parts == values else dataclasses.replace(self, **parts)

    def held_out_parts(self, share: float) -> Iterator["TextSource"]:
        """The documents of this data that `training_part` leaves out, source by source."""
        for field in dataclasses.fields(self):
            yield from _held_out_parts(getattr(self, field.name), share)


@dataclass(frozen=True)
class TextSource(Source):
    """A source of documents, which can also serve as a haystack."""

    haystack_name: ClassVar[str | None] = None
    """Its name for `--haystack`, if it is not called by a path."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """The files by which a path is recognized as its own."""

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether a path is of this kind: by its suffix, or those of the files in it."""
        return bool(suffixes_in(root) & set(cls.suffixes))

    @classmethod
    def as_haystack(cls, name: str) -> Self:
        """The source for `--haystack name`."""
        raise NotImplementedError(f"{cls.__name__} defines no as_haystack")

    def content_sha256(self) -> str:
        """The hash of the text on disk that it reads; "" if there is none.

        Raises ValueError for a text that is not there.
        """
        texts = list(self.text_on_disk())
        hashes = [content_sha256(text.path, text.split) for text in texts]
        return hashlib.sha256(repr(hashes).encode()).hexdigest() if hashes else ""

    @abc.abstractmethod
    def open(self, tokenizer: TokenizerLike) -> Corpus: ...


def suffixes_in(root: Path) -> set[str]:
    """The suffixes of a file, or of all files in a directory."""
    paths = root.rglob("*") if root.is_dir() else [root]
    return {path.suffix for path in paths if path.is_file()}


def _training_part(value: Any, share: float) -> Any:
    """`Source.training_part` of every source in a field."""
    if isinstance(value, Source):
        return value.training_part(share)
    if isinstance(value, tuple):
        return tuple(_training_part(item, share) for item in value)
    return value


def _held_out_parts(value: Any, share: float) -> Iterator[TextSource]:
    """`Source.held_out_parts` of every source in a field."""
    if isinstance(value, Source):
        yield from value.held_out_parts(share)
    elif isinstance(value, tuple):
        for item in value:
            yield from _held_out_parts(item, share)


def text_on_disk(value: Any) -> Iterator[TextOnDisk]:
    """The texts on disk of every source in a value: a source, a tuple, or another dataclass."""
    if isinstance(value, Source):
        yield from value.text_on_disk()
    elif isinstance(value, tuple):
        for item in value:
            yield from text_on_disk(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from text_on_disk(getattr(value, field.name))
