"""Chat templates compared with transformers, Llama 2's format with SentencePiece, bad templates."""

import functools
import inspect
import json
import time

import pytest

from ctxext.tokenization import chat_sandbox
from ctxext.tokenization.chat import chat_of
from ctxext.tokenization.chat_sandbox import render
from ctxext.tokenization.tokenizer import (
    CONFIG,
    JSON,
    MODEL,
    TEMPLATE,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)

TALK = [
    {"role": "system", "content": "Answer briefly.\nNo jokes."},
    {"role": "user", "content": "  What is <b>'日本'</b>?\n"},
    {"role": "assistant", "content": " A country. "},
    {"role": "user", "content": "Where's it? {{ 7 * 7 }} {% if %}"},
]
# Our own versions of well-known kinds of templates; each needs other functions of the environment.
INST = """
{%- if messages[0]['role'] == 'system' %}
    {%- set rest = messages[1:] %}{% set start =
        '<<SYS>>\\n' ~ messages[0]['content'] ~ '\\n<</SYS>>\\n\\n' %}
{%- else %}
    {%- set rest = messages %}{% set start = '' %}
{%- endif %}
{%- for m in rest %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- if m['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (start if loop.first else '')
            + m['content'].strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + m['content'] | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
CHATML = """{% for m in messages %}
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{% endif %}
"""
HEADERS = """{{- bos_token }}
{%- set date = strftime_now('%Y') if strftime_now is defined else 'unknown' %}
{%- macro head(role) %}{{ '<|start|>' ~ role ~ '<|end|>\\n\\n' }}{% endmacro %}
{{- head('system') ~ 'Year: ' ~ date ~ '\n' ~ {'tools': none, 'a': '<é>'} | tojson(indent=2) }}
{%- set seen = namespace(count=0) %}
{%- for m in messages %}
    {%- if m.role not in ('user', 'assistant') %}{% continue %}{% endif %}
    {%- set seen.count = seen.count + 1 %}
    {%- if m.role == 'assistant' %}
        {{- head(m.role) }}{% generation %}{{ m.content | trim }}{{ eos_token }}{% endgeneration %}
    {%- else %}
        {{- head(m.role) ~ m.content | trim ~ unk_token }}
    {%- endif %}
    {%- if seen.count >= 3 %}{% break %}{% endif %}
{%- endfor %}
{{- head('assistant') if add_generation_prompt }}"""
TEMPLATES = {"inst": INST, "chatml": CHATML, "headers": HEADERS}


@functools.cache
def model() -> bytes:
    return train_tokenizer([inspect.getsource(inspect)], 420)


ADDED = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>")


def files(template: str | list | None) -> dict[str, bytes]:
    """The files of a tokenizer with a template and the tokens added for it."""
    exported = Tokenizer({MODEL: model()}).export_files(256)
    fast = json.loads(exported[JSON])
    fast["added_tokens"] += [
        {**fast["added_tokens"][0], "id": 420 + i, "content": text} for i, text in enumerate(ADDED)
    ]
    settings = json.loads(exported[CONFIG])
    if template:
        settings["chat_template"] = template
    return {MODEL: model(), JSON: json.dumps(fast).encode(), CONFIG: json.dumps(settings).encode()}


FORMS = ("settings", "file", "json only")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        # Every template and every form once; the other pairs are for `make slow`.
        pytest.param(name, form, marks=() if i == j else pytest.mark.slow)
        for i, name in enumerate(TEMPLATES)
        for j, form in enumerate(FORMS)
    ],
)
def test_text_and_ids_are_those_of_transformers(name, form, tmp_path):
    from transformers import AutoTokenizer

    if form == "file":
        tokenizer_files = files(None) | {TEMPLATE: TEMPLATES[name].encode()}
    else:
        tokenizer_files = files(TEMPLATES[name])
    if form == "json only":
        del tokenizer_files[MODEL]
    ours = Tokenizer(tokenizer_files)
    for file, data in ours.export_files(256).items():
        (tmp_path / file).write_bytes(data)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for talk in (TALK, TALK[1:], TALK[1:2]):
        chat = chat_of(ours)
        assert chat.text(talk) == theirs.apply_chat_template(
            talk, tokenize=False, add_generation_prompt=True
        )
        ids = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        has_bos = ids[0] == ours.bos_id
        assert has_bos == (name != "chatml"), "only chatml leaves BOS to the tokenizer"
        expected = ids if has_bos else [ours.bos_id, *ids]
        assert chat.encode(talk) == expected
        assert chat_of(load_tokenizer(tmp_path)).encode(talk) == expected
    assert 421 in ids or name != "chatml", "added tokens are tokens"


def test_the_format_of_llama_2_is_used_where_it_is_asked_for():
    """Llama 2's code encodes question and answer of each turn as one text between <s> and </s>."""
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_proto=model())
    tokenizer = Tokenizer({MODEL: model()})
    with pytest.raises(ValueError, match="no chat template; give one .* --chat-template llama2 "):
        chat_of(tokenizer)
    chat = chat_of(tokenizer, "llama2")
    system = "<<SYS>>\nAnswer briefly.\nNo jokes.\n<</SYS>>\n\n"
    first = f"[INST] {(system + TALK[1]['content']).strip()} [/INST] A country. "
    last = f"[INST] {TALK[3]['content']} [/INST]"
    expected = [1, *reference.encode(first), 2, 1, *reference.encode(last)]
    assert chat.encode(TALK) == expected


