"""Whether a tokenizer.model and the tokenizer.json next to it are the same tokenizer."""

from typing import Any

from ctxext.tokenization.sentencepiece_model import SAMPLE_TEXTS
from ctxext.tokenization.tokenizer_files import JSON, MODEL

LONGEST_SAMPLE = 60_000
"""Characters of the text made of the vocabulary's own tokens."""
ADVICE = (
    f"remove the one that the model was not trained with (transformers reads {JSON} where both "
    "exist)"
)


def sentencepiece_agrees(processor: Any, library: Any, added: set[str]) -> bool:
    """True if a SentencePiece model gives the ids of a tokenizer.json to every sample text.

    False if they differ only on texts that begin with a space, which a tokenizer.json with
    `legacy: false` leaves one space short. `added`: the contents of the added tokens. Raises
    ValueError, naming both files, for any other difference in tokens or ids.
    """
    vocab_size = processor.vocab_size()
    for i in range(vocab_size):
        piece, token = processor.id_to_piece(i), library.id_to_token(i)
        if piece != token:
            raise ValueError(
                f"{MODEL} and {JSON} are different tokenizers: id {i} is {piece!r} in the first "
                f"and {token!r} in the second; {ADVICE}"
            )
    sizes = library.get_vocab(with_added_tokens=False)
    extra = [text for text, i in sizes.items() if i >= vocab_size and text not in added]
    if extra:
        raise ValueError(
            f"{MODEL} and {JSON} are different tokenizers: the first has {vocab_size} tokens, the "
            f"second {vocab_size + len(extra)}, among them {extra[0]!r}; {ADVICE}"
        )
    differing = [
        text
        for text in (*SAMPLE_TEXTS, _text_of_vocabulary(processor))
        if library.encode(text).ids != processor.encode(text)
    ]
    for text in differing:
        if not text.startswith((" ", "▁")):
            raise ValueError(
                f"{MODEL} and {JSON} are different tokenizers: they give different ids to "
                f"{text[:40]!r}; {ADVICE}"
            )
    return not differing


def _text_of_vocabulary(processor: Any) -> str:
    """A text in which the tokens of the vocabulary occur, evenly chosen if they are many."""
    pieces = [
        processor.id_to_piece(i)
        for i in range(processor.vocab_size())
        if not (processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i))
    ]
    total = sum(map(len, pieces))
    step = -(-total // LONGEST_SAMPLE) or 1
    return "".join(pieces[::step]).replace("▁", " ").lstrip(" ")
