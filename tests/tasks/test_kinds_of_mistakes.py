"""The kind of mistake of what each task asks for."""

import numpy as np

from ctxext.tasks import SuiteOptions, TaskContext, by_suite_name
from ctxext.tasks.building.scores import failure
from support.synthetic import TOKENIZERS, haystack


def test_every_task_with_answers_in_words_knows_a_right_beginning():
    """What a task asks for, with its last half replaced: the kind of mistake of its own answer."""
    context = TaskContext(np.random.default_rng(0), TOKENIZERS["bundled"], haystack("bundled"))
    kinds = {}
    for name, task in by_suite_name().items():
        if name == "qa":
            continue  # asks about a file
        for asked in task.for_suite(name, SuiteOptions(1024)):
            example = asked.example(context, 1024, 0.5)
            (answer, *_) = example.references or ("",)
            if answer.isalpha() and len(answer) > 4:
                wrong = answer[: (len(answer) + 1) // 2] + "qqq"
                kinds[name] = failure(wrong, [answer], distractors=example.distractors)
    assert {"facts", "association", "vt", "cwe", "fwe"} <= set(kinds)
    assert set(kinds.values()) == {"right beginning"}
