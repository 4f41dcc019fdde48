"""The content of text on disk as a hash, by which the records of an evaluation know it again."""

import functools
import hashlib
from pathlib import Path

from ctxext.data.documents import find_files
from ctxext.data.token_files import file_hash, is_prepared, read_index


def content_sha256(path: str, split: str) -> str:
    """The hash of a file or a directory of text, wherever it is; of prepared tokens, of one split.

    Names decide the order of the files and how each is read, and count for nothing else. Of
    prepared tokens, the hashes in the index are taken. Raises ValueError if the text is not there
    or cannot be read.
    """
    root = Path(path).expanduser()
    if is_prepared(root):
        content = repr(sorted(read_index(root)["splits"][split].items()))
    else:
        files = find_files(root).files.values()
        content = repr([("".join(file.suffixes[-2:]).lower(), _sha256(file)) for file in files])
    return hashlib.sha256(content.encode()).hexdigest()


def _sha256(file: Path) -> str:
    """The hash of a file, which is read once as long as it does not change."""
    state = file.stat()
    return _sha256_of_state(file, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _sha256_of_state(file: Path, size: int, modified: int) -> str:
    return file_hash(file)
