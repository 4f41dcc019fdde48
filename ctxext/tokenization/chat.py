"""Conversations as a model was trained to read them, by the chat template of its checkpoint."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
ALPACA = """
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {%- if loop.first -%}
            {{- 'Below is an instruction that describes a task' -}}
            {{- ', paired with an input that provides further context' if message.input -}}
            {{- '. Write a response that appropriately completes the request.' -}}
        {%- endif -%}
        {{- '\n\n### Instruction:\n' + (message.instruction or message.content) -}}
        {{- '\n\n### Input:\n' + message.input if message.input -}}
        {{- '\n\n### Response:' -}}
    {%- elif message.role == 'assistant' -%}
        {{- message.content + eos_token -}}
    {%- else -%}
        {{- raise_exception('the alpaca prompt has no place for a system message') -}}
    {%- endif -%}
{%- endfor -%}
"""
"""The prompt of Alpaca; a further question follows in the same form.

With an input and without, as PROMPT_DICT of train.py in tatsu-lab/stanford_alpaca (15b51ae, 2023)
has them. LongAlpaca's first models had it too, until 2 November 2023.
"""
LONGALPACA = """
{%- for message in messages -%}
    {%- if message.role == 'user' and loop.first and not message.input -%}
        {{- '[INST]' + message.content + '[/INST]' -}}
    {%- elif message.role == 'assistant' and loop.index == 2 -%}
        {{- message.content + eos_token -}}
    {%- else -%}
        {{- raise_exception('the longalpaca prompt is one question, without system or input') -}}
    {%- endif -%}
{%- endfor -%}
"""
"""The prompt of LongAlpaca's models since 2 November 2023: "prompt_llama2", without white space.

As inference.py and supervised-fine-tune.py of dvlab-research/LongLoRA (d4eb344, 2024) write it.
Their data has no inputs; their code would write one under another, longer prompt.
"""
VICUNA = """
{%- set ns = namespace(messages=messages) -%}
{%- if messages[0].role == 'system' -%}
    {{- messages[0].content -}}
    {%- set ns.messages = messages[1:] -%}
{%- else -%}
    {{- 'A chat between a curious user and an artificial intelligence assistant. ' -}}
    {{- "The assistant gives helpful, detailed, and polite answers to the user's questions." -}}
{%- endif -%}
{%- for message in ns.messages -%}
    {%- if message.role == 'user' -%}
        {{- ' ' if loop.first else '' -}}
        {{- 'USER: ' + message.content + ' ASSISTANT:' -}}
    {%- elif message.role == 'assistant' and not loop.first -%}
        {{- ' ' + message.content + eos_token -}}
    {%- else -%}
        {{- raise_exception('the vicuna prompt begins with a question of the user') -}}
    {%- endif -%}
{%- endfor -%}
"""
"""The prompt of Vicuna 1.1, 1.3 and 1.5.

As "vicuna_v1.1" of fastchat/conversation.py in lm-sys/FastChat (0e6d3e4, 2025) writes it; its
train.py leaves a first turn of the assistant out, where such a record is refused here.
"""
TEMPLATES = {"alpaca": ALPACA, "llama2": LLAMA2, "vicuna": VICUNA, "longalpaca": LONGALPACA}
"""Templates by the names that --chat-template knows."""
OWN = "own"
"""The name of the checkpoint's own template, where training data is read."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """How to write messages for one tokenizer, by a template in Jinja."""

    tokenizer: Tokenizer
    template: str

    def text(self, messages: Messages) -> str:
        """The messages as text, up to where the assistant's turn begins.

        Raises ValueError for a template that cannot be rendered.
        """
        return render(self.template, self.variables(messages, is_asked=True))

    def variables(self, messages: Messages, *, is_asked: bool) -> dict[str, Any]:
        """What the template is given, as transformers gives it.

        is_asked: the text goes on to where the assistant's turn begins.
        """
        variables = {
            "messages": list(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": is_asked,
        }
        return variables | self.tokenizer.special_tokens

    def encode(self, messages: Messages) -> list[int]:
        """Token ids of `text`, after one beginning-of-sequence id if the tokenizer adds one.

        Most templates write it themselves and get no second one. Special tokens count wherever they
        are written out, in messages too. Raises ValueError as `text` does.
        """
        ids = self.tokenizer.encode(self.text(messages), special=True)
        return [*self.missing_bos(ids), *ids]

    def missing_bos(self, ids: list[int]) -> list[int]:
        """The beginning-of-sequence id, if a text of these ids should have it and does not."""
        bos_id = self.tokenizer.bos_id
        if bos_id is None or ids[:1] == [bos_id] or not self.tokenizer.adds_bos:
            return []
        return [bos_id]


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
        "the one that the model was trained with by its name: --chat-template llama2 ([INST] "
        "markers), vicuna, alpaca or longalpaca"
    )
