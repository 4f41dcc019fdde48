"""The tokenizer.json that all files of a checkpoint amount to, and the library that runs it."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ctxext.tokenization import bounds, trial
from ctxext.tokenization.added_tokens import added_tokens
from ctxext.tokenization.tokenizer_files import ADDED, CONFIG, JSON

UNKNOWN_CHARACTER = "\U0010ffff"
"""A character that is in no vocabulary: it becomes an unknown token, or bytes."""

T = TypeVar("T")


def with_value_errors(action: Callable[[], T]) -> T:
    """The result of `action`, with any failure of the tokenizers library as a ValueError.

    The library raises bare Exception, and panics raise something that is not even an Exception.
    """
    try:
        return action()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ValueError(f"{JSON} cannot be read: {error}") from None


def complete(data: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """A tokenizer.json with the added tokens of all files, without truncation, padding and dropout.

    Those three are settings of whoever saved the file. A text has all of its tokens, no others, and
    always the same.
    Raises ValueError for added tokens that contradict each other or the vocabulary.
    """
    tokens = added_tokens(files)
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    own_contents = {token["content"] for token in data.get("added_tokens", [])}
    if isinstance(vocabulary, dict):
        contents = {token_id: text for text, token_id in vocabulary.items()}
        for token in tokens:
            token_id, text = token["id"], token["content"]
            if text in own_contents:
                continue
            if vocabulary.get(text, token_id) != token_id or contents.get(token_id, text) != text:
                raise ValueError(
                    f"{CONFIG} or {ADDED} adds {text!r} as id {token_id}, but in the vocabulary "
                    f"{text!r} is {vocabulary.get(text)} and {token_id} is "
                    f"{contents.get(token_id)!r}; remove the wrong one"
                )
    result = dict(data)
    # Those of `data` stay: the special tokens of a tokenizer.model, which the files need not name.
    listed = {token["content"]: token for token in data.get("added_tokens", [])}
    known = {token["content"]: token for token in tokens} | listed
    if known.keys() != listed.keys():
        result["added_tokens"] = sorted(known.values(), key=lambda token: token["id"])
    for name in ("truncation", "padding"):
        if result.get(name) is not None:
            result[name] = None
    if isinstance(model, dict) and model.get("dropout") is not None:
        result["model"] = {**model, "dropout": None}
    return result


class Library:
    """A tokenizer of the tokenizers library, which is given no text that its rules make too long.

    Raises ValueError in that case, and for whatever the library raises.
    """

    def __init__(self, tokenizer: Any, data: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._growth = bounds.growth(data)
        self._decoded_growth = bounds.decoded_growth(data)
        self.id_to_token = tokenizer.id_to_token
        self.token_to_id = tokenizer.token_to_id
        self.get_vocab = tokenizer.get_vocab
        self.to_str = tokenizer.to_str

    def encode(self, text: str, *, add_special_tokens: bool = False) -> Any:
        """The library's encoding of a text: `ids`, and the `offsets` of each in the text."""
        self._growth.check(len(text))
        return with_value_errors(
            lambda: self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        )

    def decode(self, ids: Sequence[int]) -> str:
        self._decoded_growth.check(len(ids) * bounds.LONGEST_TOKEN)
        return with_value_errors(lambda: self._tokenizer.decode(ids))


def open_library(data: dict[str, Any], *, literal_special: bool = False) -> Library:
    """The tokenizer of the tokenizers library.

    `literal_special`: a special token that is written out in a text is text, not that token. Raises
    ValueError for a file that the library cannot use, that asks for more than any model needs, or
    to whose added tokens the library gives other ids.
    """
    bounds.check_bounds(data)
    if bounds.unknown_expressions(data):
        bounds.growth(data).check(max(map(len, trial.TEXTS)))
        trial.check_expressions(bounds.structure(data))
    import tokenizers

    def open_tokenizer() -> Any:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
        tokenizer.encode_special_tokens = literal_special
        return tokenizer

    tokenizer = Library(with_value_errors(open_tokenizer), data)
    # A part that refers to a missing token fails only when it is used.
    tokenizer.decode(tokenizer.encode(f"a{UNKNOWN_CHARACTER}", add_special_tokens=True).ids)
    for token in data.get("added_tokens", []):
        actual = tokenizer.token_to_id(token["content"])
        if actual != token["id"]:
            raise ValueError(
                f"{token['content']!r} has id {token['id']} in the files, but the tokenizers "
                f"library makes it {actual}, because the ids before it are not all taken; add the "
                f"missing tokens to {JSON}, or use the tokenizer the model was trained with"
            )
    return tokenizer


def around(tokenizer: Library) -> tuple[list[int], list[int]]:
    """The ids that the post_processor puts before a text, and those that it puts after it."""
    bare, whole = (
        tokenizer.encode("a", add_special_tokens=is_whole).ids for is_whole in (False, True)
    )
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise ValueError(f"the post_processor of {JSON} changes the tokens of a text; replace it")
