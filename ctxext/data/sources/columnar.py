"""Documents in Parquet and Arrow files, as in Hugging Face datasets; needs the extra `data`."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

from ctxext.data.corpus import Corpus
from ctxext.data.sources.base import TextOnDisk, TextSource
from ctxext.data.token_files import file_hash
from ctxext.files import read_json
from ctxext.tokenization.protocol import TokenizerLike

SUFFIXES = (".parquet", ".arrow")
BATCH_ROWS = 256
"""Rows of a Parquet row group that are in memory at a time."""


@dataclass(frozen=True)
class HFDocuments(TextSource):
    """Rows of a .parquet or .arrow file, a directory of them, or a saved dataset, as documents.

    A saved dataset is what `datasets.Dataset.save_to_disk` wrote. Rows with an empty text are left
    out.
    """

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    path: str
    """A file or directory."""
    field: str = "text"
    """The column of the text."""

    @classmethod
    def as_haystack(cls, name: str, field: str) -> Self:
        return cls(name, field)

    def text_on_disk(self) -> Iterator[TextOnDisk]:
        yield TextOnDisk(self.path)

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        root = Path(self.path).expanduser()
        texts: list[str] = []
        hashes: dict[str, str] = {}
        for path in data_files(root):
            texts += [text for text in self._column(path) if text]
            name = path.name if path == root else path.relative_to(root).as_posix()
            hashes[name] = file_hash(path)
        if not texts:
            raise ValueError(f'{root} holds no text in the column "{self.field}"')
        return Corpus.from_texts(texts, tokenizer, files=hashes)

    def _column(self, path: Path) -> list[str]:
        with _open_column(path, self.field) as table:
            column = table.column()
            column.validate(full=True)
            if column.null_count:
                row = column.is_null().to_pylist().index(True)
                raise ValueError(f'{path}, row {row}: no text in the column "{self.field}"')
            return column.to_pylist()


def group_sizes(path: Path, field: str) -> list[tuple[int, int]]:
    """(rows, bytes of the column) of each row group of a .parquet file or batch of an .arrow file.

    Raises ValueError for a file that cannot be read, or without a column of text of that name.
    """
    with _open_column(path, field) as table:
        return table.group_sizes()


def read_values(path: Path, field: str, first: int, stop: int) -> Iterator[bytes | None]:
    """The column of groups [first, stop), row by row: bytes that should be UTF-8, None for null.

    No more than a few rows of a row group, or one record batch, are in memory. Raises ValueError
    like `group_sizes`.
    """
    with _open_column(path, field) as table:
        for column in table.batches(first, stop):
            column.validate()
            for row in column.cast("large_binary"):
                yield row.as_py()


def data_files(root: Path) -> list[Path]:
    """The Parquet and Arrow files of a file, a directory or a saved dataset.

    Raises ValueError if there is none, or for a dataset of several splits.
    """
    if (root / "dataset_dict.json").is_file():
        splits = sorted(path.parent for path in root.glob("*/state.json"))
        raise ValueError(
            f"{root} holds several splits: choose one of {', '.join(map(str, splits))}"
        )
    if (root / "state.json").is_file():  # other files next to those it names are a cache
        try:
            entries = read_json(root / "state.json")["_data_files"]
            paths = [root / entry["filename"] for entry in entries]
        except (KeyError, TypeError):
            raise ValueError(
                f"{root / 'state.json'} does not name the data files: save the dataset again"
            ) from None
    elif root.is_dir():
        paths = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES)
    else:
        paths = [root]
    if not paths:
        raise ValueError(f"{root} holds no {' or '.join(SUFFIXES)} file")
    return paths


@contextlib.contextmanager
def _open_column(path: Path, field: str) -> Iterator["_Parquet | _Arrow"]:
    """One column of a file. Raises ValueError if it is not text, or the file cannot be read."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"to read {path}: pip install 'ctxext[data]'") from None
    try:
        with path.open("rb") as file:
            table = _Parquet(file, field) if path.suffix == ".parquet" else _Arrow(file, field)
            _check_column(path, field, table.schema)
            yield table
    # The bytes of a broken file decide which of these is raised.
    except (OSError, MemoryError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from None


def _check_column(path: Path, field: str, schema: Any) -> None:
    import pyarrow

    if schema.names.count(field) != 1:
        raise ValueError(
            f'{path} has no column "{field}", but {", ".join(schema.names)}: name one of text'
        )
    kind = schema.field(field).type
    types = pyarrow.types
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise ValueError(f'{path}: the column "{field}" holds {kind}, not text; name another')


class _Parquet:
    """A column of a Parquet file."""

    def __init__(self, file: BinaryIO, field: str) -> None:
        import pyarrow.parquet

        # Read through a small buffer: a row group may be large.
        self._file = pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        self._field = field
        self.schema = self._file.schema_arrow

    def column(self) -> Any:
        return self._file.read(columns=[self._field])[self._field]

    def group_sizes(self) -> list[tuple[int, int]]:
        metadata = self._file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        if not groups:
            return []
        names = [groups[0].column(i).path_in_schema for i in range(groups[0].num_columns)]
        index = names.index(self._field)
        return [(group.num_rows, group.column(index).total_uncompressed_size) for group in groups]

    def batches(self, first: int, stop: int) -> Iterator[Any]:
        groups = list(range(first, stop))
        read = self._file.iter_batches(BATCH_ROWS, row_groups=groups, columns=[self._field])
        return (batch.column(0) for batch in read)


class _Arrow:
    """A column of a memory-mapped Arrow file, in the file or the stream format."""

    def __init__(self, file: BinaryIO, field: str) -> None:
        import pyarrow

        self._is_file_format = file.read(6) == b"ARROW1"
        is_empty = file.seek(0, os.SEEK_END) == 0  # an empty file cannot be mapped
        mapped = file if is_empty else pyarrow.memory_map(file.name)
        open_reader = pyarrow.ipc.open_file if self._is_file_format else pyarrow.ipc.open_stream
        self._reader = open_reader(mapped)
        self._field = field
        self.schema = self._reader.schema

    def column(self) -> Any:
        return self._reader.read_all()[self._field]

    def _batches(self) -> Iterator[Any]:
        if not self._is_file_format:
            return iter(self._reader)
        return (self._reader.get_batch(i) for i in range(self._reader.num_record_batches))

    def group_sizes(self) -> list[tuple[int, int]]:
        return [(batch.num_rows, batch[self._field].nbytes) for batch in self._batches()]

    def batches(self, first: int, stop: int) -> Iterator[Any]:
        return (batch[self._field] for batch in itertools.islice(self._batches(), first, stop))
