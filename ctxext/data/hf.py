"""Documents of Parquet and Arrow files, as Hugging Face datasets keep them on disk; behind the extra `data`."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxext.data.corpus import Corpus, Tokens
from ctxext.data.sources import TextSource
from ctxext.files import read_json

SUFFIXES = (".parquet", ".arrow")


@dataclass(frozen=True)
class HFDocuments(TextSource):
    """Every row is a document: of a .parquet or .arrow file, of a directory of such, of what `save_to_disk` wrote.

    field: the column of the text. A row with an empty text holds nothing and is left out.
    """

    path: str
    field: str = "text"

    def open(self, tokenizer: Tokens) -> Corpus:
        root = Path(self.path).expanduser()
        texts, hashes = [], {}
        for path in data_files(root):
            texts += [text for text in self._column(path) if text]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            hashes[path.name if path == root else path.relative_to(root).as_posix()] = digest
        if not texts:
            raise ValueError(f'{root} holds no text in the column "{self.field}"')
        return Corpus(texts, tokenizer, files=hashes)

    def _column(self, path: Path) -> list[str]:
        try:
            import pyarrow
        except ImportError:
            raise ValueError(f"to read {path}: pip install 'ctxext[data]'") from None
        try:
            column = _read(path, self.field)
            column.validate(full=True)
        except (OSError, MemoryError, UnicodeDecodeError, pyarrow.ArrowException) as error:  # bytes decide which
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from None
        except KeyError as error:
            raise ValueError(f'{path} has no column "{self.field}", but {error.args[0]}: name one of text') from None
        types = pyarrow.types
        if not any(is_text(column.type) for is_text in (types.is_string, types.is_large_string, types.is_string_view)):
            raise ValueError(f'{path}: the column "{self.field}" holds {column.type}, not text; name another')
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise ValueError(f'{path}, row {row}: no text in the column "{self.field}"')
        return column.to_pylist()


def data_files(root: Path) -> list[Path]:
    """The Parquet or Arrow files of a file or directory. Raises ValueError if there is none, or more than one split."""
    if (root / "dataset_dict.json").is_file():
        splits = sorted(path.parent for path in root.glob("*/state.json"))
        raise ValueError(f"{root} holds several splits: choose one of {', '.join(map(str, splits))}")
    if (root / "state.json").is_file():  # what else lies beside them is a cache
        try:
            paths = [root / entry["filename"] for entry in read_json(root / "state.json")["_data_files"]]
        except (KeyError, TypeError):
            raise ValueError(f"{root / 'state.json'} does not name the data files: save the dataset again") from None
    elif root.is_dir():
        paths = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES)
    else:
        paths = [root]
    if not paths:
        raise ValueError(f"{root} holds no {' or '.join(SUFFIXES)} file")
    return paths


def _read(path: Path, field: str) -> Any:
    """One column of a file; KeyError with the columns that there are."""
    import pyarrow.parquet

    with path.open("rb") as file:
        if path.suffix == ".parquet":
            parquet = pyarrow.parquet.ParquetFile(file)
            names, read = parquet.schema_arrow.names, lambda: parquet.read(columns=[field])
        else:
            whole = file.read(6) == b"ARROW1"  # the file format; datasets write the stream format
            file.seek(0)
            reader = pyarrow.ipc.open_file(file) if whole else pyarrow.ipc.open_stream(file)
            names, read = reader.schema.names, reader.read_all
        if names.count(field) != 1:
            raise KeyError(", ".join(names))
        return read()[field]
