"""A column of text, or of records, in Parquet and Arrow files (extra `data`)."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ctxext.data.documents.conversations import has_record_columns, record_columns
from ctxext.data.documents.field import Field

BATCH_ROWS = 256
"""Rows of a Parquet row group that are in memory at a time."""


def group_sizes(path: Path, field: Field) -> list[tuple[int, int]]:
    """(rows, bytes of the column) of each row group of a .parquet file or batch of an .arrow file.

    Raises ValueError for a file that cannot be read, or without a column of text of that name.
    """
    with _open_column(path, field) as table:
        return table.group_sizes()


def read_values(
    path: Path, field: Field, first: int = 0, stop: int | None = None
) -> Iterator[bytes | None]:
    """The column of groups [first, stop), row by row: bytes that should be UTF-8, None for null.

    No more than a few rows of a row group, or one record batch, are in memory. Raises ValueError
    like `group_sizes`.
    """
    with _open_column(path, field) as table:
        for column in table.batches(first, stop):
            for row in _as_bytes(column):
                yield row.as_py()


def read_records(
    path: Path, field: Field, first: int = 0, stop: int | None = None
) -> Iterator[dict[str, Any]]:
    """The chat or instruction records of groups [first, stop), row by row.

    Raises ValueError like `group_sizes`.
    """
    with _open_column(path, field) as table:
        for batch in table.record_batches(first, stop):
            batch.validate(full=True)  # a wrong offset makes the library read other memory
            yield from batch.to_pylist()


def _as_bytes(column: Any) -> Any:
    """A column of text as bytes; a dictionary-encoded one without repeating its values.

    Every offset in it is checked, as a wrong one makes the library read other memory.
    """
    import pyarrow

    column.validate()
    if isinstance(column, pyarrow.DictionaryArray):
        values = _as_bytes(column.dictionary)
        return pyarrow.DictionaryArray.from_arrays(column.indices, values)  # checks the indices
    # As bytes first: a text that is not UTF-8 is an error of its row only.
    values = column.view(_binary_type(column.type))
    values.validate(full=True)
    return values.cast("large_binary")


def _binary_type(text_type: Any) -> Any:
    """The type of bytes with the layout of a type of text."""
    import pyarrow

    if pyarrow.types.is_string_view(text_type):
        return pyarrow.binary_view()
    return pyarrow.large_binary() if pyarrow.types.is_large_string(text_type) else pyarrow.binary()


@contextlib.contextmanager
def _open_column(path: Path, field: Field) -> Iterator["_Parquet | _Arrow"]:
    """One column of a file. Raises ValueError if it is not text, or the file cannot be read."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"to read {path}: pip install 'ctxext[data]'") from None
    try:
        with path.open("rb") as file:
            is_parquet = path.suffix.lower() == ".parquet"
            columns = record_columns(field.name) if field.is_chat else (field.name,)
            table = (_Parquet if is_parquet else _Arrow)(file, columns)
            _check_column(path, field, table.schema)
            yield table
    # The bytes of a broken file decide which of these is raised.
    except (OSError, MemoryError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be read as {path.suffix[1:].lower()}: {reason}") from None


def _check_column(path: Path, field: Field, schema: Any) -> None:
    if field.is_chat:
        return _check_records(path, field, schema)
    if field.name not in schema.names and has_record_columns(schema.names):
        raise ValueError(f"{path}: {field.no_text_but_a_chat('column')}")
    with_text = [column.name for column in schema if _is_text(column.type)]
    if schema.names.count(field.name) != 1:
        raise ValueError(f"{path}: {field.missing('column', schema.names, with_text)}")
    if field.name not in with_text:
        kind = str(schema.field(field.name).type)
        raise ValueError(f"{path}: {field.not_text('column', kind, with_text)}")


def _check_records(path: Path, field: Field, schema: Any) -> None:
    columns = record_columns(field.name)
    known = [name for name in columns if name in schema.names]
    if not known or len(set(known)) < sum(schema.names.count(name) for name in columns):
        raise ValueError(
            f"{path}: no single column {', '.join(columns)} of chat or instruction records, but "
            f"{', '.join(schema.names[:12])}"
        )


def _is_text(kind: Any) -> bool:
    """Whether a type of the library is of text, dictionary-encoded or not."""
    import pyarrow

    types = pyarrow.types
    values = kind.value_type if types.is_dictionary(kind) else kind
    is_of_kind = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(values) for test in is_of_kind)


class _Parquet:
    """A column of a Parquet file."""

    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        import pyarrow.parquet

        # Read through a small buffer: a row group may be large.
        self._file = pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        self.schema = self._file.schema_arrow
        self._columns = [name for name in columns if name in self.schema.names]

    def group_sizes(self) -> list[tuple[int, int]]:
        metadata = self._file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        if not groups:
            return []
        names = [groups[0].column(i).path_in_schema for i in range(groups[0].num_columns)]
        # A column of lists or structs has its name before the first dot.
        own = [i for i, name in enumerate(names) if _root(name, self._columns)]
        return [
            (group.num_rows, sum(group.column(i).total_uncompressed_size for i in own))
            for group in groups
        ]

    def batches(self, first: int, stop: int | None) -> Iterator[Any]:
        return (batch.column(0) for batch in self.record_batches(first, stop))

    def record_batches(self, first: int, stop: int | None) -> Iterator[Any]:
        groups = list(range(self._file.metadata.num_row_groups))[first:stop]
        return self._file.iter_batches(BATCH_ROWS, row_groups=groups, columns=self._columns)


def _root(name: str, columns: Sequence[str]) -> bool:
    """Whether a path of Parquet's schema is of one of the columns."""
    return any(name == column or name.startswith(f"{column}.") for column in columns)


class _Arrow:
    """A column of a memory-mapped Arrow file, in the file or the stream format."""

    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        import pyarrow

        self._is_file_format = file.read(6) == b"ARROW1"
        is_empty = file.seek(0, os.SEEK_END) == 0  # an empty file cannot be mapped
        mapped = file if is_empty else pyarrow.memory_map(file.name)
        open_reader = pyarrow.ipc.open_file if self._is_file_format else pyarrow.ipc.open_stream
        self._reader = open_reader(mapped)
        self.schema = self._reader.schema
        self._columns = [name for name in columns if name in self.schema.names]

    def _batches(self) -> Iterator[Any]:
        if not self._is_file_format:
            return iter(self._reader)
        return (self._reader.get_batch(i) for i in range(self._reader.num_record_batches))

    def group_sizes(self) -> list[tuple[int, int]]:
        sizes = []
        for batch in self._batches():
            batch.validate()  # the size is read from the offsets
            nbytes = sum(max(0, batch[name].nbytes) for name in self._columns)
            sizes.append((batch.num_rows, nbytes))
        return sizes

    def batches(self, first: int, stop: int | None) -> Iterator[Any]:
        return (batch.column(0) for batch in self.record_batches(first, stop))

    def record_batches(self, first: int, stop: int | None) -> Iterator[Any]:
        batches = itertools.islice(self._batches(), first, stop)
        return (batch.select(self._columns) for batch in batches)
