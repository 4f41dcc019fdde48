"""Conversations as a model was trained to read them: by the chat template that came with it."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctxext.tokenization.chat_sandbox import render
from ctxext.tokenization.tokenizer import CONFIG, TEMPLATE, Tokenizer

Messages = Sequence[dict[str, str]]
# What Llama 2's own code does with a dialogue: each answered question is a sequence of its own.
LLAMA2 = """
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- set ns.system = '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' -%}
    {%- elif message.role == 'user' -%}
        {{- bos_token + '[INST] ' + (ns.system + message.content)|trim + ' [/INST]' -}}
        {%- set ns.system = '' -%}
    {%- else -%}
        {{- ' ' + message.content|trim + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""


@dataclasses.dataclass(frozen=True)
class Chat:
    """How to write messages for one tokenizer: the Jinja text of a template, and what a user should know of it."""

    tokenizer: Tokenizer
    template: str
    note: str = ""

    def text(self, messages: Messages) -> str:
        """Messages ({"role": ..., "content": ...}) up to where the assistant begins to speak.

        Raises ValueError for a template that cannot be rendered.
        """
        return render(
            self.template,
            {"messages": list(messages), "add_generation_prompt": True} | self._special,
        )

    def encode(self, messages: Messages) -> list[int]:
        """Token ids of `text`, behind exactly one beginning-of-sequence id: most templates write it, some leave it out.

        Special tokens count wherever they are written out, in messages too. Raises ValueError as `text` does.
        """
        ids = self.tokenizer.encode(self.text(messages), special=True)
        start = self.tokenizer.bos_id
        if (
            start is None
            or ids[:1] == [start]
            or _settings(self.tokenizer).get("add_bos_token") is False
        ):
            return ids
        return [start, *ids]

    @property
    def _special(self) -> dict[str, str]:
        named = {
            key: value
            for key, value in _settings(self.tokenizer).items()
            if key.endswith("_token") and value
        }
        texts = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in named.items()
        }
        return {key: text for key, text in texts.items() if isinstance(text, str)}


def chat_of(tokenizer: Tokenizer, file: Path | None = None) -> Chat:
    """The chat of a checkpoint: by the template in `file`, by its own, or by Llama 2's markers if it has <s> and </s>.

    Raises ValueError if there is none.
    """
    if file is not None:
        return Chat(tokenizer, file.read_text(encoding="utf-8"))
    if TEMPLATE in tokenizer.files:
        return Chat(tokenizer, tokenizer.files[TEMPLATE].decode())
    settings = _settings(tokenizer)
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    if found:
        return Chat(tokenizer, found)
    if (settings.get("bos_token"), settings.get("eos_token")) == ("<s>", "</s>"):
        return Chat(
            tokenizer,
            LLAMA2,
            "the checkpoint has no chat template; Llama 2's [INST] markers are used",
        )
    raise ValueError(
        "the checkpoint has no chat template; give one with --chat-template FILE, in Jinja"
    )


@functools.lru_cache(maxsize=8)
def _settings(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.export_files(0)[CONFIG]) | json.loads(
        tokenizer.files.get(CONFIG, b"{}")
    )
