"""Documents of Parquet and Arrow files, as Hugging Face datasets keep them on disk; behind the extra `data`."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ctxext.data.corpus import Corpus
from ctxext.data.prepared import file_hash
from ctxext.data.sources import TextSource
from ctxext.files import read_json
from ctxext.tokenization.protocol import TokenizerLike

SUFFIXES = (".parquet", ".arrow")


@dataclass(frozen=True)
class HFDocuments(TextSource):
    """Every row is a document: of a .parquet or .arrow file, of a directory of such, of what `save_to_disk` wrote.

    field: the column of the text. A row with an empty text holds nothing and is left out.
    """

    path: str
    field: str = "text"

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        root = Path(self.path).expanduser()
        texts, hashes = [], {}
        for path in data_files(root):
            texts += [text for text in self._column(path) if text]
            hashes[path.name if path == root else path.relative_to(root).as_posix()] = file_hash(
                path
            )
        if not texts:
            raise ValueError(f'{root} holds no text in the column "{self.field}"')
        return Corpus.of(texts, tokenizer, files=hashes)

    def _column(self, path: Path) -> list[str]:
        with _opened(path, self.field) as table:
            column = table.column()
            column.validate(full=True)
            if column.null_count:
                row = column.is_null().to_pylist().index(True)
                raise ValueError(f'{path}, row {row}: no text in the column "{self.field}"')
            return column.to_pylist()


def groups(path: Path, field: str) -> list[tuple[int, int]]:
    """(rows, bytes of the column) of every row group of a .parquet, record batch of an .arrow file.

    Raises ValueError for a file that cannot be read or a column that is not there or holds no text.
    """
    with _opened(path, field) as table:
        return table.groups()


def values(path: Path, field: str, first: int, stop: int) -> Iterator[bytes | None]:
    """The column in those groups, row by row, as UTF-8 that may be none; None where there is nothing.

    No more than some rows of a row group, or one record batch, are in memory. Raises ValueError as `groups` does.
    """
    with _opened(path, field) as table:
        for column in table.parts(first, stop):
            column.validate()
            for row in column.cast("large_binary"):
                yield row.as_py()


def data_files(root: Path) -> list[Path]:
    """The Parquet or Arrow files of a file or directory. Raises ValueError if there is none, or more than one split."""
    if (root / "dataset_dict.json").is_file():
        splits = sorted(path.parent for path in root.glob("*/state.json"))
        raise ValueError(
            f"{root} holds several splits: choose one of {', '.join(map(str, splits))}"
        )
    if (root / "state.json").is_file():  # what else lies beside them is a cache
        try:
            paths = [
                root / entry["filename"] for entry in read_json(root / "state.json")["_data_files"]
            ]
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
def _opened(path: Path, field: str) -> Iterator["_Parquet | _Arrow"]:
    """One column of a file. Raises ValueError if that is not text, or for whatever is wrong with the file."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"to read {path}: pip install 'ctxext[data]'") from None
    try:
        with path.open("rb") as file:
            table = _Parquet(file, field) if path.suffix == ".parquet" else _Arrow(file, field)
            if table.schema.names.count(field) != 1:
                names = ", ".join(table.schema.names)
                raise ValueError(f'{path} has no column "{field}", but {names}: name one of text')
            kind, types = table.schema.field(field).type, pyarrow.types
            if not any(
                is_text(kind)
                for is_text in (types.is_string, types.is_large_string, types.is_string_view)
            ):
                raise ValueError(
                    f'{path}: the column "{field}" holds {kind}, not text; name another'
                )
            yield table
    except (
        OSError,
        MemoryError,
        UnicodeDecodeError,
        pyarrow.ArrowException,
    ) as error:  # bytes decide which
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from None


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

    def groups(self) -> list[tuple[int, int]]:
        meta = self._file.metadata
        parts = [meta.row_group(i) for i in range(meta.num_row_groups)]
        place = [
            part.column(i).path_in_schema for part in parts[:1] for i in range(part.num_columns)
        ]
        return [
            (p.num_rows, p.column(place.index(self._field)).total_uncompressed_size) for p in parts
        ]

    def parts(self, first: int, stop: int) -> Iterator[Any]:
        read = self._file.iter_batches(
            256, row_groups=list(range(first, stop)), columns=[self._field]
        )
        return (batch.column(0) for batch in read)


class _Arrow:
    """A column of an Arrow file, in the file format or in the stream format that datasets write; mapped."""

    def __init__(self, file: BinaryIO, field: str) -> None:
        import pyarrow

        whole = file.read(6) == b"ARROW1"
        mapped = pyarrow.memory_map(file.name) if file.seek(0, os.SEEK_END) else file
        self._reader = pyarrow.ipc.open_file(mapped) if whole else pyarrow.ipc.open_stream(mapped)
        self._field, self._whole, self.schema = field, whole, self._reader.schema

    def column(self) -> Any:
        return self._reader.read_all()[self._field]

    def _batches(self) -> Iterator[Any]:
        if not self._whole:
            return iter(self._reader)
        return (self._reader.get_batch(i) for i in range(self._reader.num_record_batches))

    def groups(self) -> list[tuple[int, int]]:
        return [(batch.num_rows, batch[self._field].nbytes) for batch in self._batches()]

    def parts(self, first: int, stop: int) -> Iterator[Any]:
        return (batch[self._field] for batch in itertools.islice(self._batches(), first, stop))
