"""README.md of an exported model: what it is, how well it did, how to serve it, and its proof."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from ctxext.interop import packaged
from ctxext.interop.families import family_of
from ctxext.interop.gguf_metadata import check
from ctxext.interop.ropespec import layer_ropes_from_config
from ctxext.interop.serving import override_commands, serve_commands
from ctxext.model.config import LlamaConfig
from ctxext.rope import Unscaled
from ctxext.terminal import printable, printable_line

TITLES = {"mpt": "MPT", "smollm3": "SmolLM3"}
"""How the families are spelled whose names are not only capitalised."""
# Where the text of a proof goes.
BEGIN = "<!-- proof -->"
END = "<!-- /proof -->"
NO_LICENSE = "not stated by the files of the base; its terms hold for what is derived from it"
HUB_NAMES = {
    "license": re.compile(r"[a-z0-9][a-z0-9.+-]{1,40}"),
    "base_model": re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}"),
}
"""Names as the hub has them: "apache-2.0", "meta-llama/Llama-2-7b-hf"."""


def model_card(settings: dict[str, Any], config: LlamaConfig, facts: dict[str, Any]) -> str:
    """Markdown with the hub's front matter.

    `settings`: the contents of config.json. `facts`: "summary" is shown as it is, the rest as a
    list. "license" and "base model" go to the front matter too, if they are names as the hub has.
    """
    parameters = settings.get("rope_parameters", {})
    without_lists = {k: v for k, v in parameters.items() if not isinstance(v, list)}
    rope = f"- rope_parameters: `{json.dumps(without_lists)}`" if parameters else ""
    if not all(kind.rotates for kind in config.layer_kinds):
        rope = f"{rope}\n- positions: {config.positions}".strip()
    family = family_of(config)
    length = settings[family.window_key or "max_position_embeddings"]
    original = config.max_position_embeddings
    is_dynamic = parameters.get("rope_type") == "dynamic"
    if is_dynamic:
        context = f"{original} tokens, growing with the text by dynamic NTK scaling"
    else:
        context = f"{length} tokens (pre-trained with {original})"
    known = {"license": NO_LICENSE, **facts}
    lines = [f"- {key}: {_plain(str(value))}" for key, value in known.items() if key != "summary"]
    summary = ""
    if facts.get("summary"):
        summary = f"\n## Measured\n\n{code_block(facts['summary'])}\n"
    name = TITLES.get(config.family, config.family.capitalize())
    title = f"{name} with an extended context window" if length > original else name
    note = ""
    if any(isinstance(value, dict) for value in parameters.values()):
        note = (
            "\n`config.json` has the frequencies of each type of layer (`rope_parameters` of "
            "transformers 5), which ctxext reads. transformers 5.23 knows this form in other "
            "families only, and stops.\n"
        )
    elif parameters:
        note = (
            "\n`config.json` carries the scaling for transformers 4 (`rope_scaling`) and 5 "
            "(`rope_parameters`).\n"
        )
    served = round(length * parameters["factor"]) if is_dynamic else length
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [{config.family}, long-context, ctxext]
{_front_matter(facts)}---

# {title}

- context: {context}
- parameters: {config.num_parameters:,} in {settings["dtype"]}
{rope}
{chr(10).join(lines)}
{note}{summary}
{_serving(settings, served, gguf=_fits_gguf(settings, config, length))}
## Proof

{BEGIN}
Not compared with another reader yet.
{END}
"""


def public_name(source: str | Path) -> str:
    """The name of a base for others: of a local directory its own alone, as its path says nothing.

    A name of the hub stays as it is; a model that a package carries has the one it has there.
    """
    path = Path(source)
    if path.exists():
        return path.resolve().name
    packaged_model = packaged.MODELS.get(str(source))
    return packaged_model.hub if packaged_model else str(source)


def versions_text(versions: dict[str, str | None]) -> str:
    """The versions of the packages in use in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def public_command(command: Any) -> str:
    """A recorded command as one that a shell runs and nothing besides; "" for anything else.

    Of a path from the root, the home or a directory above, only the last name is left.
    """
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:  # an open quote
        return ""
    return shlex.join(map(_public_word, words))


def _public_word(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_private = value.startswith(("/", "~", "../"))
    return f"{option}{equals}{Path(value).name if is_private else value}"


def _front_matter(facts: dict[str, Any]) -> str:
    """The lines that the hub indexes; a text that is no name there is left to the list."""
    entries = {"license": facts.get("license"), "base_model": facts.get("base model")}
    return "".join(
        f"{key}: {value}\n"
        for key, value in entries.items()
        if isinstance(value, str) and HUB_NAMES[key].fullmatch(value)
    )


def _fits_gguf(settings: dict[str, Any], config: LlamaConfig, window: int) -> bool:
    """Whether this model can be written as a GGUF file."""
    try:
        scaling = layer_ropes_from_config(settings).scaling if config.layers.rotates else Unscaled()
        check(config, scaling, window=window, dtype="float16")
    except ValueError:
        return False
    return True


def _serving(settings: dict[str, Any], window: int, *, gguf: bool) -> str:
    """The commands of other programs, as a section."""
    lines = ["## Serve", "", "The files say everything that these programs need:", ""]
    lines += ["```", *serve_commands(settings, window, gguf=gguf), "```", ""]
    if overrides := override_commands(settings, window):
        lines += ["The same frequencies with other weights of the base, unchanged:", ""]
        lines += ["```", *overrides, "```", ""]
    lines.append("The proof below names programs that are known to read these files otherwise.")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """The text in one line, in which nothing is Markdown or HTML."""
    line = re.sub(r"[\\`*\[\]|~]", r"\\\g<0>", printable_line(text))
    return line.replace("<", "&lt;")


def code_block(text: str) -> str:
    """A block of Markdown with the text as it is; nothing in the text ends it, or a proof."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{printable(text).strip().replace('<!--', '<! --')}\n{fence}"


def with_proof(text: str, proof: str) -> str:
    """The card with the text of a proof in its place; a card without that place is unchanged."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        return text
    return f"{head}{BEGIN}\n{proof.strip()}\n{END}{tail}"
