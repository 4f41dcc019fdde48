"""`ctxext generate`: a prompt continued or a chat answered, text as it becomes certain, where it stopped, how fast."""

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxext import loading
from ctxext.files import read_json
from ctxext.model.lm import LM
from ctxext.tokenization.chat import chat_of
from ctxext.tokenization.tokenizer import Tokenizer

BROKEN = (
    "\N{REPLACEMENT CHARACTER}"  # what decoders say for bytes that are no character, or not yet one
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was written; `ids` end before the stop id."""

    text: str
    ids: list[int]
    stop: str  # "eos" or "length"
    prompt_tokens: int
    seconds: float
    tokens_per_second: (
        float | None
    )  # of the tokens behind the first, without compiling; None if there are none

    @property
    def data(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """A model that writes to standard output, or to nowhere if `quiet`."""

    lm: LM
    stops: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    _: dataclasses.KW_ONLY
    quiet: bool = False

    def go_on(self, prompt: str) -> Answer:
        """Continue `prompt` up to a stop id. Raises ValueError as `LM.generate` does."""
        return self._write(self.lm.tokenizer.encode(prompt, bos=True))

    def converse(
        self, asked: Iterable[str], system: str | None = None, template: Path | None = None
    ) -> Answer:
        """Answer each of `asked` knowing all before; the last answer.

        Raises ValueError for no or a wrong chat template, and if nothing is asked.
        """
        chat, found = chat_of(self.lm.tokenizer, template), None
        if chat.note:
            print(f"ctxext: {chat.note}", file=sys.stderr)
        messages = [] if system is None else [{"role": "system", "content": system}]
        for text in asked:
            messages.append({"role": "user", "content": text})
            found = self._write(chat.encode(messages), trim=True)
            messages.append({"role": "assistant", "content": found.text})
        if found is None:
            raise ValueError("nothing was asked")
        return found

    def _write(self, prompt: Sequence[int], *, trim: bool = False) -> Answer:
        """trim: without white space before the first word."""
        ids, times, pieces, start = [], [], [], time.perf_counter()

        def chunks() -> Iterator[list[int]]:
            for chunk in self.lm.stream(
                prompt,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=self.seed,
                eos_token_id=self.stops,
            ):
                times.append(time.perf_counter())
                ids.extend(chunk)
                yield [i for i in chunk if i not in self.stops]  # none but the last

        for piece in certain(self.lm.tokenizer, prompt, chunks()):
            if piece := piece if pieces or not trim else piece.lstrip():
                pieces.append(piece)
                self._print(piece)
        self._print("\n")
        ended = ids[-1] in self.stops
        return Answer(
            "".join(pieces),
            ids[:-1] if ended else ids,
            "eos" if ended else "length",
            len(prompt),
            time.perf_counter() - start,
            (len(ids) - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
        )

    def _print(self, text: str) -> None:
        if not self.quiet:
            print(text, end="", flush=True)


def certain(
    tokenizer: Tokenizer, prompt: Sequence[int], chunks: Iterable[Sequence[int]]
) -> Iterator[str]:
    """The text of `chunks` of ids behind `prompt`, in pieces that no later id changes: never a part of a character.

    Joined, it is what the decoded whole has behind the decoded prompt, leading space included, without a character that
    the last id leaves unfinished.
    """
    context, new = list(prompt), []
    said = tokenizer.decode(context)
    for chunk in chunks:
        new = [*new, *chunk]
        text = tokenizer.decode(context + new)
        whole = text.rstrip(BROKEN)
        if len(whole) > len(said):
            yield whole[len(said) :]
            said = whole
        if whole == text and (alone := tokenizer.decode(new)):
            context, new, said = new, [], alone  # what came before changes nothing any more


def stop_ids(lm: LM, source: str | Path) -> list[int]:
    """The ids that end an answer: those of config.json, of generation_config.json and the tokenizer's own."""
    path = loading.locate(source)
    file = path / "generation_config.json"
    named = read_json(file).get("eos_token_id") if file.is_file() else None
    found = [lm.config.eos_token_id, named, lm.tokenizer.eos_id]
    ids = {
        i
        for entry in found
        if entry is not None
        for i in ([entry] if isinstance(entry, int) else entry)
    }
    return sorted(ids)


def read_prompt(text: str | None, file: str | None) -> str:
    """The text itself, or what a file or "-", standard input, holds. Raises ValueError if neither is given."""
    if text is not None:
        return text
    if file is None:
        raise ValueError(
            "give --prompt TEXT or --prompt-file FILE (- for what is piped in); --chat in a terminal asks"
        )
    try:
        return (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from None


def typed() -> Iterator[str]:
    """Lines typed in a terminal, up to the end of input (Ctrl-D)."""
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if line.strip():
            yield line
