"""Scores of sets, rankings and repeated texts, against their definitions and other libraries."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.tasks.building.scores import score
from ctxext.tasks.building.structured_scores import written_names, written_ranking

NAMES = st.lists(st.sampled_from(["zubad", "kolim", "desus", "tevot"]), unique=True, max_size=4)


@settings(max_examples=40, deadline=None)
@given(NAMES, NAMES)
def test_the_f1_of_sets_is_that_of_recall_and_precision(written, right):
    text = f" {', '.join(written) or 'none'}\nNames exactly 2 steps away:"
    shared = len({*written} & {*right})
    recall = shared / len(right) if right else 0
    precision = shared / len(written) if written else 0
    expected = 2 * recall * precision / (recall + precision) if shared else 0
    if not written and not right:
        expected = 1  # the formula leaves it open
    assert score("set-f1", text, right or ["none"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (" [Zubad, kolim].\nkozal", {"zubad", "kolim"}),
        ("none", set()),
        ("zubad,zubad , ", {"zubad"}),
        ("\n  zubad", {"zubad"}),
    ],
)
def test_how_names_are_read(text, names):
    assert written_names(text) == names


def test_nothing_written_is_not_the_empty_set():
    assert score("set-f1", "", ["none"]) == 0
    assert score("set-f1", "zubad", ["none"]) == 0


def test_the_ndcg_of_a_ranking_by_hand():
    grades = {"4": 3, "9": 2, "11": 2, "2": 1, "30": 1, "7": 0, "8": 0, "12": 0}
    graded = [name for name, grade in grades.items() for _ in range(grade)]
    ideal = 3 + 2 / math.log2(3) + 2 / 2 + 1 / math.log2(5) + 1 / math.log2(6)
    gained = 2 + 3 / math.log2(3) + 1 / math.log2(5) + 2 / math.log2(7) + 1 / math.log2(9)
    ranking = "9 > 4 > 7 > 2 > 8 > 11 > 12 > 30"
    assert score("ndcg@10", ranking, graded) == pytest.approx(gained / ideal)
    assert score("ndcg@10", "4 > 9 > 11 > 30 > 2", graded) == 1
    assert score("ndcg@10", "4", graded) == pytest.approx(3 / ideal)
    beyond = " > ".join([*map(str, range(50, 60)), "4"])
    assert score("ndcg@10", beyond, graded) == 0
    assert score("ndcg@10", "no idea", graded) == 0


def test_how_a_ranking_is_read():
    assert written_ranking(" 3 > 1>2 > 3\n7 > 8") == ["3", "1", "2"]
    assert written_ranking("[ID: 3] > ID1") == ["3", "1"]
    assert written_ranking("first 12, then 4 > 5") == ["4", "5"]
    assert written_ranking("none") == []


def test_a_text_that_is_repeated_needs_its_prefix():
    answer = "qtzev. Amber falcons sleep."
    assert score("prefixed-ratio", f" {answer}\n", ["qtzev", answer]) == 1
    assert score("prefixed-ratio", "Amber falcons sleep.", ["qtzev", answer]) == 0
    # ". Amber " and "s sleep." are 16 of 22 and 22 characters.
    partly = score("prefixed-ratio", "qtzev. Amber badgers sleep.", ["qtzev", answer])
    assert partly == pytest.approx(2 * 17 / 44)
