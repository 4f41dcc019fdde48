"""The evaluations of the command line by their names."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from ctxext import tasks
from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals import Eval, Perplexity, Retrieval, Samples, passkey_protocol, ruler_exact
from ctxext.evals.base import Model
from ctxext.evals.perplexity_names import perplexities
from ctxext.evals.power import plan_sentence
from ctxext.evals.published_passkeys import PROTOCOLS
from ctxext.evals.ruler_reference import MANIFEST, prepared

Budget = Literal["small", "full"]
STANDARD = ("passkey", "kv", "lines", "vt", "mqar", "ppl", "controls")
"""What is asked of a small base model that knows how to copy."""
HELDOUT = Stdlib("heldout")


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """How much is asked, about which texts.

    questions: a file for "qa"; ruler: a directory of RULER's own samples; wording: a file for "passkey:<protocol>".
    """

    seq_lens: tuple[int, ...] = ()
    budget: Budget = "small"
    source: TextSource = HELDOUT
    questions: Path | None = None
    ruler: Path | None = None
    wording: Path | None = None

    @property
    def small(self) -> bool:
        return self.budget == "small"

    @property
    def depths(self) -> tuple[float, ...]:
        return tuple(i / (4 if self.small else 8) for i in range(5 if self.small else 9))

    def ask(self, task: tasks.Task) -> Retrieval:
        """Questions of a task, laid out as it declares (`Task.suite_layout`).

        A small budget has 60 questions per length and a full one 180; where questions share a text,
        which costs less all the same, 120 and 540.
        """
        match task.suite_layout:
            case "whole-text":
                return Retrieval(
                    self.seq_lens, (0.0,), 60 if self.small else 180, task, self.source
                )
            case "shared-context":
                n = 24 if self.small else 60
                return Retrieval(self.seq_lens, self.depths, n, task, self.source, together=True)
            case "depths":
                n = 12 if self.small else 20
                return Retrieval(self.seq_lens, self.depths, n, task, self.source)


def evaluations(
    names: Sequence[str], choice: SuiteConfig, *, load: Callable[[str], Model] | None = None
) -> tuple[Eval, ...]:
    """The evaluations called `names`; "controls" are those of every retrieval that is named with it.

    load: opens the evaluator of "longppl:DIR". Raises ValueError for an unknown name, and for a file that is missing.
    """
    known = _known(names, choice, load)
    found: list[Eval] = []
    for name in names:
        if name != "controls" and name not in known:
            raise ValueError(
                f"there is no evaluation {name!r}; known: {', '.join([*known, 'controls'])}"
            )
        found += known[name]() if name != "controls" else ()
    if "controls" in names:
        found += [control for evaluation in found for control in _controls(evaluation, choice)]
    return tuple(found)


def _known(
    names: Sequence[str], choice: SuiteConfig, load: Any
) -> dict[str, Callable[[], tuple[Eval, ...]]]:
    lengths = choice.seq_lens
    target = {
        "num_documents": 8,
        "num_windows": 1 if choice.small else 4,
        "target_tokens": min(128, min(lengths) // 2),
    }
    per_task = 20 if choice.small else 100
    known: dict[str, Callable[[], tuple[Eval, ...]]] = {
        **{name: lambda name=name: _retrieval(name, choice) for name in tasks.by_suite_name()},
        "ruler": lambda: ruler_exact(lengths, per_task, source=choice.source),
        "ruler:reference": lambda: (
            _samples(_given(choice.ruler, "ruler:reference", "--ruler DIR"), lengths),
        ),
        **{
            f"passkey:{name}": lambda name=name: (
                passkey_protocol(name, lengths, text=choice.wording),
            )
            for name in PROTOCOLS
        },
        "ppl": lambda: (Perplexity(lengths, **target, source=choice.source),),
        **perplexities(names, lengths, small=choice.small, source=choice.source, load=load),
    }
    return known


def _retrieval(name: str, choice: SuiteConfig) -> tuple[Eval, ...]:
    options = tasks.SuiteOptions(min(choice.seq_lens), choice.questions)
    return tuple(map(choice.ask, tasks.by_suite_name()[name].for_suite(name, options)))


def _controls(evaluation: Eval, choice: SuiteConfig) -> tuple[Eval, ...]:
    """Every length without the needle, which also shows what the needle is worth; at the shortest it alone."""
    if not isinstance(evaluation, Retrieval):
        return ()
    fewer = (
        dataclasses.replace(evaluation, n=max(1, evaluation.n // 3)) if choice.small else evaluation
    )
    alone = dataclasses.replace(
        fewer, seq_lens=(min(evaluation.seq_lens),), condition="needle-only"
    )
    return dataclasses.replace(fewer, condition="no-needle"), alone


def _given(path: Path | None, name: str, option: str) -> Path:
    if path is None:
        raise ValueError(f"{name} reads a file of yours: give {option}")
    return path


def _samples(path: Path, seq_lens: Sequence[int]) -> Eval:
    if (path / MANIFEST).is_file():
        return prepared(path)
    if len(seq_lens) != 1:
        raise ValueError(
            f"{path} does not say the length of its samples: give it, as with --seq-len 4096"
        )
    return Samples(str(path), seq_lens[0], f"RULER's files {path.name}")


def promise(evals: Sequence[Eval]) -> list[str]:
    """What the numbers of questions will be able to show, a sentence for each number there is."""
    texts: dict[str, list[str]] = {}
    for x in evals:
        if isinstance(x, Retrieval) and x.condition == "needle":
            items, depths = x.n * len(x.depths), len(x.depths)
            sentence = plan_sentence(items, x.n if x.together else items, depths=depths)
            texts.setdefault(sentence, []).append(x.label or x.title)
    return [f"{', '.join(names)}: {sentence}" for sentence, names in texts.items()]
