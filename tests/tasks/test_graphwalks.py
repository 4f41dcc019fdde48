"""Walks on graphs, walked again by a reader of the text alone."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.tasks import GraphWalks
from ctxext.tasks.building.scores import score
from support.synthetic import TOKENIZERS, context, text_of

seeds = st.integers(0, 2**32 - 1)
TASKS = [GraphWalks(), GraphWalks(hops=1), GraphWalks(hops=3), GraphWalks("parents")]
QUESTION = re.compile(r"Names (?:exactly (\d) steps? away from|with an arrow to) (\w+)[^:]*:(.*)")


def solve(text: str) -> list[tuple[list[str], str]]:
    """For each question of a text, the right names and what is written after it."""
    edges = set(re.findall(r"^([a-z]+) -> ([a-z]+)$", text, re.MULTILINE))
    solved = []
    for hops, name, written in QUESTION.findall(text):
        if not hops:
            found = {a for a, b in edges if b == name}
        else:
            # A matrix power would count walks; shortest paths need the nearer ones removed.
            nearer = {name}
            found = {name}
            for _ in range(int(hops)):
                found = {b for a, b in edges if a in found} - nearer
                nearer |= found
        solved.append((sorted(found), written.strip()))
    return solved


@settings(max_examples=12, deadline=None)
@given(
    task=st.sampled_from(TASKS),
    seed=seeds,
    seq_len=st.integers(700, 2000) | st.none(),
    depths=st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_walking_the_text_gives_the_answer(task, seed, seq_len, depths):
    examples = task.shared_examples(context(seed), seq_len, depths)
    lengths = [len(e.prompt) + e.max_new_tokens for e in examples]
    assert seq_len is None or max(lengths) == seq_len
    assert len({e.meta["name"] for e in examples}) == len(depths)
    shared = {e.prompt[: e.num_shared_tokens].tobytes() for e in examples}
    assert len(shared) == 1
    for e in examples:
        *shots, (right, written) = solve(text_of("bundled", e.prompt))
        assert written == ""
        assert len(shots) == task.shots == 2
        assert all(shot == ", ".join(names or ["none"]) for names, shot in shots)
        assert tuple(right or ["none"]) == e.references
        assert len(right) <= task.max_names
        answer = TOKENIZERS["bundled"].decode(e.answer.tolist()).strip()
        assert answer == ", ".join(right or ["none"])
        assert score(e.metric, answer, e.references) == 1
        assert len(e.answer) < e.max_new_tokens
        # The needles alone decide a result; without any, there is none.
        spans = [e.prompt[start : start + size] for start, size in e.meta["needles"]]
        needles = "".join(TOKENIZERS["bundled"].decode(span.tolist()) for span in spans)
        question = text_of("bundled", e.prompt).rsplit("\n", 1)[1]
        assert solve(f"{needles}\n{question}")[0][0] == right


def test_a_graph_fills_the_text_and_depth_moves_its_first_edge():
    for depth in (0.0, 0.5, 1.0):
        for seed in range(3):
            (e,) = GraphWalks("parents").shared_examples(context(seed), 2000, [depth])
            text = text_of("bundled", e.prompt)
            lines = re.findall(r"^[a-z]+ -> [a-z]+$", text, re.MULTILINE)
            assert len(lines) == e.meta["num_edges"] > 130
            assert len(set(lines)) == len(lines)
            if e.meta["needles"]:
                assert abs(e.depth - depth) < 0.01


@pytest.mark.parametrize("task", [GraphWalks(), GraphWalks("parents")], ids=str)
def test_to_write_the_empty_set_always_scores_as_seldom_as_it_is_asked(task):
    sizes = []
    for seed in range(15):
        examples = task.shared_examples(context(seed), 2500, [0.0, 0.3, 0.6, 0.9])
        assert {score(e.metric, "none", e.references) for e in examples} <= {0, 1}
        sizes += [e.meta["num_names"] for e in examples]
    # Of 60; 4 standard errors are 12.
    counts = np.bincount(sizes, minlength=5)
    assert len(counts) == 5 and 1 <= counts.min() and counts.max() <= 24


def test_bad_settings_and_lengths():
    with pytest.raises(ValueError, match="operation 'dfs' is not known; choose one of bfs"):
        GraphWalks("dfs")  # pyright: ignore
    for change in ({"hops": 0}, {"max_names": 0}, {"shots": -1}, {"out_degree": 0.0}):
        with pytest.raises(ValueError, match="at least"):
            GraphWalks(**change)
    with pytest.raises(ValueError, match="too small for 3 question"):
        GraphWalks().shared_examples(context(0), 220, [0.0, 0.5, 1.0])
