"""Tasks whose text is made of lines: what holds for all of them."""

import numpy as np
import pytest

from ctxext.tasks import SuiteOptions, by_suite_name, without_needles
from ctxext.tasks.building.line_questions import order_lines
from support.synthetic import TOKENIZERS, context, haystack

NAMES = ("graphwalks", "many-shot", "mrcr", "mrcr-whole", "rag", "rerank")
TASKS = [task for name in NAMES for task in by_suite_name()[name].for_suite(name, SuiteOptions(9))]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_questions_depend_on_their_random_stream_alone(task):
    def plain(seed):
        examples = task.shared_examples(context(seed), 1500, [0.2, 0.9])
        return [(e.prompt.tolist(), e.answer.tolist(), e.meta, e.references) for e in examples]

    assert plain(5) == plain(5)
    assert plain(5) != plain(6)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_control_has_haystack_in_place_of_the_needles_and_nothing_else_changes(task):
    examples = task.shared_examples(context(3), 1500, [0.2, 0.9])
    controls = without_needles(examples, np.random.default_rng(0), haystack("bundled"))
    spans = [span for example in examples for span in example.meta["needles"]]
    for example, control in zip(examples, controls, strict=True):
        changed = np.zeros(len(example.prompt), bool)
        for start, size in spans:
            assert start >= len(context(0).bos) and start + size <= example.num_shared_tokens
            changed[start : start + size] = True
        assert np.array_equal(example.prompt[~changed], control.prompt[~changed])
        decode = TOKENIZERS["bundled"].decode
        for start, size in example.meta["needles"]:
            line = decode(example.prompt[start : start + size].tolist())
            assert line not in decode(control.prompt.tolist())


def test_lines_are_where_their_depths_say():
    order = order_lines(context(0), 9, {0: 1.0, 1: 0.0, 2: 0.5, 3: 0.5}, task="t")
    assert sorted(order) == list(range(9))
    assert order[0] == 1 and order[-1] == 0
    assert {order.index(2), order.index(3)} <= {3, 4, 5}
    with pytest.raises(ValueError, match="t: depth 2 is outside 0..1"):
        order_lines(context(0), 9, {0: 2}, task="t")
