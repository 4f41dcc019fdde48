"""README.md of an exported model: what it is, how well it did, and whether it was proven equal."""

import json
import re
from typing import Any

from ctxext.interop.families import family_of
from ctxext.model.config import LlamaConfig
from ctxext.terminal import printable, printable_line

TITLES = {"mpt": "MPT", "smollm3": "SmolLM3"}
"""How the families are spelled whose names are not only capitalised."""
# Where the text of a proof goes.
BEGIN = "<!-- proof -->"
END = "<!-- /proof -->"


def model_card(settings: dict[str, Any], config: LlamaConfig, facts: dict[str, Any]) -> str:
    """Markdown with the hub's front matter.

    `settings`: the contents of config.json. `facts`: "summary" is shown as it is, the rest as a
    list.
    """
    parameters = settings.get("rope_parameters", {})
    without_lists = {k: v for k, v in parameters.items() if not isinstance(v, list)}
    rope = f"- rope_parameters: `{json.dumps(without_lists)}`\n" if parameters else ""
    if not all(kind.rotates for kind in config.layer_kinds):
        rope += f"- positions: {config.positions}\n"
    length = settings[family_of(config).window_key or "max_position_embeddings"]
    original = config.max_position_embeddings
    if parameters.get("rope_type") == "dynamic":
        context = f"{original} tokens, growing with the text by dynamic NTK scaling"
    else:
        context = f"{length} tokens (pre-trained with {original})"
    lines = [f"- {key}: {_plain(str(value))}" for key, value in facts.items() if key != "summary"]
    summary = ""
    if facts.get("summary"):
        summary = f"\n## Measured\n\n{code_block(facts['summary'])}\n"
    family = TITLES.get(config.family, config.family.capitalize())
    title = f"{family} with an extended context window" if length > original else family
    note = ""
    if parameters:
        note = (
            "\n`config.json` carries the scaling for transformers 4 (`rope_scaling`) and 5 "
            "(`rope_parameters`).\n"
        )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [{config.family}, long-context, ctxext]
---

# {title}

- context: {context}
- parameters: {config.num_parameters:,} in {settings["dtype"]}
{rope}{chr(10).join(lines)}
{note}{summary}
## Proof

{BEGIN}
Not compared with another reader yet.
{END}
"""


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