def test_bos_is_added_once_and_only_if_the_tokenizer_adds_one():
    def encode(tokenizer_files: dict[str, bytes]) -> list[int]:
        return chat_of(Tokenizer(tokenizer_files)).encode([{"content": "a"}])

    by_template = encode(files("{{ bos_token }}{{ messages[0].content }}"))
    assert by_template.count(1) == 1
    assert encode(files("{{ messages[0].content }}")) == by_template
    without = files("{{ messages[0].content }}")
    without = Tokenizer(without).with_bos(False).files
    assert encode(without) == by_template[1:]


def test_the_template_is_chosen_by_a_file_or_a_name(tmp_path):
    (tmp_path / "mine.jinja").write_text("mine")
    assert chat_of(Tokenizer(files(CHATML)), tmp_path / "mine.jinja").text(TALK) == "mine"
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert chat_of(Tokenizer(files(several))).text(TALK) == "yes"
    other = files(None)
    del other[MODEL]
    other[CONFIG] = json.dumps(json.loads(other[CONFIG]) | {"eos_token": "<|im_end|>"}).encode()
    with pytest.raises(ValueError, match="has no chat template; give one with --chat-template"):
        chat_of(Tokenizer(other))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages.__class__ }}", "reaches for '__class__' of a list"),
        ("{{ ''['__class__']['__mro__'] }}", "reaches for '__class__' of a str"),
        ("{{ messages|attr('__init__') }}", "reaches for '__init__'"),
        ("{{ '{0.__class__}'.format(messages) }}", "reaches for '__class__'"),
        ("{{ raise_exception.__globals__ }}", "reaches for '__globals__' of a function"),
        ("{{ cycler.__init__.__globals__.os }}", "reaches for '__init__'"),
        ("{{ messages.append(1) }}", "reaches for 'append'"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "more than 1,00"),
        ("{{ 'a' * 10 ** 12 }}", "memory"),
        ("{{ ('%' ~ 10 ** 11 ~ 'd') % 1 }}", ""),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ raise_exception('one\ntwo') }}", "rendered: one two; give another one"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content + 1 }}", "str"),
    ],
)
def test_bad_templates_give_one_clear_error(template, message):
    with pytest.raises(
        ValueError, match="^the chat template .*; give another one with --chat-template FILE$"
    ) as error:
        render(template, {"messages": TALK})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_endless_templates_are_stopped(monkeypatch):
    monkeypatch.setattr(chat_sandbox, "CPU_SECONDS", 1)
    start = time.process_time()
    with pytest.raises(ValueError, match="stopped: it ran longer than 1 s"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {})
    assert time.process_time() - start < 1, "the template must run in another process"
