"""The evaluations of the command line, by name."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ctxext import tasks
from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals.base import Eval, Model
from ctxext.evals.budget import BUDGETS, Budget
from ctxext.evals.growing_window import GrowingWindow
from ctxext.evals.key_tokens import ContrastiveKeys
from ctxext.evals.longppl import LongPPL
from ctxext.evals.perplexity import Perplexity
from ctxext.evals.perplexity_estimators import ESTIMATORS
from ctxext.evals.power import plan_sentence
from ctxext.evals.published_passkeys import PROTOCOLS, passkey_protocol
from ctxext.evals.published_samples import BENCHMARKS, NEVER_CUT, PublishedSamples, fit
from ctxext.evals.recovery import Recovery
from ctxext.evals.retrieval import Retrieval
from ctxext.evals.rolling_perplexity import RollingPerplexity
from ctxext.evals.ruler import ruler_exact
from ctxext.evals.ruler_generators import MANIFEST, prepared
from ctxext.evals.ruler_samples import Samples
from ctxext.nearest import hint

STANDARD = (
    "passkey",
    "kv",
    "lines",
    "vt",
    "mqar",
    "ppl",
    "growing-window",
    "recovery",
    "controls",
)
"""The default: a small base model that can copy answers some of it."""
BY_IMPORTANCE = (
    "passkey",
    "growing-window",
    "recovery",
    "ppl",
    "kv",
    "lines",
    "mqar",
    "vt",
)
"""The order in which a budget in minutes takes the evaluations of the default, if it has no time
for all: one answer from far away, the loss in a single reading of each book, what is left of a
needle, then what tells more of the same."""
CONTROLS = "controls"
OTHER_KEYS = "longppl:"
"""Prefix of LongPPL with the key tokens of another model, whose path follows."""
HELDOUT = Stdlib("heldout")
MOST_DEPTHS = 8
"""Depths at which recovery is measured."""
ROOM_PER_DEPTH = 256
"""Tokens of a text for each of these depths, which has two needles while it is built."""


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """How many questions there are, and about which texts.

    books: the text of "growing-window", a document each; None: `source`. questions: a file for
    "qa" and for published benchmarks. ruler: a directory of RULER's own samples for
    "ruler:reference". wording: for tasks that have two. passkey_text: a file with the authors' own
    prompt for "passkey:<protocol>". count_tokens: of a text, with BOS. load: opens the other model
    of "longppl:DIR"; checksum: that of its parameters and tokenizer, which tells models of one name
    apart.
    """

    seq_lens: tuple[int, ...] = ()
    budget: Budget = BUDGETS["small"]
    source: TextSource = HELDOUT
    books: TextSource | None = None
    questions: Path | None = None
    ruler: Path | None = None
    wording: tasks.ProseOrCode = "prose"
    passkey_text: Path | None = None
    count_tokens: Callable[[str], int] | None = dataclasses.field(default=None, repr=False)
    load: Callable[[str], Model] | None = dataclasses.field(default=None, repr=False)
    checksum: Callable[[str], str] | None = dataclasses.field(default=None, repr=False)

    @property
    def depths(self) -> tuple[float, ...]:
        return _spread(self.budget.depth_steps + 1)

    def ask(self, task: tasks.Task) -> Retrieval:
        """Questions of a task, laid out as it declares (`Task.suite_layout`).

        A small budget has 60 questions per length, a medium one 100 and a full one 180; where
        questions share a text, which costs less, 120, 200 and 540.
        """
        budget = self.budget
        if task.suite_layout == "whole-text":
            return Retrieval(self.seq_lens, (0.0,), budget.whole_texts, task, self.source)
        shares = task.suite_layout.startswith("shared") or budget.prefers_shared
        if shares and task.supports_shared_context:
            n = budget.shared_texts
            depths = self.depths
            if budget.prefers_shared:
                room = max(2, min(self.seq_lens) // task.tokens_per_question)
                depths = _spread(min(len(depths), room))
            return Retrieval(self.seq_lens, depths, n, task, self.source, shared_context=True)
        return Retrieval(self.seq_lens, self.depths, budget.per_depth, task, self.source)


def _retrieval(name: str, config: SuiteConfig) -> tuple[Eval, ...]:
    options = tasks.SuiteOptions(min(config.seq_lens), config.questions, config.wording)
    return tuple(map(config.ask, tasks.by_suite_name()[name].for_suite(name, options)))


def _ruler(config: SuiteConfig) -> tuple[Eval, ...]:
    return ruler_exact(config.seq_lens, config.budget.per_ruler_task, source=config.source)


def _ruler_samples(config: SuiteConfig) -> tuple[Eval, ...]:
    path = _required(config.ruler, "ruler:reference", "--ruler DIR")
    if (path / MANIFEST).is_file():
        return (prepared(path),)
    if len(config.seq_lens) != 1:
        raise ValueError(
            f"{path} does not say the length of its samples: give it, as with --seq-len 4096"
        )
    return (Samples(str(path), config.seq_lens[0], f"RULER's files {path.name}"),)


def _protocol(name: str, config: SuiteConfig) -> tuple[Eval, ...]:
    return (passkey_protocol(name, config.seq_lens, text=config.passkey_text),)


def _published(benchmark: str, config: SuiteConfig) -> tuple[Eval, ...]:
    path = _required(config.questions, benchmark, "--questions FILE")
    budget = config.budget.whole_texts
    evaluation = PublishedSamples(benchmark, str(path), config.seq_lens, budget)
    if benchmark in NEVER_CUT:
        if config.count_tokens is None:
            raise ValueError(f"{benchmark} is chosen by length: set count_tokens")
        evaluation = dataclasses.replace(evaluation, fitting=fit(evaluation, config.count_tokens))
    return (evaluation,)


def _perplexity(config: SuiteConfig) -> tuple[Eval, ...]:
    return (
        Perplexity(
            config.seq_lens,
            num_documents=min(8, config.budget.documents),
            num_windows=config.budget.windows,
            target_tokens=min(128, min(config.seq_lens) // 2),
            source=config.source,
        ),
    )


def _rolling_perplexity(estimator: str, config: SuiteConfig) -> tuple[Eval, ...]:
    """The published stride where the lengths allow it; the same documents for all.

    A smaller budget reads the first of a larger one's documents.
    """
    shortest, longest = min(config.seq_lens), max(config.seq_lens)
    return (
        RollingPerplexity(
            config.seq_lens,
            estimator=estimator,
            stride=min(256, max(1, shortest // 2)),
            min_tokens=longest,
            max_tokens=4 * longest,
            source=config.source,
            num_documents=config.budget.documents,
        ),
    )


def _growing_window(config: SuiteConfig) -> tuple[Eval, ...]:
    """Books at the longest length alone, which shows all shorter ones too."""
    longest = max(config.seq_lens)
    source = config.books or config.source
    return (GrowingWindow((longest,), num_documents=config.budget.books, source=source),)


def _recovery(config: SuiteConfig) -> tuple[Eval, ...]:
    """Passkeys, at as many depths as the shortest text has room for needles."""
    count = min(len(config.depths), MOST_DEPTHS, max(2, min(config.seq_lens) // ROOM_PER_DEPTH))
    return (
        Recovery(
            config.seq_lens,
            _spread(count),
            config.budget.recovery_texts,
            tasks.Passkey(wording=config.wording),
            config.source,
        ),
    )


def _longppl(config: SuiteConfig, evaluator: str = "") -> tuple[Eval, ...]:
    """The published truncation where the lengths allow it; only longer texts have keys."""
    trunc_len = min(4096, min(config.seq_lens), max(config.seq_lens) // 2)
    keys = ContrastiveKeys(
        trunc_len=trunc_len,
        stride=max(1, trunc_len // 4),
        evaluator=evaluator,
        weights=config.checksum(evaluator) if evaluator and config.checksum else "",
        load=config.load if evaluator else None,
    )
    return (
        LongPPL(
            tuple(n for n in config.seq_lens if n > trunc_len),
            source=config.source,
            num_documents=config.budget.documents,
            keys=keys,
        ),
    )


EVALUATIONS: dict[str, Callable[[SuiteConfig], tuple[Eval, ...]]] = {
    "ruler": _ruler,
    "ruler:reference": _ruler_samples,
    **{name: partial(_published, name) for name in BENCHMARKS},
    **{f"passkey:{name}": partial(_protocol, name) for name in PROTOCOLS},
    "ppl": _perplexity,
    **{f"ppl:{name}": partial(_rolling_perplexity, name) for name in ESTIMATORS},
    "longppl": _longppl,
    "growing-window": _growing_window,
    "recovery": _recovery,
}
"""Evaluations by name, besides those of tasks, "longppl:DIR" and "controls"."""


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError, with the nearest name, for one that no evaluation has."""
    known = [*tasks.by_suite_name(), *EVALUATIONS, f"{OTHER_KEYS}DIR", CONTROLS]
    for name in names:
        if name not in known and not name.startswith(OTHER_KEYS):
            raise ValueError(f"there is no evaluation {name!r}; {hint(name, known)}")


