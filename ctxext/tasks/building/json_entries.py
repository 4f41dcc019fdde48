"""Values of JSON files with their location, so that an error can say what is missing and where."""

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")


def file_sha256(path: str) -> str:
    """The hash of a file of questions, which is read once as long as it does not change.

    Raises ValueError if it cannot be read.
    """
    try:
        state = Path(path).expanduser().stat()
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise _unreadable(path, error) from None
    return _sha256_of_state(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 10)
def _sha256_of_state(path: str, size: int, modified: int) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A JSON value and its location. Each reading raises ValueError that names the location."""

    location: str
    value: Any

    def __getitem__(self, key: str) -> "Entry":
        if not self.has(key):
            raise ValueError(f'{self.location} has no "{key}"')
        return Entry(f"{self.location}.{key}", self.value[key])

    def has(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def items(self) -> "list[Entry]":
        if not isinstance(self.value, list):
            raise ValueError(f"{self.location} is not a list")
        return [Entry(f"{self.location}[{i}]", value) for i, value in enumerate(self.value)]

    def pair(self) -> "list[Entry]":
        items = self.items()
        if len(items) != 2:
            raise ValueError(f"{self.location} is not a pair")
        return items

    def text(self, *, empty: bool = False) -> str:
        if not isinstance(self.value, str) or not (empty or self.value.strip()):
            raise ValueError(f"{self.location} is not a text")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{self.location} holds half a surrogate pair") from None
        return self.value.strip()

    def whole_number(self) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise ValueError(f"{self.location} is not a whole number")
        return self.value

    def number_text(self) -> str:
        """A number as JSON writes it, or the text of one."""
        is_number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        text = json.dumps(self.value) if is_number else self.text()
        if not re.fullmatch(r"-?[0-9]{1,300}(\.[0-9]{1,300})?", text):
            raise ValueError(f"{self.location} is not a number")
        return text

    def texts(self) -> "list[str]":
        """A text, or a list of texts with at least one in it."""
        texts = [item.text() for item in self.items()] if not self.is_text else [self.text()]
        if not texts:
            raise ValueError(f"{self.location} is empty")
        return texts

    @property
    def is_text(self) -> bool:
        return isinstance(self.value, str)


def read_bytes(path: str) -> bytes:
    """The content of a file of questions. Raises ValueError if it cannot be read."""
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as a file of questions ({error})")


def loads(location: str, data: bytes | str) -> Any:
    """The value of JSON. Raises ValueError that names the location."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # also for bytes that are not text
        raise ValueError(f"{location} is not JSON ({error})") from None
