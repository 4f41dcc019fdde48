"""Everything that is wrong with what a method can see, in a sentence each."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ctxext.attention.pieces import Causal
from ctxext.audit.agreement import Agreement, WrongBlock
from ctxext.audit.gradients import Leak
from ctxext.audit.receptive_field import receptive_field
from ctxext.audit.subject import Runs, Subject, runs, runs_text
from ctxext.audit.visibility import Row, Visibility


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong, or that models are known to fail on."""

    kind: str
    """A short name for programs, such as "future"."""
    sentence: str


def of_view(visibility: Visibility, leaks: Sequence[Leak], base: Visibility) -> Iterator[Finding]:
    """Everything wrong in some layers. base: full causal attention in the same layers."""
    where = f"In {visibility.view.name}: " if visibility.view.name else ""
    for kind, sentence in _of_view(visibility, leaks, base):
        yield Finding(kind, f"{where}{sentence}.")


def _of_view(
    visibility: Visibility, leaks: Sequence[Leak], base: Visibility
) -> Iterator[tuple[str, str]]:
    queries = visibility.queries
    yield from _future(visibility, leaks)
    twice = np.flatnonzero(visibility.twice)
    if twice.size:
        row = visibility.row(int(queries[twice[-1]]))
        pieces = " and ".join(str(visibility.view.numbers[p]) for p in _pieces_with(row))
        yield (
            "twice",
            f"Keys are counted twice in one softmax: query {row.query:,} has "
            f"{_keys(row.twice)} in pieces {pieces}, and "
            f"{twice.size:,} of {_looked_at(visibility)} have such keys; the weight of these keys "
            "depends on the kernel",
        )
    seen = visibility.keys.sum(1)
    blind = np.flatnonzero(seen == 0)
    if blind.size:
        yield (
            "nothing",
            f"{blind.size:,} of {_looked_at(visibility)} see no key at all, the first is "
            f"{queries[blind[0]]:,}; their output means nothing",
        )
    not_itself = np.flatnonzero(~visibility.itself & (seen > 0))
    if not_itself.size:
        yield (
            "itself",
            f"{not_itself.size:,} of {_looked_at(visibility)} do not see themselves, the first is "
            f"{queries[not_itself[0]]:,}",
        )
    negative = np.flatnonzero(visibility.lowest.min(1) < 0)
    if visibility.view.kind.rotates and negative.size:
        lowest = visibility.lowest[negative[0]]
        piece = visibility.view.numbers[int(lowest.argmin())]
        yield (
            "negative distance",
            f"Earlier keys are rotated as if they were later: at query {queries[negative[0]]:,} "
            f"piece {piece} has the rotary distance {lowest.min():,g}",
        )
    if visibility.future.any():
        return  # a text without an order has no beginning to lose
    lost = visibility.without_start() & ~base.without_start()
    no_sink = np.flatnonzero(lost & (seen > 0))
    if no_sink.size:
        yield (
            "no sink",
            f"There is no sink: {no_sink.size:,} of {_looked_at(visibility)}, the first is "
            f"{queries[no_sink[0]]:,}, do not see the beginning of a text (a token that sees "
            "itself alone), on which models put the weight that they need nowhere else; they fail "
            "there without training (arXiv 2309.17453)",
        )


def _future(visibility: Visibility, leaks: Sequence[Leak]) -> Iterator[tuple[str, str]]:
    early = np.flatnonzero(visibility.future)
    if early.size:
        row = visibility.row(int(visibility.queries[early[0]]))
        sentence = (
            f"Queries see the future: query {row.query:,} sees {_keys(row.future)}, and "
            f"{early.size:,} of {_looked_at(visibility)} see later tokens"
        )
        if leaks:
            sign = {1: "positive", -1: "negative"}.get(leaks[0].sign, "zero in sum")
            sentence += (
                f"; the output of query {leaks[0].query:,} has a gradient by the "
                f"{leaks[0].by} of token {leaks[0].key:,} ({sign} by its value)"
            )
        yield "future", sentence
    elif leaks:
        yield (
            "future",
            f"The output of query {leaks[0].query:,} depends on the {leaks[0].by} of the later "
            f"token {leaks[0].key:,}, although no mask shows it; {len(leaks):,} queries do so",
        )


def blind_spots(subject: Subject, reached: np.ndarray) -> Iterator[Finding]:
    """Tokens that do not reach the last one through all layers, but do by full attention."""
    base = receptive_field(dataclasses.replace(subject, attention=Causal())).reached
    missing = base & ~reached
    if missing.any():
        layers = f"{len(subject.layers)} layers" if len(subject.layers) > 1 else "one layer"
        yield Finding(
            "blind spot",
            f"After {layers}, the last of {subject.seq_len:,} tokens still cannot depend on "
            f"{missing.sum():,} of them: {runs_text(runs(missing))}.",
        )


def of_block(wrong: WrongBlock | None) -> Iterator[Finding]:
    """A block test that contradicts its mask."""
    if wrong is None:
        return
    yield Finding(
        "block",
        f"{wrong.mask}.block says {wrong.says} of queries {wrong.queries[0]:,}-"
        f"{wrong.queries[1]:,} and keys {wrong.keys[0]:,}-{wrong.keys[1]:,}, but "
        f"{wrong.mask}.visible says otherwise: kernels that skip blocks compute something else.",
    )


def of_agreement(agreements: Sequence[Agreement]) -> Iterator[Finding]:
    """Kernels and the cache that compute something else than `dense`."""
    for agreement in agreements:
        if agreement.result == "different":
            name = "cached decoding" if agreement.name == "cache" else f"kernel {agreement.name}"
            yield Finding(
                "cache" if agreement.name == "cache" else "kernel",
                f"The {name} does not compute what the dense kernel does: {agreement.detail}.",
            )


def _looked_at(visibility: Visibility) -> str:
    count = len(visibility.queries)
    sampled = "" if count == visibility.seq_len else " that were looked at"
    return f"{count:,} queries{sampled}"


def _keys(of_row: Runs) -> str:
    is_one = len(of_row) == 1 and of_row[0][0] == of_row[0][1]
    return f"{'key' if is_one else 'keys'} {runs_text(of_row)}"


def _pieces_with(row: Row) -> list[int]:
    """The pieces that have the first key that is counted twice."""
    key = row.twice[0][0]
    return [
        piece
        for piece, of_piece in enumerate(row.pieces)
        if any(first <= key <= last for first, last in of_piece)
    ]
