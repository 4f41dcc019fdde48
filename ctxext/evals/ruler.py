"""RULER's 13 tasks (arXiv 2404.06654), and the variant `ruler-exact` with our own questions.

Tasks, numbers and scores are RULER's. Unlike the original's, every prompt with the space for its
answer is exactly as long as it says, BOS included; haystack, layout, counts, order and example are
drawn for each question; depths cover the text with both ends, with equally many questions each;
an item's name alone seeds it; no answer is inside another word; what cannot fit is an error.
Texts and words are not the original's, so that numbers compare models with each other, but not
with numbers of another variant.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals.record import Condition
from ctxext.evals.retrieval import Retrieval
from ctxext.tasks import CommonWords, FrequentWords, Niah, Task, VariableTracking
from ctxext.tasks.building.scores import Metric

VARIANT = "ruler-exact"


class RulerTask(NamedTuple):
    """How RULER scores a task, and how many tokens it lets a model write."""

    metric: Metric
    max_new_tokens: int
    has_depth: bool = True
    """False: the question is about the whole text."""


_NIAH = RulerTask("all", 128)
_QA = RulerTask("any", 32)

RULER_TASKS: dict[str, RulerTask] = {
    "niah_single_1": _NIAH,
    "niah_single_2": _NIAH,
    "niah_single_3": _NIAH,
    "niah_multikey_1": _NIAH,
    "niah_multikey_2": _NIAH,
    "niah_multikey_3": _NIAH,
    "niah_multivalue": _NIAH,
    "niah_multiquery": _NIAH,
    "vt": RulerTask("all", 30),
    "cwe": RulerTask("all", 120, has_depth=False),
    "fwe": RulerTask("all", 50, has_depth=False),
    "qa_1": _QA,
    "qa_2": _QA,
}
"""RULER's thirteen tasks by its names, in its order."""

RULER_FAMILIES: dict[str, RulerTask] = {
    name.partition("_")[0]: task for name, task in RULER_TASKS.items()
}
"""The same by the first part of the name, which decides how a task is scored."""

HELDOUT = Stdlib("heldout")


def ruler_tasks(seq_len: int, qa: tuple[Task, Task] | None = None) -> dict[str, Task]:
    """The tasks by RULER's names: 13, or 11 without `qa`.

    qa: single-hop, then multi-hop question answering. As in RULER, words repeat 30 and 3 times from
    4,096 tokens on; below that, 6 times and once.
    """
    niah = _NIAH.max_new_tokens
    vt, fwe = (RULER_TASKS[name].max_new_tokens for name in ("vt", "fwe"))
    tasks: dict[str, Task] = {
        "niah_single_1": Niah(hay="noise", max_new_tokens=niah),
        "niah_single_2": Niah(max_new_tokens=niah),
        "niah_single_3": Niah(value="uuid", max_new_tokens=niah),
        "niah_multikey_1": Niah(num_keys=4, max_new_tokens=niah),
        "niah_multikey_2": Niah(hay="needles", max_new_tokens=niah),
        "niah_multikey_3": Niah(hay="needles", key="uuid", value="uuid", max_new_tokens=niah),
        "niah_multivalue": Niah(num_values=4, max_new_tokens=niah),
        "niah_multiquery": Niah(num_keys=4, num_queries=4, max_new_tokens=niah),
        "vt": VariableTracking(max_new_tokens=vt),
        "cwe": CommonWords.for_length(seq_len),
        "fwe": FrequentWords(max_new_tokens=fwe),
    }
    if qa is not None:
        tasks["qa_1"], tasks["qa_2"] = qa
    return tasks


def ruler_exact(
    seq_lens: Sequence[int],
    n: int = 20,
    *,
    qa: tuple[Task, Task] | None = None,
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0),
    source: TextSource = HELDOUT,
    seed: int = 0,
    condition: Condition = "needle",
) -> tuple[Retrieval, ...]:
    """`n` questions of each task at each of `seq_lens` (tokens), evenly spread around `depths`.

    Raises ValueError if `n` is not a multiple of the number of depths.
    """
    if n < 1 or n % len(depths):
        raise ValueError(
            f"ruler: {n} questions cannot be spread evenly over {len(depths)} depths: "
            f"ask for a multiple of {len(depths)}"
        )
    lengths: dict[tuple[str, Task], list[int]] = {}
    for seq_len in seq_lens:
        for name, task in ruler_tasks(seq_len, qa).items():
            lengths.setdefault((name, task), []).append(seq_len)
    suite = []
    for (name, task), sizes in lengths.items():
        has_depth = RULER_TASKS[name].has_depth
        evaluation = Retrieval(
            tuple(sizes),
            depths=depths if has_depth else (0.0,),
            n=n // len(depths) if has_depth else n,
            task=task,
            source=source,
            seed=seed,
            condition=condition,
            jitter=0.5 / max(1, len(depths) - 1) if has_depth else 0.0,
            suite=VARIANT,
            label=name,
        )
        suite.append(evaluation)
    return tuple(suite)
