"""The i-th of equal requests, found again by a reader of the text alone."""

import difflib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.evals import Retrieval
from ctxext.evals.oracle import AnswerKey
from ctxext.tasks import Mrcr
from ctxext.tasks.building.scores import score
from support.synthetic import TOKENIZERS, context, text_of
from support.toy_tokenizer import toy_source

TASKS = [Mrcr(), Mrcr("whole"), Mrcr("whole", num_similar=2, shots=1)]
ORDINALS = "first second third fourth fifth sixth seventh eighth".split()


def replies(text: str, request: str) -> list[str]:
    """All replies to a request, in order."""
    return re.findall(rf"^Request: a {request}\nReply: (.+)$", text, re.MULTILINE)


def asked(text: str) -> list[tuple[str, str, str]]:
    """The right reply to each question, the word before it, and what is written after it."""
    pattern = (
        r"^Request: the (\w+) (\w+ about the \w+) again(?:, after the word (\w+))?\nReply:(.*)"
    )
    return [
        (replies(text, request)[ORDINALS.index(ordinal)], prefix, written.strip())
        for ordinal, request, prefix, written in re.findall(pattern, text, re.MULTILINE)
    ]


@settings(max_examples=15, deadline=None)
@given(
    task=st.sampled_from(TASKS),
    seed=st.integers(0, 2**32 - 1),
    seq_len=st.integers(1900, 2600) | st.none(),
    depths=st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_counting_the_replies_gives_the_answer(task, seed, seq_len, depths):
    examples = task.shared_examples(context(seed), seq_len, depths)
    lengths = [len(e.prompt) + e.max_new_tokens for e in examples]
    assert seq_len is None or max(lengths) == seq_len
    assert len({e.prompt[: e.num_shared_tokens].tobytes() for e in examples}) == 1
    decode = TOKENIZERS["bundled"].decode
    for e in examples:
        text = text_of("bundled", e.prompt)
        *shots, (reply, prefix, written) = asked(text)
        assert len(shots) == task.shots and written == ""
        assert all(s[2] and f"{s[1]} {s[0]}".strip().startswith(s[2]) for s in shots)
        equal = replies(text, e.meta["name"])
        assert len(equal) == task.num_similar
        assert equal[e.meta["rank"] - 1] == reply
        answer = decode(e.answer.tolist()).strip()
        right = " ".join(reply.split()[:3]) if task.part == "start" else f"{prefix} {reply}"
        assert answer == right
        # No other reply of the text begins with these words.
        assert text.count(f"Reply: {' '.join(reply.split()[:3])} ") == 1
        ((start, size),) = e.meta["needles"]
        assert decode(e.prompt[start : start + size].tolist()).endswith(f"Reply: {reply}")
        assert len(e.choices) == task.num_similar - 1
        assert len(e.answer) < e.max_new_tokens
        if task.part == "start":
            assert e.metric == "exact"
            continue
        assert score(e.metric, answer, e.references) == 1
        assert score(e.metric, reply, e.references) == 0
        ratios = [
            difflib.SequenceMatcher(None, f" {other}", f" {reply}").ratio() for other in equal
        ]
        assert e.meta["chance_score"] == pytest.approx(np.mean(ratios))


def test_half_of_the_other_requests_are_near_misses():
    (e,) = Mrcr(shots=0).shared_examples(context(2), 20_000, [0.5])
    form, topic = e.meta["name"].split(" about the ")
    requests = re.findall(r"^Request: a (\w+) about the (\w+)$", text_of("bundled", e.prompt), re.M)
    others = [request for request in requests if request != (form, topic)]
    assert len(requests) - len(others) == 4
    similar = [other for other in others if form == other[0] or topic == other[1]]
    # A quarter by intent for each, and one of 8 forms and of 44 topics by luck; 4 errors are 0.13.
    share = 1 / 2 + 1 / 2 * (1 / 8 + 1 / 44)
    assert len(others) > 200
    assert abs(len(similar) / len(others) - share) < 4 * np.sqrt(0.25 / len(others))


def test_a_planted_answer_key_is_recovered():
    newline = TOKENIZERS["toy"].encode("\n")[-1:]
    for task in TASKS[:2]:
        grid = {"seq_lens": (3000,), "depths": (0.0, 1.0), "n": 1, "source": toy_source()}
        evaluation = Retrieval(**grid, task=task, shared_context=True)
        key = AnswerKey.of(evaluation, TOKENIZERS["toy"], manner=lambda ids: [*ids, *newline])
        for record in evaluation(key):
            assert record.scores.score == 1
            assert record.scores.choices == 4


def test_bad_settings_and_lengths():
    with pytest.raises(ValueError, match="mrcr: part 'end' is not known; choose one of start"):
        Mrcr("end")  # pyright: ignore
    for change in ({"num_similar": 1}, {"num_similar": 9}, {"shots": -1}):
        with pytest.raises(ValueError, match="mrcr: num_similar must be 2 to 8"):
            Mrcr(**change)
    with pytest.raises(ValueError, match="mrcr: a prompt of 300 tokens cannot hold"):
        Mrcr().example(context(0), 300)
    with pytest.raises(ValueError, match="mrcr: ask for fewer questions about a text"):
        Mrcr().shared_examples(context(0), None, [0.0] * 200)
