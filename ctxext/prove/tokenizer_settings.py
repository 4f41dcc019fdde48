"""The settings of tokenizer_config.json, compared with those that an export of the model has.

Most of them are obeyed by some programs only, or act on what no sample text has: on padding, on the
text of ids, on texts that are cut. So each is compared by itself.
"""

from collections.abc import Iterator
from typing import Any

from ctxext.tokenization.added_tokens import SPECIAL_TOKEN, added_tokens, decoder_tokens
from ctxext.tokenization.special_tokens import (
    LLAMA_TOKENS,
    has_llama_defaults,
    read_settings,
    special_contents,
    token_text,
)
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, Tokenizer
from ctxext.tokenization.tokenizer_files import json_object

Settings = dict[str, Any]

DEFAULTS: Settings = {
    "add_bos_token": False,
    "add_eos_token": False,
    "do_lower_case": False,
    "split_special_tokens": False,
    "truncation_side": "right",
}
"""The value that every reader takes where the key is missing."""
COMPARED_WHERE_STATED = (
    "clean_up_tokenization_spaces",
    "padding_side",
    "spaces_between_special_tokens",
)
"""Without the key, readers and their versions take different values: only a model that states one
can lose it."""
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
COMPARED_OTHERWISE = (
    "add_prefix_space",
    "added_tokens_decoder",
    "chat_template",
    "legacy",
    "model_max_length",
)
WITHOUT_EFFECT = (
    "_name_or_path",
    "auto_map",
    "backend",
    "device_map",
    "from_slow",
    "is_local",
    "local_files_only",
    "mask_token",
    "max_length",
    "model_input_names",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "processor_class",
    "sp_model_kwargs",
    "special_tokens_map_file",
    "stride",
    "tokenizer_class",
    "tokenizer_file",
    "transformers_version",
    "truncation_strategy",
    "use_default_system_prompt",
    "use_fast",
)
"""Keys about the files themselves, and those whose whole effect is in the ids that readers give."""
KNOWN = {
    *DEFAULTS,
    *COMPARED_WHERE_STATED,
    *NAMED_TOKENS,
    *LISTS,
    *COMPARED_OTHERWISE,
    *WITHOUT_EFFECT,
}


def compare_tokenizer_settings(
    stored: Tokenizer, expected: Tokenizer, *, window: int, original: int
) -> tuple[list[str], list[str]]:
    """(settings that are not the model's, in words; keys that are not known here).

    `expected`: the tokenizer of the model. `window` and `original`: the extended window L' and that
    of pre-training, in tokens. Raises ValueError for files that cannot be read.
    """
    actual = json_object(stored.files, CONFIG)
    exported = json_object(expected.export_files(window), CONFIG)
    different = [
        *_values(actual, exported, stored),
        *_named_tokens(stored, expected, exported),
        *_longest(actual, json_object(expected.files, CONFIG), window, original),
        *_made_special(actual, stored, expected),
        *_flags(stored, expected),
    ]
    unknown = [
        f"{key} in {CONFIG}"
        for key in sorted(actual.keys() - KNOWN)
        if actual[key] is not None and actual[key] != exported.get(key)
    ]
    return different, unknown


def _values(actual: Settings, exported: Settings, stored: Tokenizer) -> Iterator[str]:
    """Yield the settings with a value of their own."""
    # A space before a text is a matter of SentencePiece's rules.
    defaults = DEFAULTS | {"add_prefix_space": not _is_byte_level(stored)}
    if MODEL in stored.files:  # no reader has a use for it without the file
        defaults["legacy"] = True
    for key, default in defaults.items():
        value = _given(actual, key, default)
        wanted = _given(exported, key, default)
        if key not in actual and _follows_from_other_files(key, wanted, stored):
            continue
        if value != wanted:
            yield _difference(key, value, wanted)
    for key in COMPARED_WHERE_STATED:
        if exported.get(key) is not None and actual.get(key) != exported[key]:
            yield _difference(key, actual.get(key), exported[key])


