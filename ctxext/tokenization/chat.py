"""Conversations as a model was trained to read them, by the chat template of its checkpoint."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ctxext.tokenization.chat_sandbox import render
from ctxext.tokenization.tokenizer import Tokenizer

Messages = Sequence[dict[str, str]]
"""Messages of the form {"role": ..., "content": ...}."""

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
"""The format of Llama 2's own code: each question with its answer is a separate sequence."""
TEMPLATES = {"llama2": LLAMA2}
"""Templates by the names that --chat-template knows."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """How to write messages for one tokenizer, by a template in Jinja."""

    tokenizer: Tokenizer
    template: str

    def text(self, messages: Messages) -> str:
        """The messages as text, up to where the assistant's turn begins.

        Raises ValueError for a template that cannot be rendered.
        """
        variables = {"messages": list(messages), "add_generation_prompt": True}
        return render(self.template, variables | self.tokenizer.special_tokens)

    def encode(self, messages: Messages) -> list[int]:
        """Token ids of `text`, after one beginning-of-sequence id if the tokenizer adds one.

        Most templates write it themselves and get no second one. Special tokens count wherever they
        are written out, in messages too. Raises ValueError as `text` does.
        """
        ids = self.tokenizer.encode(self.text(messages), special=True)
        bos_id = self.tokenizer.bos_id
        if bos_id is None or ids[:1] == [bos_id] or not self.tokenizer.adds_bos:
            return ids
        return [bos_id, *ids]


def chat_of(tokenizer: Tokenizer, template: str | Path | None = None) -> Chat:
    """The chat of a checkpoint, by its own template or another one.

    template: a name of `TEMPLATES`, or a file. Raises ValueError if there is none: a chat in a
    format that a model was not trained on reads like a bad model.
    """
    if template is not None:
        named = TEMPLATES.get(str(template))
        return Chat(tokenizer, named or Path(template).read_text(encoding="utf-8-sig"))
    if tokenizer.chat_template is not None:
        return Chat(tokenizer, tokenizer.chat_template)
    raise ValueError(
        "the checkpoint has no chat template; give one with --chat-template FILE, in Jinja, or "
        "--chat-template llama2 for a model that was trained with Llama 2's [INST] markers"
    )
