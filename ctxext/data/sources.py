"""Where data comes from: frozen descriptions that fit into an experiment; `open` tokenizes them."""

import abc
import functools
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ctxext.data.corpus import Corpus, MixedRows, PackedRows, Rows, TaskRows
from ctxext.data.prepared import is_prepared, open_prepared
from ctxext.data.stdlib import stdlib_documents
from ctxext.data.upsample import UpsampledRows
from ctxext.tasks.base import TrainingTask
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class Source(abc.ABC):
    """A description of data; nothing is read before `open`."""

    type_tag: ClassVar[str] = "data/"

    @abc.abstractmethod
    def open(self, tokenizer: TokenizerLike) -> Rows:
        """Read and tokenize. Raises ValueError with the file, and the line where there is one."""


@dataclass(frozen=True)
class TextSource(Source):
    """A source of documents."""

    @abc.abstractmethod
    def open(self, tokenizer: TokenizerLike) -> Corpus: ...


@dataclass(frozen=True)
class Files(TextSource):
    """Text on disk: a .txt file is one document, every line of a .jsonl file is one, a directory holds such files.

    A directory that `ctxext prepare` wrote is its training part, so that --data.path may name either.
    field: the key of the text in a JSONL line.
    """

    path: str
    field: str = "text"

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        root = Path(self.path).expanduser()
        if is_prepared(root):
            return open_prepared(root, "train", tokenizer)
        names = (
            sorted(p for p in root.rglob("*") if p.suffix in (".txt", ".jsonl"))
            if root.is_dir()
            else [root]
        )
        if not names:
            raise ValueError(
                f"{root} holds no .txt or .jsonl file: name a directory or file that does"
            )
        texts, hashes = [], {}
        for path in names:
            try:
                data = path.read_bytes()
                text = data.decode("utf-8")
            except OSError as error:
                raise ValueError(f"data file {path} cannot be read ({error.strerror})") from error
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"data file {path} is not UTF-8 text (byte {error.start}): convert it first"
                ) from error
            texts += list(self._lines(path, text)) if path.suffix == ".jsonl" else [text]
            hashes[path.name if path is root else path.relative_to(root).as_posix()] = (
                hashlib.sha256(data).hexdigest()
            )
            if not text.strip():
                raise ValueError(f"data file {path} is empty: remove it or fill it")
        return Corpus.of(texts, tokenizer, files=hashes)

    def _lines(self, path: Path, text: str) -> Iterator[str]:
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
            value = row.get(self.field) if isinstance(row, dict) else None
            if not isinstance(value, str) or not value:
                raise ValueError(
                    f'{path}, line {number}: no text under "{self.field}"; set data.field to the right key'
                )
            yield value


@dataclass(frozen=True)
class Prepared(TextSource):
    """A directory that `ctxext prepare` wrote, mapped into memory; its tokenizer has to be the model's."""

    path: str
    split: Literal["train", "heldout"] = "train"

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        return open_prepared(Path(self.path).expanduser(), self.split, tokenizer)


@dataclass(frozen=True)
class Stdlib(TextSource):
    """The Python standard library's own source, split by file (`ctxext.data.stdlib`)."""

    split: Literal["train", "heldout"]

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        return _stdlib(self.split, tokenizer)


@functools.lru_cache(maxsize=4)  # text and the haystacks of several tasks are often the same 5 MB
def _stdlib(split: str, tokenizer: TokenizerLike) -> Corpus:
    documents = stdlib_documents(split)
    return Corpus.of(
        (d.text for d in documents), tokenizer, files={d.name: d.sha256 for d in documents}
    )


@dataclass(frozen=True)
class Synthetic(Source):
    """Rows of a retrieval task, its records hidden in text from `haystack`."""

    task: TrainingTask
    haystack: TextSource = Stdlib("train")

    def open(self, tokenizer: TokenizerLike) -> TaskRows:
        return TaskRows(self.task, tokenizer, self.haystack.open(tokenizer))


@dataclass(frozen=True)
class Short(Source):
    """Rows of `seq_len` tokens packed into longer ones: short-context data in a long fine-tune (arXiv 2410.02660)."""

    source: Source
    seq_len: int

    def __post_init__(self) -> None:
        if self.seq_len < 2:
            raise ValueError(f"a short row needs at least 2 tokens, got {self.seq_len}")

    def open(self, tokenizer: TokenizerLike) -> PackedRows:
        return PackedRows(self.source.open(tokenizer), self.seq_len)


@dataclass(frozen=True)
class Upsampled(Source):
    """Documents of at least `min_tokens` tokens are drawn `factor` times as often as shorter ones, arXiv 2402.10171.

    Each domain keeps its share of the tokens; the domains are the sources that `ctxext prepare` was given, any other
    source is one. For other shares, `Mix` directories of one domain each. Tokens are counted with BOS and EOS.
    """

    source: TextSource
    min_tokens: int
    factor: float

    def __post_init__(self) -> None:
        if self.min_tokens < 1 or not 0 < self.factor < math.inf:
            raise ValueError(
                f"min_tokens must be at least 1 and factor above 0, got {self.min_tokens}, {self.factor}"
            )

    def open(self, tokenizer: TokenizerLike) -> UpsampledRows:
        return UpsampledRows(self.source.open(tokenizer), self.min_tokens, self.factor)


@dataclass(frozen=True)
class Mix(Source):
    """Sources mixed row by row: ((weight, source), ...); weights are relative."""

    parts: tuple[tuple[float, Source], ...]

    def __post_init__(self) -> None:
        if not self.parts or not all(weight > 0 for weight, _ in self.parts):
            raise ValueError(
                "a Mix needs at least one part, and every weight must be positive: ((0.7, source), ...)"
            )

    def open(self, tokenizer: TokenizerLike) -> MixedRows:
        return MixedRows([(weight, source.open(tokenizer)) for weight, source in self.parts])