def evaluations(names: Sequence[str], config: SuiteConfig) -> tuple[Eval, ...]:
    """The evaluations called `names`; "controls" are those of every retrieval named with it.

    Raises ValueError for an unknown name, and for a file that an evaluation needs and lacks.
    """
    check_names(names)
    chosen: list[Eval] = []
    for name in names:
        if name == CONTROLS:
            continue
        if name.startswith(OTHER_KEYS):
            chosen += _longppl(config, name.removeprefix(OTHER_KEYS))
        elif name in tasks.by_suite_name():
            chosen += _retrieval(name, config)
        else:
            chosen += EVALUATIONS[name](config)
    if CONTROLS in names:
        chosen += [control for evaluation in chosen for control in _controls(evaluation, config)]
    return tuple(chosen)


def _controls(evaluation: Eval, config: SuiteConfig) -> tuple[Eval, ...]:
    """Every length without the needle, and the shortest with nothing else.

    The former also shows how much the needle helps.
    """
    if not isinstance(evaluation, Retrieval):
        return ()
    n = max(1, int(evaluation.n * config.budget.control_share))
    floor = dataclasses.replace(evaluation, n=n, condition="no-needle")
    shortest = (min(evaluation.seq_lens),)
    alone = dataclasses.replace(evaluation, n=n, condition="needle-only", seq_lens=shortest)
    return floor, alone


def _spread(count: int) -> tuple[float, ...]:
    """`count` depths, at least two, from 0 to 1."""
    return tuple(i / (count - 1) for i in range(count))


def _required(path: Path | None, name: str, option: str) -> Path:
    if path is None:
        raise ValueError(f"{name} reads a file that you provide: give {option}")
    return path


def power_statements(evals: Sequence[Eval]) -> list[str]:
    """Sentences about the differences that each number of questions can show."""
    names: dict[str, list[str]] = {}
    for evaluation in evals:
        if isinstance(evaluation, Retrieval) and evaluation.condition == "needle":
            num_depths = len(evaluation.depths)
            num_items = evaluation.n * num_depths
            num_texts = evaluation.n if evaluation.shared_context else num_items
            sentence = plan_sentence(num_items, num_texts, depths=num_depths)
            names.setdefault(sentence, []).append(evaluation.full_title)
    return [f"{', '.join(titles)}: {sentence}" for sentence, titles in names.items()]
