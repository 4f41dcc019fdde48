"""The tokens of answers in rendered conversations, compared with transformers and by definition."""

import functools
import inspect
import json

import numpy as np
import pytest

from ctxext.assets import TINY_LLAMA
from ctxext.tokenization.answers import encode_answers, training_chat
from ctxext.tokenization.chat import Chat
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, Tokenizer, train_tokenizer
from tokenization.test_chat import CHATML, files

TALKS = [
    [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": " What is '日本'?"},
        {"role": "assistant", "content": " A country. \n"},
        {"role": "user", "content": "Where's it?"},
        {"role": "assistant", "content": "日 in Asia."},
        {"role": "user", "content": "Nothing is said to this."},
    ],
    [
        {"role": "user", "content": "import os"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "os.path"},
    ],
]
MARKED = """{{- bos_token }}
{%- for m in messages %}
    {{- '<|im_start|>' ~ m.role ~ '\\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{ m.content }}{{ '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- m.content ~ '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt }}"""

UNMARKED = MARKED.replace("{{- bos_token }}", "").replace("{% endgeneration %}", "")
UNMARKED = UNMARKED.replace("{%- generation %}", "")


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Our tokenizer and transformers' with the template that marks its answers."""
    from transformers import AutoTokenizer

    ours = Tokenizer(files(MARKED))
    directory = tmp_path_factory.mktemp("marked")
    for name, data in ours.export_files(256).items():
        (directory / name).write_bytes(data)
    return ours, AutoTokenizer.from_pretrained(directory)


def answered(tokenizer: Tokenizer, template: str, talk: list) -> tuple[list[int], list[int]]:
    (one,) = encode_answers(Chat(tokenizer, template), [talk])
    assert one.reason == ""
    return one.ids, one.is_answer.astype(int).tolist()


