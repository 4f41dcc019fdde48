"""OpenAI's MRCR: conversations as JSON, of which one reply is to be repeated (Parquet or JSON)."""

from collections.abc import Iterator
from pathlib import Path

from ctxext.data.documents.columnar import read_values
from ctxext.data.documents.field import Field
from ctxext.evals.published.sample import AS_THE_ANSWER, PublishedSample, read_entries
from ctxext.tasks.building.json_entries import Entry, loads

COLUMNS = ("prompt", "answer", "random_string_to_prepend")
SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


def mrcr(path: Path, limit: int | None = None) -> Iterator[PublishedSample]:
    """The samples of a file; the conversation is written out, turn by turn, and never cut.

    Raises ValueError that names the file and the row.
    """
    for number, entry in _rows(path, limit):
        messages = entry["prompt"]
        if messages.is_text:
            location = f"{messages.location}, which"
            messages = Entry(messages.location, loads(location, messages.text()))
        prefix = entry["random_string_to_prepend"].text()
        answer = entry["answer"].text()
        if not answer.startswith(prefix):
            raise ValueError(f"{entry.location}.answer does not begin with {prefix!r}")
        turns = [_turn(message) for message in messages.items()]
        yield PublishedSample(
            dataset="mrcr",
            place=number,
            prompt="\n\n".join([*turns, "Assistant:"]),
            answer=answer,
            references=[prefix, answer],
            metric="prefixed-ratio",
            max_new_tokens=AS_THE_ANSWER,
            may_cut=False,
        )


def _turn(message: Entry) -> str:
    role = message["role"].text()
    if role not in SPEAKERS:
        raise ValueError(f"{message.location}.role is {role!r}, not one of {', '.join(SPEAKERS)}")
    return f"{SPEAKERS[role]}: {message['content'].text(empty=True)}"


def _rows(path: Path, limit: int | None) -> Iterator[tuple[str, Entry]]:
    if path.suffix.lower() != ".parquet":
        yield from read_entries(path, limit)
        return
    columns = [read_values(path, Field(name), 0, None) for name in COLUMNS]
    for number, values in enumerate(zip(*columns, strict=True), 1):
        if limit is not None and number > limit:
            return
        location = f"{path}, row {number}: $"
        texts = {}
        for name, value in zip(COLUMNS, values, strict=True):
            try:
                texts[name] = (value or b"").decode()
            except UnicodeDecodeError:
                raise ValueError(f"{location}.{name} is not UTF-8") from None
        yield str(number), Entry(location, texts)
