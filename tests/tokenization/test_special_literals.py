"""Special tokens written out in a text are text, whatever the kind of tokenizer."""

import json

import pytest

from ctxext.assets import TINY_LLAMA
from ctxext.tokenization.tokenizer import CONFIG, JSON, Tokenizer, load_tokenizer

BYTE_LEVEL_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]


def byte_level_files() -> dict[str, bytes]:
    """A byte-level BPE tokenizer with Llama 3's special tokens, as the library writes it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=BYTE_LEVEL_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the end of the text is not the text of the end"] * 4, trainer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BYTE_LEVEL_SPECIALS[0],
        "eos_token": BYTE_LEVEL_SPECIALS[1],
    }
    return {JSON: tokenizer.to_str().encode(), CONFIG: json.dumps(settings).encode()}


def tokenizers_with_specials() -> dict[str, tuple[dict[str, bytes], list[str]]]:
    exported = load_tokenizer(TINY_LLAMA).export_files(256)
    converted = {name: exported[name] for name in (JSON, CONFIG)}
    llama = ["<s>", "</s>", "<unk>"]
    return {
        "sentencepiece": (exported, llama),
        "tokenizer.json": (converted, llama),
        "byte-level": (byte_level_files(), BYTE_LEVEL_SPECIALS),
    }


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer.json", "byte-level"])
def test_a_literal_is_text_as_in_transformers_with_split_special_tokens(kind, tmp_path):
    from transformers import AutoTokenizer

    files, specials = tokenizers_with_specials()[kind]
    ours = Tokenizer(files)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text_alone = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    special_ids = {theirs.convert_tokens_to_ids(token) for token in specials}
    for token in specials:
        for text in (token, f"the end{token}", f"{token} of {token}\n", f"a {token}{token} b"):
            ids = ours.encode(text)
            assert not special_ids & set(ids), text
            assert ids == text_alone(text, add_special_tokens=False).input_ids
            assert ours.spans(text)[0] == ids
            assert ours.decode(ids) == text
            as_tokens = ours.encode(text, special=True)
            assert special_ids & set(as_tokens)
            assert ours.special_literals(text) == [token]
            assert as_tokens == theirs(text, add_special_tokens=False).input_ids
    # Without a literal, both readings are the same.
    assert ours.encode("the end", special=True) == ours.encode("the end")
    assert ours.special_literals("the end") == []
    assert ours.special_literals("".join(specials[::-1])) == specials[::-1]
