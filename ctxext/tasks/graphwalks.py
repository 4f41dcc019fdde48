"""Walks on a directed graph that fills the text as a list of edges (after GraphWalks, OpenAI 2025).

The graphs, the wording and the worked examples are our own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np

from ctxext.tasks.base import (
    Example,
    SharedContextTask,
    SuiteLayout,
    SuiteOptions,
    Task,
    TaskContext,
)
from ctxext.tasks.building.line_questions import (
    AskedLines,
    LineQuestion,
    ask_lines,
    order_lines,
)
from ctxext.tasks.building.placement import lines_that_fit
from ctxext.tasks.building.structured_scores import EMPTY_SET
from ctxext.tasks.building.value_lists import MAX_LIST_CHOICES, join_values, max_list_tokens
from ctxext.tasks.building.vocabulary import distinct

Operation = Literal["bfs", "parents"]
Edge = tuple[int, int]
EDGES_WITHOUT_LENGTH = 12
"""Edges of a graph where no length is given."""


class Walk(NamedTuple):
    """A node to start at, the nodes that an operation leads to, and the edges that decide them."""

    start: int
    result: tuple[int, ...]
    edges: tuple[int, ...]
    """Indices of edges; the first is a step from, or to, the start."""


@dataclass(frozen=True)
class GraphWalks(SharedContextTask):
    """As many random edges `zubad -> kolim` as fit, and a question for a set of names.

    bfs: the names whose shortest path from a given one has exactly `hops` edges; parents: those
    with an edge to a given one. The score is the F1 of the sets. Every size of the set from 0 to
    `max_names` is asked for equally often where the graph has it, so that "none", the empty set,
    always written, scores about 1 / (max_names + 1). Worked examples ask about the same graph.

    The graph has E distinct edges between N = E / out_degree names, drawn uniformly: the number of
    edges out of a name is about Poisson distributed. The first of the edges that decide an answer
    is at the depth, as a share of all edges; the others are anywhere. Where nothing is to be found,
    the whole text has to be read.
    """

    name: ClassVar[str] = "graphwalks"
    suite_layout: ClassVar[SuiteLayout] = "shared-context"
    operation: Operation = "bfs"
    """"bfs": names some steps away along the arrows; "parents": names with an arrow to one."""
    hops: int = 2
    """Steps of a bfs."""
    out_degree: float = 1.5
    """Edges per name."""
    max_names: int = 4
    """The most names of an answer."""
    shots: int = 2
    """Worked examples before the question, about other names of the graph; the second's set is
    empty."""

    def __post_init__(self) -> None:
        if self.operation not in get_args(Operation):
            raise ValueError(
                f"{self.name}: operation {self.operation!r} is not known; choose one of "
                f"{', '.join(get_args(Operation))}"
            )
        if min(self.hops, self.max_names) < 1 or self.shots < 0 or self.out_degree <= 0:
            raise ValueError(
                f"{self.name}: hops and max_names must be at least 1, shots at least 0, and "
                "out_degree above 0"
            )

    @classmethod
    def for_suite(cls, suite_name: str, options: SuiteOptions) -> tuple[Task, ...]:
        return tuple(cls(operation) for operation in get_args(Operation))

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A question per depth about one graph; no two are about the same name."""
        depths = [context.draw_depth(depth) for depth in depths]
        names, edges = self._draw_graph(context, seq_len, len(depths))
        asked, shots = self._choose(context, edges, len(depths))
        firsts = zip(asked, depths, strict=True)
        at_depth = {walk.edges[0]: depth for walk, depth in firsts if walk.edges}
        order = order_lines(context, len(edges), at_depth, task=self.name)
        rank = {edge: i for i, edge in enumerate(order)}
        lists = [_listed(context, names, walk) for walk in asked]
        questions = []
        for walk, answer in zip(asked, lists, strict=True):
            wrong = [
                list(other) for other in dict.fromkeys(map(tuple, lists)) if [*other] != answer
            ]
            facts = {
                "name": names[walk.start],
                "num_edges": len(edges),
                "num_names": len(walk.result),
            }
            question = LineQuestion(
                self._question(context, names[walk.start]),
                answer,
                [rank[edge] for edge in walk.edges],
                _names_of(names, walk),
                choices=wrong[:MAX_LIST_CHOICES],
                facts=facts,
            )
            questions.append(question)
        tail = [
            token
            for walk in shots
            for token in self._question(context, names[walk.start]) + _listed(context, names, walk)
        ]
        lines = [context.encode(_line(names, edges[edge])) for edge in order]
        how = AskedLines(self.name, "set-f1", self._max_answer(context, names), tail)
        return ask_lines(context, seq_len, lines, questions, how)

    def _draw_graph(
        self, context: TaskContext, seq_len: int | None, num_questions: int
    ) -> tuple[list[str], list[Edge]]:
        """Names and as many edges between them as leave room for all questions."""
        source = distinct(context.rng, "coined")
        sample = list(islice(source, 64))
        line = max(
            len(context.encode(f"\n{a} -> {b}")) for a, b in zip(sample, sample, strict=True)
        )
        if seq_len is None:
            budget = line * max(EDGES_WITHOUT_LENGTH, 3 * (num_questions + self.shots))
        else:
            question = len(self._question(context, sample[0])) + self._max_answer(context, sample)
            budget = seq_len - len(context.bos) - (1 + self.shots) * question
        num_names = max(2, round(budget / line / self.out_degree))
        names = [*sample, *islice(source, max(0, num_names - len(sample)))][:num_names]

        def size(edge: Edge) -> int:
            return len(context.encode(_line(names, edge)))

        most = num_names * (num_names - 1) // 2
        edges = islice(_random_edges(context.rng, num_names), most)
        return names, lines_that_fit(edges, budget, size)

    def _max_answer(self, context: TaskContext, names: Sequence[str]) -> int:
        """The most tokens of an answer and the newline after it."""
        ids = [context.encode(f" {name}") for name in [*names, EMPTY_SET]]
        return max_list_tokens(context, ids, self.max_names) + len(context.newline)

    def _choose(
        self, context: TaskContext, edges: Sequence[Edge], num_questions: int
    ) -> tuple[list[Walk], list[Walk]]:
        """Walks from different names: to ask about, and for the worked examples.

        Each size of an answer is equally likely; where the graph has none of a size, the nearest.
        """
        rng = context.rng
        by_size: dict[int, list[Walk]] = {}
        walks = self._walks(edges)
        for i in rng.permutation(len(walks)).tolist():
            if len(walks[i].result) <= self.max_names:
                by_size.setdefault(len(walks[i].result), []).append(walks[i])
        sizes = rng.integers(self.max_names + 1, size=num_questions).tolist()
        sizes += [1 - i % 2 for i in range(self.shots)]
        chosen = []
        for size in sizes:
            left = [other for other, of_size in by_size.items() if of_size]
            if not left:
                raise ValueError(
                    f"{self.name}: a graph of {len(edges)} edges is too small for {num_questions} "
                    f"question(s) and {self.shots} worked examples: ask for a longer text"
                )
            chosen.append(by_size[min(left, key=lambda other: abs(other - size))].pop())
        return chosen[:num_questions], chosen[num_questions:]

    def _walks(self, edges: Sequence[Edge]) -> list[Walk]:
        """The walk from every name that the edges mention."""
        after: dict[int, list[int]] = {}
        for i, (source, target) in enumerate(edges):
            start = source if self.operation == "bfs" else target
            after.setdefault(start, []).append(i)
        names = sorted({name for edge in edges for name in edge})
        if self.operation == "parents":
            return [
                Walk(
                    name,
                    tuple(edges[i][0] for i in after.get(name, [])),
                    tuple(after.get(name, [])),
                )
                for name in names
            ]
        return [self._search(name, edges, after) for name in names]

    def _search(self, start: int, edges: Sequence[Edge], after: dict[int, list[int]]) -> Walk:
        """Breadth first, to the names that are exactly `hops` steps away."""
        seen = {start}
        level = [start]
        read = []
        for _ in range(self.hops):
            steps = [i for name in level for i in after.get(name, [])]
            read += steps
            level = list(dict.fromkeys(edges[i][1] for i in steps if edges[i][1] not in seen))
            seen.update(level)
        return Walk(start, tuple(level), tuple(read))

    def _question(self, context: TaskContext, name: str) -> list[int]:
        if self.operation == "parents":
            return context.encode(f"\nNames with an arrow to {name}:")
        steps = "1 step" if self.hops == 1 else f"{self.hops} steps"
        return context.encode(f"\nNames exactly {steps} away from {name} along the arrows:")


def _line(names: Sequence[str], edge: Edge) -> str:
    source, target = edge
    return f"\n{names[source]} -> {names[target]}"


def _listed(context: TaskContext, names: Sequence[str], walk: Walk) -> list[int]:
    """The ids of the result's names with commas between them."""
    result = _names_of(names, walk)
    return join_values(context, [context.encode(f" {name}") for name in result])


def _names_of(names: Sequence[str], walk: Walk) -> list[str]:
    """The names of a result in alphabetical order, or the word for the empty set."""
    return sorted(names[i] for i in walk.result) or [EMPTY_SET]


def _random_edges(rng: np.random.Generator, num_names: int) -> Iterator[Edge]:
    """Endless different edges between different names, uniformly drawn."""
    seen: set[Edge] = set()
    while True:
        source, target = rng.integers(num_names, size=2).tolist()
        if source != target and (source, target) not in seen:
            seen.add((source, target))
            yield source, target
