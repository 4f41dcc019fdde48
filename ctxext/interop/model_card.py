"""README.md of an exported model: what it is, and where it was measured."""

import json
from typing import Any

from ctxext.model.config import LlamaConfig

BEGIN, END = "<!-- proof -->", "<!-- /proof -->"


def model_card(settings: dict[str, Any], config: LlamaConfig, facts: dict[str, Any]) -> str:
    """Markdown with the front matter of the hub. `facts`: "summary" is shown as it is, the rest as a list."""
    rope = {k: v for k, v in settings["rope_parameters"].items() if not isinstance(v, list)}
    lines = [f"- {key}: {value}" for key, value in facts.items() if key != "summary"]
    length, original = settings["max_position_embeddings"], config.max_position_embeddings
    if settings["rope_parameters"]["rope_type"] == "dynamic":
        reach = f"{original} tokens, growing with the text by dynamic NTK scaling"
    else:
        reach = f"{length} tokens (pre-trained with {original})"
    summary = (
        f"\n## Measured\n\n```\n{facts['summary'].strip()}\n```\n" if facts.get("summary") else ""
    )
    title = "Llama with an extended context window" if length > original else "Llama"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [llama, long-context, ctxext]
---

# {title}

- context: {reach}
- parameters: {config.num_parameters:,} in {settings["dtype"]}
- rope_parameters: `{json.dumps(rope)}`
{chr(10).join(lines)}

`config.json` carries the scaling for transformers 4 (`rope_scaling`) and 5 (`rope_parameters`).
{summary}
## Proof

{BEGIN}
Not compared with another reader yet.
{END}
"""


def with_proof(text: str, proof: str) -> str:
    """The card with the text of a proof in its place; a card that is not ours is returned as it is."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{proof.strip()}\n{END}{tail}" if begin and end else text
