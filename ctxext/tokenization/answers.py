"""Conversations for training: their token ids, and which of these are the assistant's answers.

An answer is what the template writes between two texts: the conversation up to where the
assistant's turn begins, and the conversation with that turn. Both must be beginnings of the whole,
so that nothing has to be searched for. A token belongs to an answer if all of its characters do.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctxext.tokenization.chat import OWN, TEMPLATES, Chat, Messages, chat_of
from ctxext.tokenization.chat_sandbox import Rendered, render_each
from ctxext.tokenization.protocol import TokenizerLike
from ctxext.tokenization.tokenizer import Tokenizer

BATCH_CHARACTERS = 2_000_000
"""Of variables that are rendered by one process, about."""
ASSISTANT = "assistant"
ADVICE = "give another template"


class Answered(NamedTuple):
    """A conversation as token ids, or the `reason` why it cannot be used.

    is_answer: bool, one for each id: it is a token of an answer, or of the mark that ends one.
    """

    ids: list[int]
    is_answer: np.ndarray
    reason: str = ""


def training_chat(tokenizer: TokenizerLike, template: str, option: str) -> Chat:
    """The chat by which training data is written: template is OWN, a name, or a file.

    option: by which it is chosen. Raises ValueError if the checkpoint has no template of its own,
    or there is no such file.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"{option} needs the tokenizer of a checkpoint")
    names = ", ".join(TEMPLATES)
    if template == OWN and tokenizer.chat_template is None:
        raise ValueError(
            f"the checkpoint has no chat template of its own: give {option} {names}, or a file in "
            "Jinja"
        )
    if template in (OWN, *TEMPLATES):
        return chat_of(tokenizer, None if template == OWN else template)
    try:
        return chat_of(tokenizer, Path(template).expanduser())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ValueError(
            f"{option} {template} cannot be read ({reason}): give {OWN}, {names}, or a file in "
            "Jinja"
        ) from None


def encode_answers(chat: Chat, conversations: Iterable[Messages]) -> Iterator[Answered]:
    """Every conversation in order, up to its last answer; many are rendered by one process.

    Raises ValueError for a template that is stopped, as it takes too much time or memory.
    """
    batch: list[list[dict]] = []
    size = 0
    for messages in conversations:
        batch.append(_parts(chat, messages))
        size += len(json.dumps(batch[-1]))
        if size > BATCH_CHARACTERS:
            yield from _encode_batch(chat, batch)
            batch = []
            size = 0
    yield from _encode_batch(chat, batch)


def _parts(chat: Chat, messages: Messages) -> list[dict]:
    """The template's variables for every beginning of a conversation: before and after answers."""
    parts = []
    for number, message in enumerate(messages):
        if message["role"] == ASSISTANT:
            parts.append(chat.variables(messages[:number], is_asked=True))
            parts.append(chat.variables(messages[: number + 1], is_asked=False))
    return parts


def _encode_batch(chat: Chat, batch: list[list[dict]]) -> Iterator[Answered]:
    every_part = [part for parts in batch for part in parts]
    texts = render_each(chat.template, every_part, with_date=False, advice=ADVICE)
    start = 0
    for parts in batch:
        yield _encode(chat, texts[start : start + len(parts)])
        start += len(parts)


def _encode(chat: Chat, beginnings: Sequence[Rendered]) -> Answered:
    """beginnings: the texts up to each answer and with it, in turn; the last is the whole."""
    if not beginnings:
        return _unusable("it holds no answer of the assistant")
    for beginning in beginnings:
        if beginning.reason:
            return _unusable(beginning.reason)
    whole = beginnings[-1].text
    ends = [len(beginning.text) for beginning in beginnings]
    for number, beginning in enumerate(beginnings):
        if not whole.startswith(beginning.text) or ends[number] < max(ends[:number], default=0):
            return _unusable(
                f"the chat template writes the conversation up to answer {number // 2 + 1} "
                "differently once it goes on, so that the tokens of the answer cannot be told "
                f"exactly; {ADVICE}"
            )
    ids, spans = chat.tokenizer.rendered_spans(whole)
    is_answer = np.zeros(len(ids), bool)
    for start, end in zip(ends[::2], ends[1::2], strict=True):
        end = _without_what_follows_its_end(chat.tokenizer, whole, start, end)
        is_answer |= _inside(spans, start, end)
    missing = chat.missing_bos(ids)
    return Answered([*missing, *ids], np.concatenate([np.zeros(len(missing), bool), is_answer]))


def _unusable(reason: str) -> Answered:
    return Answered([], np.zeros(0, bool), reason)


def _without_what_follows_its_end(tokenizer: Tokenizer, text: str, start: int, end: int) -> int:
    """Where an answer ends: before white space that a template writes after its end marker."""
    answer = text[start:end].rstrip()
    is_marked = any(answer.endswith(marker) for marker in tokenizer.special_literals(answer))
    return start + len(answer) if is_marked else end


def _inside(spans: Sequence[tuple[int, int]], start: int, end: int) -> np.ndarray:
    """Which tokens lie inside [start, end) of the text.

    spans: the characters of each token, which may lack white space at its beginning. A token is
    taken to begin where the one before ends, so that none counts that may be of both sides.
    """
    starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
    ends_before = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    # The bytes of one character have all of it as their span.
    begins = np.where(starts < ends_before, starts, ends_before)
    return (begins >= start) & (ends <= end) & (ends > start)