def test_ids_and_answers_are_those_that_transformers_marks(readers):
    ours, theirs = readers
    outcomes = list(encode_answers(training_chat(ours, "own", "x"), TALKS))
    for talk, (ids, is_answer, _) in zip(TALKS, outcomes, strict=True):
        last = max(i for i, message in enumerate(talk) if message["role"] == "assistant")
        reference = theirs.apply_chat_template(
            talk[: last + 1], return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids == reference["input_ids"]
        assert is_answer.astype(int).tolist() == reference["assistant_masks"]
        assert 0 < is_answer.sum() < len(ids)


def test_without_marks_an_answer_is_what_comes_after_its_prompt(readers):
    """The ids up to where the assistant begins are counted by transformers, turn by turn."""
    ours, theirs = readers
    talk = TALKS[0][:5]
    ids, is_answer = answered(ours, UNMARKED, talk)
    expected = np.zeros(len(ids), int)
    num_bos = 1  # which the template leaves to the tokenizer
    for turn in (2, 4):
        prompt = theirs.apply_chat_template(
            talk[:turn], chat_template=UNMARKED, add_generation_prompt=True, return_dict=False
        )
        whole = theirs.apply_chat_template(
            talk[: turn + 1], chat_template=UNMARKED, return_dict=False
        )
        assert ids[num_bos : num_bos + len(whole)] == whole
        end = max(i for i, token in enumerate(whole) if token == 421) + 1  # <|im_end|>
        expected[num_bos + len(prompt) : num_bos + end] = 1
    assert is_answer == expected.tolist()


@functools.cache
def bundled() -> Tokenizer:
    names = (MODEL, JSON, CONFIG)
    paths = [TINY_LLAMA / name for name in names if (TINY_LLAMA / name).exists()]
    return Tokenizer({path.name: path.read_bytes() for path in paths})


# What these write, read in their code: PROMPT_DICT of train.py in tatsu-lab/stanford_alpaca
# (15b51ae), "vicuna_v1.1" of conversation.py in lm-sys/FastChat (0e6d3e4), and "prompt_llama2" of
# supervised-fine-tune.py in dvlab-research/LongLoRA (d4eb344).
ALPACA_START = "Below is an instruction that describes a task"
ALPACA_INPUT = ", paired with an input that provides further context"
ALPACA_END = ". Write a response that appropriately completes the request.\n\n"
VICUNA_START = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
QUESTION = {"role": "user", "content": "Add\n\n1, 2", "instruction": "Add", "input": "1, 2"}
ANSWER = {"role": "assistant", "content": "3"}


@pytest.mark.parametrize(
    ("name", "talk", "parts"),
    [
        (
            "alpaca",
            [QUESTION, ANSWER],
            [
                f"{ALPACA_START}{ALPACA_INPUT}{ALPACA_END}"
                "### Instruction:\nAdd\n\n### Input:\n1, 2\n\n### Response:",
                "3</s>",
            ],
        ),
        (
            "alpaca",
            [{"role": "user", "content": "Hi"}, ANSWER],
            [f"{ALPACA_START}{ALPACA_END}### Instruction:\nHi\n\n### Response:", "3</s>"],
        ),
        (
            "vicuna",
            [{"role": "user", "content": "Hi"}, ANSWER, QUESTION, {**ANSWER, "content": "4"}],
            [
                f"{VICUNA_START} USER: Hi ASSISTANT:",
                " 3</s>",
                "USER: Add\n\n1, 2 ASSISTANT:",
                " 4</s>",
            ],
        ),
        (
            "longalpaca",
            [{"role": "user", "content": "Hi\n"}, ANSWER],
            ["[INST]Hi\n[/INST]", "3</s>"],
        ),
    ],
)
def test_the_prompts_of_community_models(name, talk, parts):
    tokenizer = bundled()
    chat = training_chat(tokenizer, name, "--data.chat-template")
    assert chat.text(talk[:-1]) == "".join(parts[:-1])
    ids, is_answer = answered(tokenizer, chat.template, talk)
    assert ids == [tokenizer.bos_id, *tokenizer.encode("".join(parts), special=True)]
    expected = [0]
    for number in range(len(parts)):
        count = len(tokenizer.encode("".join(parts[: number + 1]), special=True)) + 1
        expected += [number % 2] * (count - len(expected))
    assert is_answer == expected
    learned = [token for token, counts in zip(ids, is_answer, strict=True) if counts]
    assert sum(token == tokenizer.eos_id for token in learned) == len(parts) // 2


def test_a_token_of_both_question_and_answer_is_not_trained():
    tokenizer = Tokenizer({MODEL: train_tokenizer([inspect.getsource(inspect)], 420)})
    text = "x = inspect"
    ids = tokenizer.encode(text, special=True)
    pieces = [tokenizer.id_to_token(i) for i in ids]
    longest = max(range(len(ids)), key=lambda i: len(pieces[i]))
    assert len(pieces[longest]) > 2
    before = len("".join(pieces[:longest]).lstrip("▁")) + 2  # inside that token
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    talk = [
        {"role": "user", "content": text[:before]},
        {"role": "assistant", "content": text[before:]},
    ]
    whole, is_answer = answered(tokenizer, template, talk)
    num_bos = len(whole) - len(ids)
    assert whole[num_bos:] == ids
    assert is_answer == [0] * (num_bos + longest + 1) + [1] * (len(ids) - longest - 1)


def test_a_template_that_changes_what_came_before_is_refused():
    tokenizer = bundled()
    for template in (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content if loop.last }}{% endfor %}",
        CHATML,  # which begins an answer with an empty line only where it is asked for
    ):
        (outcome,) = encode_answers(Chat(tokenizer, template), [TALKS[0]])
        assert outcome.reason.startswith(
            "the chat template writes the conversation up to answer 1 differently once it goes on"
        )
        assert not outcome.ids
    (silent, shouting, fine) = encode_answers(
        Chat(tokenizer, "{{ raise_exception('no') if messages[0].content == 'a' }}x"),
        [[{"role": "user", "content": "b"}], [{"role": "user", "content": "a"}, ANSWER], TALKS[1]],
    )
    assert silent.reason == "it holds no answer of the assistant"
    assert shouting.reason.startswith("the chat template cannot be rendered: no; give another")
    assert fine.ids and not fine.is_answer.any()


def test_the_date_is_not_part_of_training_data():
    """A run is resumed on another day with the same tokens."""
    (outcome,) = encode_answers(
        Chat(bundled(), "{{ strftime_now('%Y') if strftime_now is defined else 'none' }}"),
        TALKS[:1],
    )
    assert outcome.ids[1:] == bundled().encode("none", special=True)


def test_the_template_must_be_there(tmp_path):
    tokenizer = bundled()
    with pytest.raises(ValueError, match=r"no chat template of its own: give --x alpaca, llama2, "):
        training_chat(tokenizer, "own", "--x")
    with pytest.raises(ValueError, match="--x mine cannot be read .No such file or directory."):
        training_chat(tokenizer, "mine", "--x")
    (tmp_path / "a.jinja").write_text("{{ 1 }}")
    assert training_chat(tokenizer, str(tmp_path / "a.jinja"), "--x").template == "{{ 1 }}"
    settings = {"chat_template": "{{ 2 }}"}
    own = Tokenizer({**tokenizer.files, CONFIG: json.dumps(settings).encode()})
    assert training_chat(own, "own", "--x").template == "{{ 2 }}"
