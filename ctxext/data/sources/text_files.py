"""Text on disk: .txt and .jsonl files."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from ctxext.data.corpus import Corpus
from ctxext.data.sources.base import TextOnDisk, TextSource
from ctxext.data.token_files import is_prepared, open_prepared
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class Files(TextSource):
    """A .txt file, a .jsonl file with a document per line, or a directory of such files.

    A directory that `ctxext prepare` wrote is its training part, so that --data.path may name
    either.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".jsonl")
    path: str
    """A file or directory."""
    field: str = "text"
    """The key of the text in a JSONL line."""

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        return super().recognizes(root) and not is_prepared(root)

    @classmethod
    def as_haystack(cls, name: str, field: str) -> Self:
        return cls(name, field)

    def text_on_disk(self) -> Iterator[TextOnDisk]:
        yield TextOnDisk(self.path)

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        root = Path(self.path).expanduser()
        if is_prepared(root):
            return open_prepared(root, "train", tokenizer)
        paths = [root]
        if root.is_dir():
            paths = sorted(path for path in root.rglob("*") if path.suffix in self.suffixes)
        if not paths:
            raise ValueError(
                f"{root} holds no .txt or .jsonl file: name a directory or file that does"
            )
        texts: list[str] = []
        hashes: dict[str, str] = {}
        for path in paths:
            data = _read_bytes(path)
            text = _decode(path, data)
            if not text.strip():
                raise ValueError(f"data file {path} is empty: remove it or fill it")
            texts += self._lines(path, text) if path.suffix == ".jsonl" else [text]
            name = path.name if path is root else path.relative_to(root).as_posix()
            hashes[name] = hashlib.sha256(data).hexdigest()
        return Corpus.from_texts(texts, tokenizer, files=hashes)

    def _lines(self, path: Path, text: str) -> Iterator[str]:
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
            value = entry.get(self.field) if isinstance(entry, dict) else None
            if not isinstance(value, str) or not value:
                raise ValueError(
                    f'{path}, line {number}: no text under "{self.field}"; '
                    "set data.field to the right key"
                )
            yield value


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"data file {path} cannot be read ({error.strerror})") from error


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data file {path} is not UTF-8 text (byte {error.start}): convert it first"
        ) from error