def _given(settings: Settings, key: str, default: Any) -> Any:
    value = settings.get(key)
    return default if value is None else value


def _follows_from_other_files(key: str, wanted: Any, stored: Tokenizer) -> bool:
    """Whether the class of the tokenizer, or its tokenizer.json, says what a missing key would."""
    if key == "add_bos_token":
        return stored.adds_bos == wanted
    return key == "add_eos_token" and stored.adds_eos == wanted


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    return "ByteLevel" in str(json_object(tokenizer.files, JSON).get("pre_tokenizer"))


def _named_tokens(stored: Tokenizer, expected: Tokenizer, exported: Settings) -> Iterator[str]:
    """Yield tokens without a name in the files, which are found here by tokenizer.json alone.

    Chat templates use the name. Tokens that are not found at all, or are others, are compared with
    the special tokens of the model.
    """
    names = _names(stored)
    names_of_model = _names(expected)
    for key in NAMED_TOKENS:
        accepted = (token_text(exported.get(key)), names_of_model.get(key))
        found = stored.special_tokens.get(key)
        is_model_s = found is not None and found == expected.special_tokens.get(key)
        if is_model_s and names.get(key) not in accepted:
            yield _difference(key, names.get(key), accepted[0])


def _names(tokenizer: Tokenizer) -> dict[str, str | None]:
    """The special tokens that the settings name, or the class of the tokenizer."""
    settings = read_settings(tokenizer.files)
    defaults = LLAMA_TOKENS if has_llama_defaults(settings) else {}
    return {key: token_text(settings.get(key, defaults.get(key))) for key in NAMED_TOKENS}


def _longest(actual: Settings, of_model: Settings, window: int, original: int) -> Iterator[str]:
    """Yield a length that cuts the window short, unless the model's own is less than L."""
    longest = actual.get("model_max_length")
    limit = of_model.get("model_max_length")
    wanted: float = window
    if isinstance(limit, int | float) and limit < original:
        wanted = limit
    if isinstance(longest, int | float) and longest < wanted:
        yield (
            f"model_max_length in {CONFIG} is {longest}, less than {wanted}: transformers cuts "
            "texts there where it is told to truncate them"
        )


def _made_special(actual: Settings, stored: Tokenizer, expected: Tokenizer) -> Iterator[str]:
    """Yield tokens that a list makes special, and the model does not."""
    special = {
        *(token["content"] for token in added_tokens(stored.files) if token.get("special")),
        *(token["content"] for token in added_tokens(expected.files) if token.get("special")),
        *special_contents(json_object(expected.files, CONFIG)),
    }
    for key in LISTS:
        others = sorted(special_contents({key: actual.get(key)}) - special)
        if others:
            yield f"{key} in {CONFIG} makes special tokens of {', '.join(map(repr, others[:3]))}"


def _flags(stored: Tokenizer, expected: Tokenizer) -> Iterator[str]:
    """Yield tokens with other flags in added_tokens_decoder than in tokenizer.json.

    Readers obey one or the other. Where the model has both, its own are right too.
    """
    listed = json_object(stored.files, JSON).get("added_tokens") or []
    in_json = {token["content"]: _flags_of(token) for token in listed}
    in_model = {token["content"]: _flags_of(token) for token in decoder_tokens(expected.files)}
    for token in decoder_tokens(stored.files):
        content = token["content"]
        accepted = (in_json.get(content), in_model.get(content))
        if content in in_json and _flags_of(token) not in accepted:
            yield f"added_tokens_decoder in {CONFIG} gives {content!r} other flags than {JSON} does"


def _flags_of(token: Settings) -> dict[str, bool]:
    return {name: bool(token.get(name)) for name in SPECIAL_TOKEN}


def _difference(key: str, actual: Any, expected: Any) -> str:
    return f"{key} in {CONFIG} is {actual!r}, not {expected!r}"
