"""Which files of a directory are the export; what else is there is not published."""

import fnmatch
import stat
from pathlib import Path

from ctxext.interop import hf, meta, peft_base, peft_reader, peft_writer
from ctxext.interop.generation_config import GENERATION_CONFIG
from ctxext.interop.safetensors_files import INDEX_FILE, SINGLE_FILE
from ctxext.prove.file_digests import PROOF
from ctxext.tokenization import tokenizer_files

CARD = "README.md"
TERMS = ("LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt")
"""Terms of the base, which some licenses want with every copy; the user adds them."""
WRITTEN = {
    "hf": (
        hf.CONFIG,
        GENERATION_CONFIG,
        *tokenizer_files.FILES,
        SINGLE_FILE,
        "model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors",
        INDEX_FILE,
    ),
    "meta": (meta.PARAMS, meta.ROPE, tokenizer_files.MODEL, "consolidated.[0-9][0-9].pth"),
    "peft": (peft_reader.CONFIG, peft_writer.TENSORS, hf.CONFIG, peft_base.BASE),
}
"""The names of the files that an export writes, by format; of GGUF it is the one file."""


def files_of(directory: Path, format: str) -> tuple[dict[str, Path], list[str]]:
    """(the files of an export by name, hidden ones, which are left out).

    Raises ValueError, naming them, for links, for anything but plain files, and for files that an
    export does not write.
    """
    patterns = (*WRITTEN[format], CARD, PROOF, *TERMS)
    files: dict[str, Path] = {}
    hidden: list[str] = []
    others: list[str] = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            hidden.append(path.name)
        elif path.is_dir() and not path.is_symlink():
            others.append(f"{path.name}/")
        elif any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
            files[path.name] = plain_file(path)
        else:
            others.append(path.name)
    if others:
        raise ValueError(
            f"{directory} holds {', '.join(others)}, which an export in the {format} format does "
            "not write; move that to another place, as only the export is published"
        )
    return files, hidden


def plain_file(path: Path) -> Path:
    """The path. Raises ValueError for a link, which an export has none of, and for a device."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} does not exist") from None
    if stat.S_ISLNK(mode):
        raise ValueError(
            f"{path} is a link to {path.readlink()}, and what is published is no other place's "
            "file; put a copy of the right file there"
        )
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a plain file; put one in its place")
    return path
