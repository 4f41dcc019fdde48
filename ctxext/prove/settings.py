"""What the files of an export say about the model next to its weights, compared with the model.

Numbers that the readers compute may agree although a setting differs: an epsilon too small to be
seen, the window, the token that ends a text, a merge that no sample text needs. Each is compared by
itself here.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from ctxext import loading
from ctxext.files import read_json
from ctxext.interop import hf
from ctxext.interop.families import family_of
from ctxext.interop.generation_config import GENERATION_CONFIG
from ctxext.interop.gguf_names import architecture_of
from ctxext.interop.hf_weights import StoredModel
from ctxext.interop.meta import ROPE
from ctxext.interop.ropespec import rope_spec
from ctxext.methods.linear import Linear
from ctxext.methods.ntk import DynamicNTK
from ctxext.methods.yarn import Yarn
from ctxext.model.config import LlamaConfig, merge_ids
from ctxext.model.lm import LM
from ctxext.model.parts import Parts
from ctxext.prove.artifact import Artifact
from ctxext.prove.gguf_keys import compare_keys, keys_not_read
from ctxext.prove.reference.gguf_file import GGUFFile
from ctxext.prove.tokenizer_settings import compare_tokenizer_settings
from ctxext.tokenization.tokenizer import JSON, MODEL, Tokenizer
from ctxext.tokenization.tokenizer_files import json_object
from ctxext.tokenization.tokenizer_json import open_library

BY_FREQUENCIES = ("rope_theta", "max_position_embeddings")
"""Fields that a format may state in another way with the same frequencies, which are compared."""
OF_TRAINING = ("initializer_range", "attention_dropout")
NOT_IN_META = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
"""Fields that Meta's format has no keys for."""
OF_OTHER_FAMILIES = (
    "attention_multiplier",
    "attn_logit_softcapping",
    "auto_map",
    "embedding_multiplier",
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rope_interleaved",
)
"""Keys of config.json that no reader of a proof obeys in these families; others may."""
EXTENDED_BY_FACTOR = (Linear, Yarn, DynamicNTK)
"""Scalings with which published files leave `max_position_embeddings` at L, and mean factor x L.

`rope_readers` names the programs that take it as it is."""
OF_GENERATION: dict[str, Any] = {
    "do_sample": False,
    "max_length": 20,
    "max_new_tokens": None,
    "min_p": None,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
}
"""Settings that transformers takes from config.json where there is no generation_config.json.

The values are those that it takes without the key.
"""
AROUND = ("truncation", "padding")
"""Settings of whoever saved a tokenizer.json."""


@dataclasses.dataclass(frozen=True)
class SettingsComparison:
    """Settings that are not the model's, in words, and keys that are not known here.

    `noted`: settings that are others than expected, but may have no effect. `window`: the extended
    window L' that the files should declare, in tokens; 0 if none is known.
    """

    different: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    window: int = 0
    noted: list[str] = dataclasses.field(default_factory=list)


def compare_settings(artifact: Artifact, model: LM, lengths: Sequence[int]) -> SettingsComparison:
    """Compare an export of any format with the model that it should be.

    `lengths`: the texts, in tokens, that it may have been written for, the likeliest first. Raises
    ValueError for files that cannot be read.
    """
    try:
        windows = _windows(artifact, model, lengths)
    except ValueError as error:  # nothing of this model could be written in the format
        return SettingsComparison([str(error)])
    if artifact.format == "gguf":
        file = GGUFFile(artifact.path)
        different, unknown = compare_keys(file, model, windows)
        noted = keys_not_read(file)
        declared = file.keys.get(f"{architecture_of(model.config).name}.context_length")
    else:
        stored = loading.read_checkpoint(artifact.base, artifact.original)
        different = list(_differences(artifact, stored, model, windows))
        unknown = []
        noted = []
        declared = stored.window
        if artifact.format != "meta":
            of_tokenizer, unknown = compare_tokenizer_settings(
                stored.tokenizer,
                model.tokenizer,
                window=_right_window(declared, windows) or declared,
                original=model.config.max_position_embeddings,
            )
            different += of_tokenizer
            unknown += _of_other_families(artifact)
    return SettingsComparison(different, unknown, _right_window(declared, windows), noted)


def _right_window(declared: int | None, windows: list[int]) -> int:
    """The one of the right windows that the files declare, the likeliest if none, 0 without any."""
    if declared in windows:
        return declared
    return windows[0] if windows else 0


def _windows(artifact: Artifact, model: LM, lengths: Sequence[int]) -> list[int]:
    """The extended windows that an export may declare; none where the format declares none."""
    if artifact.format == "peft":
        return []
    if artifact.format == "hf":
        windows = [
            hf.declared_window(model.config, model.scaling, seq_len=length) for length in lengths
        ]
    elif artifact.format == "meta" and not (artifact.path / ROPE).is_file():
        return []
    else:
        windows = [rope_spec(model.scaling, model.config, length).length for length in lengths]
    return list(dict.fromkeys(windows))


