"""Chat and instruction records as conversations: messages of the form {"role", "content"}.

A conversation passes through the readers of text as its own JSON, which is the text of the
document: its hash decides whether it is held out of training, as that of any other.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

KEYS = ("messages", "conversations")
"""Where records have their turns: as chats of OpenAI's form, and of ShareGPT's."""
INSTRUCTION, INPUT, OUTPUT = "instruction", "input", "output"
"""The keys of Alpaca's records; the input may be missing or empty."""
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""The roles of messages by their names in records."""
MAX_SHOWN = 40


def has_record_columns(names: Sequence[str]) -> bool:
    """Whether columns are those of chat or instruction records."""
    return not {*KEYS}.isdisjoint(names) or {INSTRUCTION, OUTPUT} <= {*names}


class Unusable(Exception):
    """Why a record is no conversation, in words."""


def record_columns(field: str) -> tuple[str, ...]:
    """The columns of a table that records may have; field: as in `conversation_text`."""
    return (*KEYS, INSTRUCTION, INPUT, OUTPUT) if field == "text" else (field,)


def is_record(entry: Mapping[str, Any]) -> bool:
    """Whether an object looks like a chat or an instruction record."""
    has_turns = any(isinstance(entry.get(key), list) for key in KEYS)
    return has_turns or all(isinstance(entry.get(key), str) for key in (INSTRUCTION, OUTPUT))


def conversation_text(entry: Any, field: str = "text") -> str:
    """The conversation of a record as JSON, the same for the same messages; `messages_of` reads it.

    field: the key of the turns; "text" for the known ones. Raises Unusable.
    """
    if not isinstance(entry, dict):
        raise Unusable("neither a chat nor an instruction record, which are JSON objects")
    keys = KEYS if field == "text" else (field,)
    turns = next((entry[key] for key in keys if entry.get(key) is not None), None)
    if turns is not None:
        messages = _of_turns(turns)
    elif field == "text" and (entry.get(INSTRUCTION) is not None or OUTPUT in entry):
        messages = _of_instruction(entry)
    else:
        expected = f"{' or '.join(keys)}" + (
            f", and no {INSTRUCTION} with an {OUTPUT}" if field == "text" else ""
        )
        present = ", ".join(f'"{key[:MAX_SHOWN]}"' for key in list(entry)[:12])
        raise Unusable(f"no {expected} in a record with {present or 'nothing'}")
    text = json.dumps(messages, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable("it holds half a surrogate pair, which is not a character") from None
    return text


def messages_of(text: str) -> list[dict[str, str]]:
    """The messages that `conversation_text` wrote."""
    return json.loads(text)


def _of_turns(turns: Any) -> list[dict[str, str]]:
    if not isinstance(turns, list):
        raise Unusable("its turns are no list")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise Unusable(f"turn {number} is no object")
        name, content = (
            (turn["from"], turn.get("value"))
            if "from" in turn
            else (turn.get("role"), turn.get("content"))
        )
        if not isinstance(name, str) or name not in ROLES:
            raise Unusable(
                f"turn {number} is of the role {str(name)[:MAX_SHOWN]!r}: only {', '.join(ROLES)} "
                "are read"
            )
        if not isinstance(content, str):
            raise Unusable(f"turn {number} has no text")
        messages.append({"role": ROLES[name], "content": content})
    return _with_an_answer(messages)


def _of_instruction(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    """Question and answer; some prompt forms set the input apart from the instruction."""
    for key in (INSTRUCTION, OUTPUT):
        if not isinstance(entry.get(key), str):
            raise Unusable(f'"{key}" is missing, or no text')
    given = entry.get(INPUT) or ""
    if not isinstance(given, str):
        raise Unusable(f'"{INPUT}" is no text')
    instruction = entry[INSTRUCTION]
    content = f"{instruction}\n\n{given}" if given else instruction
    question = {"role": "user", "content": content, "instruction": instruction, "input": given}
    return _with_an_answer([question, {"role": "assistant", "content": entry[OUTPUT]}])


def _with_an_answer(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    spoken = [message["role"] for message in messages if message["role"] != "system"]
    if "assistant" not in spoken:
        raise Unusable("it holds no answer of the assistant")
    if spoken[0] == "assistant":
        raise Unusable("it begins with an answer: the first turn must be the user's")
    return messages
