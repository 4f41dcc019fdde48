"""RULER's 13 tasks (arXiv 2404.06654) with its numbers and its scores, and questions of our own: the variant `exact`.

Unlike the original's, every prompt with the room for its answer is as long as it says, BOS counted; haystack, layout,
counts, order and example are drawn for each question; depths cover the text with both ends, equally many questions
each; an item's name alone seeds it; no answer lies inside another word; what cannot fit is an error. Texts and words
are not the original's, so that numbers are to be compared among models, not with those of another variant.
"""

from collections.abc import Sequence

from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals.retrieval import Condition, Retrieval
from ctxext.tasks import CommonWords, FrequentWords, Niah, Task, VariableTracking

VARIANT = "ruler-exact"
EVERYWHERE = ("cwe", "fwe")
"""Tasks whose question is about the whole text, so that there is no depth."""
QA = ("qa_1", "qa_2")
HELDOUT = Stdlib("heldout")


def ruler_tasks(seq_len: int, qa: tuple[Task, Task] | None = None) -> dict[str, Task]:
    """The tasks by RULER's names: 13, or 11 without `qa`, which is single-hop, then multi-hop question answering.

    Below 4096 tokens words repeat 6 times and once instead of 30 and 3 times, as RULER has it.
    """
    return {
        "niah_single_1": Niah(hay="noise", max_new_tokens=128),
        "niah_single_2": Niah(max_new_tokens=128),
        "niah_single_3": Niah(value="uuid", max_new_tokens=128),
        "niah_multikey_1": Niah(num_keys=4, max_new_tokens=128),
        "niah_multikey_2": Niah(hay="needles", max_new_tokens=128),
        "niah_multikey_3": Niah(hay="needles", key="uuid", value="uuid", max_new_tokens=128),
        "niah_multivalue": Niah(num_values=4, max_new_tokens=128),
        "niah_multiquery": Niah(num_keys=4, num_queries=4, max_new_tokens=128),
        "vt": VariableTracking(max_new_tokens=30),
        "cwe": CommonWords.for_length(seq_len),
        "fwe": FrequentWords(max_new_tokens=50),
        **dict(zip(QA, qa or (), strict=False)),
    }


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
    """`n` questions of each task at each of `seq_lens` (tokens), as many of them around each of `depths`.

    Rows have the `label` `ruler-exact/<RULER's name>`. Raises ValueError if `n` is not a multiple of the depths.
    """
    if n < 1 or n % len(depths):
        raise ValueError(
            f"ruler: {n} questions cannot be spread evenly over {len(depths)} depths: "
            f"ask for a multiple of {len(depths)}"
        )
    jitter = 0.5 / max(1, len(depths) - 1)
    lengths: dict[tuple[str, Task], list[int]] = {}
    for seq_len in seq_lens:
        for name, task in ruler_tasks(seq_len, qa).items():
            lengths.setdefault((name, task), []).append(seq_len)
    suite = []
    for (name, task), sizes in lengths.items():
        place = ((0.0,), n, 0.0) if name in EVERYWHERE else (depths, n // len(depths), jitter)
        suite.append(
            Retrieval(
                tuple(sizes),
                place[0],
                place[1],
                task,
                source,
                seed,
                condition,
                jitter=place[2],
                label=f"{VARIANT}/{name}",
            )
        )
    return tuple(suite)


def ruler_title(suite: Sequence[Retrieval]) -> str:
    """What to call the numbers of a suite: the variant, and what is not in it."""
    names = {evaluation.label.removeprefix(f"{VARIANT}/") for evaluation in suite}
    missing = [name for name in QA if name not in names]
    without = f", without {' and '.join(missing)} (they need question files)" if missing else ""
    return f"{VARIANT}, {len(names)} of 13 tasks{without}"
