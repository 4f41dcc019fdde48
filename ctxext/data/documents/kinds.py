"""The kinds of text files, by their names."""

from pathlib import Path
from typing import Literal, NamedTuple

Form = Literal["plain", "lines", "json", "delimited", "table"]
Compression = Literal["", ".gz", ".bz2", ".xz", ".zst"]

FORMS: dict[str, Form] = {
    ".txt": "plain",
    ".text": "plain",
    ".md": "plain",
    ".markdown": "plain",
    ".rst": "plain",
    ".tex": "plain",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".jsonlines": "lines",
    ".json": "json",
    ".csv": "delimited",
    ".tsv": "delimited",
    ".parquet": "table",
    ".arrow": "table",
}
SUFFIXES = tuple(FORMS)
"""Small letters stand for capitals too."""
COMPRESSIONS: dict[str, Compression] = {
    ".gz": ".gz",
    ".bz2": ".bz2",
    ".xz": ".xz",
    ".zst": ".zst",
    ".zstd": ".zst",
}
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".7z", ".rar")


class Kind(NamedTuple):
    """How a file of text is read.

    form: a plain text is one document; JSON lines, a JSON file, delimited values and a table hold
    many. suffix: the one that decides this, in small letters.
    """

    form: Form
    suffix: str
    compression: Compression = ""

    @property
    def is_divisible(self) -> bool:
        """Whether documents can be found from any byte on."""
        return self.form == "lines" and not self.compression


def kind_of(path: Path) -> Kind | None:
    """The kind of a file by its name; None if it is not of text that can be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression: Compression = ""
    if suffixes and suffixes[-1] in COMPRESSIONS:
        compression = COMPRESSIONS[suffixes.pop()]
    form = FORMS.get(suffixes[-1]) if suffixes else None
    if form is None or (form == "table" and compression):
        return None
    return Kind(form, suffixes[-1], compression)


def without_compression(name: str) -> str:
    """The name of a file as it is called once it is decompressed."""
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix.lower()}" in COMPRESSIONS else name


def unknown_kind(path: Path) -> str:
    """Why a file cannot be read, and what to do."""
    suffix = path.suffix.lower()
    is_packed_tar = suffix in COMPRESSIONS and path.with_suffix("").suffix.lower() == ".tar"
    if suffix in ARCHIVES or is_packed_tar:
        return f"{path} is an archive: unpack it and name the directory"
    if suffix in COMPRESSIONS:
        return (
            f"the name of {path} does not say which text it holds: call it .txt{suffix} or "
            f".jsonl{suffix} if it is that (tables are compressed inside)"
        )
    return (
        f"{path} is of no kind that can be read ({', '.join(SUFFIXES)}, and those of text with "
        f"{', '.join(COMPRESSIONS)}): call it .txt if it is plain text"
    )
