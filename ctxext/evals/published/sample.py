"""One sample of a published benchmark, and the files that samples are read from."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ctxext.tasks.building.json_entries import JSON_LINES, Entry, loads, read_bytes
from ctxext.tasks.building.scores import Metric

MAX_FILE_BYTES = 1 << 30
"""A larger file is refused before it is read."""
MAX_REFERENCE_CHARACTERS = 100_000
"""The most that a text is compared with word by word: its time grows with the product of both."""
AS_THE_ANSWER = 0
"""New tokens: as many as the right answer has, and one to end it."""


class PublishedSample(NamedTuple):
    """A question with its whole text, ready to be asked.

    prompt: what the model reads; answer: the continuation that is teacher-forced; references: what
    the metric compares with; labels: all classes, for metrics that know them; choices: wrong
    continuations; stem: the end of the prompt that is scored as the beginning of the text;
    may_cut: whether the benchmark cuts the middle out of a text that is too long.
    """

    dataset: str
    place: str
    """Unique among the samples of a file: the number of its line or entry."""
    prompt: str
    answer: str
    references: Sequence[str]
    metric: Metric
    max_new_tokens: int
    labels: Sequence[str] = ()
    choices: Sequence[str] = ()
    stop_at_newline: bool = False
    stem: str = ""
    may_cut: bool = True
    facts: Mapping[str, object] = {}
    at_length: Callable[[int], "PublishedSample"] | None = None
    """The sample at a length, where a longer text has more examples."""

    def at(self, seq_len: int) -> "PublishedSample":
        """The sample at a length, which for most is always the same."""
        return self.at_length(seq_len) if self.at_length else self


def check_references(entry: Entry, references: Sequence[str]) -> None:
    """Raise ValueError for a reference that is too long for ROUGE, which compares all words."""
    longest = max(map(len, references))
    if longest > MAX_REFERENCE_CHARACTERS:
        raise ValueError(
            f"{entry.location} has an answer of {longest:,} characters, more than the "
            f"{MAX_REFERENCE_CHARACTERS:,} that ROUGE compares: leave it out"
        )


def check_size(path: Path) -> None:
    """Raise ValueError for a file that is too large, or that is not there, before it is read."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes, more than {MAX_FILE_BYTES:,}: give a part of it"
        )


def read_entries(path: Path, limit: int | None = None) -> Iterator[tuple[str, Entry]]:
    """The number, from 1, and the value of each line of JSON lines, or entry of a JSON list.

    limit: only the first; the lines after them are not parsed. Raises ValueError that names the
    file and the line.
    """
    data = read_bytes(str(path))
    if path.suffix.lower() not in JSON_LINES:
        entries = Entry(f"{path}: $", loads(str(path), data)).items()
        yield from ((str(number), entry) for number, entry in enumerate(entries[:limit], 1))
        return
    lines = ((number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())
    for number, line in itertools.islice(lines, limit):
        value = loads(f"{path}, line {number},", line)
        yield str(number), Entry(f"{path}, line {number}: $", value)


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template with a value in place of each of its names, in one pass.

    Values are texts of strangers, so a name that occurs in a value is left as it is.
    """
    names = "|".join(re.escape(name) for name in values)
    return re.sub(names, lambda match: values[match[0]], template)