def _differences(
    artifact: Artifact, stored: StoredModel, model: LM, windows: list[int]
) -> Iterator[str]:
    file = "params.json" if artifact.format == "meta" else "config.json"
    skipped = {*BY_FREQUENCIES, *OF_TRAINING}
    if artifact.format == "meta":
        skipped |= {*NOT_IN_META}
    for field in dataclasses.fields(LlamaConfig):
        if field.name in skipped:
            continue
        actual = _value(stored.config, field.name)
        expected = _value(model.config, field.name)
        if actual != expected and field.name != "parts":
            yield f"{field.name} in {file} is {actual}, not {expected}"
    for field in dataclasses.fields(Parts):
        actual = getattr(stored.config.parts, field.name)
        expected = getattr(model.config.parts, field.name)
        if actual != expected:
            yield f"{field.name} by {file} is {actual}, not {expected}"
    if artifact.format == "hf":
        yield from _architecture(artifact, model)
        yield from _generation(artifact)
    if artifact.format == "hf" and stored.window in windows:
        yield from _stated_window(artifact, stored)
    if windows and stored.window not in windows:
        yield (
            f"the window that it declares is {stored.window}, not {windows[0]} (give --method "
            "or --seq-len if it was exported with one)"
        )
    yield from _tokenizer_differences(stored.tokenizer, model.tokenizer)
    if artifact.format == "hf":
        yield from _text_differences(stored.tokenizer, model.tokenizer)


def _architecture(artifact: Artifact, model: LM) -> Iterator[str]:
    """Yield the class under `architectures` if it is not that of the family."""
    expected = family_of(model.config).architecture
    named = read_json(artifact.path / hf.CONFIG).get("architectures") or [expected]
    if expected.lower() not in (str(name).lower() for name in named):
        yield (
            f"architectures in {hf.CONFIG} is {named}, not {[expected]}: vLLM, SGLang and "
            "llama.cpp's converter choose their code by it"
        )


def _generation(artifact: Artifact) -> Iterator[str]:
    """Yield the settings of generation in config.json, if no file of their own overrules them."""
    if (artifact.path / GENERATION_CONFIG).is_file():
        return
    config = read_json(artifact.path / hf.CONFIG)
    for key, default in OF_GENERATION.items():
        if config.get(key) not in (None, default):
            yield (
                f"{key} in {hf.CONFIG} is {config[key]!r}: transformers generates by it, as there "
                f"is no {GENERATION_CONFIG}"
            )


def _of_other_families(artifact: Artifact) -> list[str]:
    """The keys of config.json that change a model of another family, where they mean something."""
    config = read_json(artifact.base / hf.CONFIG)
    return [f"{key} in {hf.CONFIG}" for key in OF_OTHER_FAMILIES if config.get(key) is not None]


def _stated_window(artifact: Artifact, stored: StoredModel) -> Iterator[str]:
    """Yield the window that config.json states, if it is not the extended one."""
    stated = hf.stated_window(artifact.path)
    if stated >= stored.window:
        return
    is_original = stated == stored.config.max_position_embeddings
    if is_original and isinstance(stored.scaling, EXTENDED_BY_FACTOR):
        return
    yield (
        f"max_position_embeddings in {hf.CONFIG} is {stated}, not {stored.window}: readers that "
        "take it as it is accept no longer text"
    )


def _value(config: LlamaConfig, name: str) -> Any:
    value = getattr(config, name)
    return merge_ids(value) if name == "eos_token_id" else value


def _tokenizer_differences(stored: Tokenizer, expected: Tokenizer) -> Iterator[str]:
    """Yield what differs in the whole vocabulary, and in the rules that make tokens of a text."""
    actual_tokens = stored.vocabulary
    expected_tokens = expected.vocabulary
    for token_id in sorted(actual_tokens.keys() | expected_tokens.keys()):
        actual = actual_tokens.get(token_id)
        if actual != expected_tokens.get(token_id):
            yield f"token {token_id} is {actual!r}, not {expected_tokens.get(token_id)!r}"
            break
    if MODEL in stored.files and MODEL in expected.files:
        if stored.files[MODEL] != expected.files[MODEL]:
            yield f"{MODEL} is not the file of the model"
    if JSON not in stored.files:
        return
    dropout = json_object(stored.files, JSON).get("model", {}).get("dropout")
    if dropout:
        yield f"dropout in {JSON} is {dropout}: readers draw the ids of a text at random"
    actual_rules = _rules(stored)
    expected_rules = _rules(expected)
    # Another writer may spell the rules of a SentencePiece model in another way, but for these.
    names = expected_rules.keys() if JSON in expected.files else {"vocab", "merges"}
    for name in sorted(names):
        if actual_rules.get(name) != expected_rules[name]:
            yield f"{name} in {JSON} is not that of the model"


def _rules(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer.json of an export as the tokenizers library writes it.

    The parts of its model are by name among the others.
    """
    exported = json.loads(tokenizer.export_files(0)[JSON])
    written = json.loads(open_library(exported).to_str())
    if _adds_nothing(written["post_processor"]):
        written["post_processor"] = None
    return {**written.pop("model"), **{k: v for k, v in written.items() if k not in AROUND}}


def _adds_nothing(processor: dict[str, Any] | None) -> bool:
    """Whether a post_processor leaves the ids of a text, and of a pair of them, as they are.

    transformers writes such a template into every tokenizer that has none.
    """
    if processor is None or processor["type"] == "ByteLevel":  # that one moves offsets alone
        return True
    if processor["type"] != "TemplateProcessing":
        return False
    order = [
        [piece.get("Sequence", {}).get("id") for piece in processor[name]]
        for name in ("single", "pair")
    ]
    return order == [["A"], ["A", "B"]]


def _text_differences(stored: Tokenizer, expected: Tokenizer) -> Iterator[str]:
    """Yield the special tokens and the chat template, if they differ."""
    names = stored.special_tokens.keys() | expected.special_tokens.keys()
    for name in sorted(names):
        actual = stored.special_tokens.get(name)
        if actual != expected.special_tokens.get(name):
            yield f"{name} is {actual!r}, not {expected.special_tokens.get(name)!r}"
    if stored.chat_template != expected.chat_template:
        yield "the chat template is not that of the model"
