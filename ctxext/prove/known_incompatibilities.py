"""What readers that are not here get wrong, told from an export's own keys.

Those of transformers 4 and 5 are tested in them, those of llama.cpp in it by `make slow`; those of vLLM and of
converters are read in their code.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctxext.files import read_json
from ctxext.interop.meta import PARAMS, ROPE
from ctxext.prove.artifact import Subject
from ctxext.prove.reference import GGUFTextbook


@dataclasses.dataclass(frozen=True)
class Trap:
    """A reader, and what it will do to this export."""

    reader: str
    what: str


def traps(subject: Subject) -> list[Trap]:
    """Of an export in any format, or of an adapter's base."""
    if subject.kind == "gguf":
        return [*_gguf(GGUFTextbook(subject.directory).keys)]
    if subject.kind == "meta":
        return [*_meta(subject.directory)]
    found = [*_config(read_json(subject.base / "config.json")), *_tokenizer(subject.base)]
    if subject.kind == "adapter" and _scaled(read_json(subject.base / "config.json")):
        found.append(
            Trap(
                "peft",
                "an adapter carries no frequencies: on a base without this scaling it loads all the "
                "same, and runs with the wrong ones",
            )
        )
    return found


def _config(config: dict[str, Any]) -> Iterator[Trap]:
    old, new = config.get("rope_scaling") or {}, config.get("rope_parameters") or {}
    spec = new or old
    kind = spec.get("rope_type") or spec.get("type") or "default"
    if new and kind != "default" and not old:
        yield Trap(
            "transformers 4",
            "does not know rope_parameters: it runs without the scaling, without a word",
        )
    if new and "rope_theta" not in config and new.get("rope_theta", 10000.0) != 10000.0:
        yield Trap("transformers 4", "does not know rope_parameters: it takes theta to be 10000")
    if kind == "dynamic":
        yield Trap(
            "vLLM",
            "freezes the frequencies at factor x L, and its versions disagree on the formula",
        )
        yield Trap("llama.cpp's converter", "leaves dynamic scaling out: the file runs without it")
    if kind == "yarn" and spec.get("attention_factor") is not None:
        yield Trap(
            "vLLM before September 2026", "ignores attention_factor of yarn and puts in YaRN's own"
        )
        yield Trap("llama.cpp's converter", "loses attention_factor of yarn")
    if kind == "yarn" and (spec.get("beta_fast") or 32, spec.get("beta_slow") or 1) != (32, 1):
        yield Trap(
            "llama.cpp",
            "runs yarn with the betas 32 and 1 of its programs; write the file with --to gguf",
        )
    if kind in ("longrope", "su"):
        if spec.get("short_factor") != spec.get("long_factor"):
            yield Trap(
                "transformers",
                "changes to the long list when a text grows beyond the window, in the middle of "
                "it: keys in the cache keep the short one's angles",
            )
            yield Trap(
                "vLLM",
                "takes the long list for short texts too, once max_model_len is beyond the window",
            )
        if spec.get("attention_factor") is not None and spec.get("long_mscale") is None:
            yield Trap(
                "vLLM",
                "reads short_mscale and long_mscale, not attention_factor: it puts in its own",
            )
        elif spec.get("attention_factor") is not None:
            yield Trap(
                "llama.cpp's converter",
                "writes the divisors as type longrope; write the file with --to gguf",
            )
    if kind == "proportional":
        yield Trap("vLLM", "does not know rope_type proportional and stops")


def _scaled(config: dict[str, Any]) -> bool:
    spec = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = spec.get("rope_theta") or config.get("rope_theta") or 10000.0
    return theta != 10000.0 or (spec.get("rope_type") or spec.get("type") or "default") != "default"


def _tokenizer(directory: Path) -> Iterator[Trap]:
    path = directory / "tokenizer_config.json"
    if not (directory / "tokenizer.json").is_file():
        yield Trap(
            "transformers 5",
            "begins no text with BOS where there is only a tokenizer.model; ctxext import "
            "writes a tokenizer.json",
        )
    elif path.is_file() and str(read_json(path).get("tokenizer_class")).startswith(
        "LlamaTokenizer"
    ):
        yield Trap(
            "transformers 5",
            "makes tokenizer.json anew for this tokenizer_class, and ids can differ; ctxext "
            "import writes one that is left alone",
        )


def _meta(directory: Path) -> Iterator[Trap]:
    theta, rope = read_json(directory / PARAMS).get("rope_theta"), directory / ROPE
    if rope.is_file() and read_json(rope).get("rope_scaling") is not None:
        yield Trap(
            "Meta's code",
            "does not read rope.json: it runs the frequencies of pre-training, without a word, "
            "unless it is patched as README.md says",
        )
        yield Trap(
            "transformers' converter",
            "does not read rope.json: what it writes has no scaling; convert with ctxext import",
        )
    if theta is not None and theta != 10000.0:
        yield Trap(
            "Llama 2's code", "does not know rope_theta in params.json and stops; Code Llama's does"
        )


def _gguf(keys: dict[str, Any]) -> Iterator[Trap]:
    if any(
        keys.get(f"llama.rope.scaling.yarn_{name}") not in (None, value)
        for name, value in (("beta_fast", 32.0), ("beta_slow", 1.0))
    ):
        yield Trap(
            "llama.cpp", "runs yarn with the betas 32 and 1 of its programs, whatever the file says"
        )
    kind, m = keys.get("llama.rope.scaling.type"), keys.get("llama.rope.scaling.attn_factor", 1.0)
    if kind == "yarn" or m != 1.0:
        yield Trap(
            "llama.cpp",
            "puts the attention factor on keys once more whenever it shifts a full context; keep "
            "the text within the window",
        )
    if keys.get("tokenizer.ggml.add_bos_token") is False:
        yield Trap("llama.cpp", "begins no text with BOS, as the file says")
