"""Checks of which tokens an attention method can see, before anyone trains with it.

`audit(Subject(...))` looks at the pairs of tokens that a method leaves visible, at the rotary
distances between them, at what gradients reach, and at whether kernels and the decode cache keep
all of it.
"""

import dataclasses

from ctxext.attention.pieces import Causal
from ctxext.audit import findings
from ctxext.audit.agreement import Agreement, compare_cache, compare_kernels, wrong_block
from ctxext.audit.distances import Pair, pairs
from ctxext.audit.findings import Finding
from ctxext.audit.gradients import leaks, queries_with_gradients
from ctxext.audit.receptive_field import ReceptiveField, receptive_field
from ctxext.audit.subject import Subject, View
from ctxext.audit.visibility import EXACT, Visibility, audited_queries

__all__ = ["EXACT", "Agreement", "Audit", "Finding", "Pair", "Subject", "View", "audit"]


@dataclasses.dataclass(frozen=True)
class Audit:
    """The tokens that a method can see, and everything that is wrong with it."""

    subject: Subject
    findings: list[Finding]
    visibility: list[Visibility]
    """For each kind of layer and set of heads."""
    pairs: list[list[list[Pair]]]
    """The rotary pairs of each of these, by piece; no pieces where nothing is rotated."""
    gradients: int
    """How many queries had gradients computed."""
    field: ReceptiveField
    kernels: list[Agreement]
    cache: Agreement

    @property
    def exact(self) -> bool:
        """Every query was looked at."""
        return len(self.visibility[0].queries) == self.subject.seq_len


def audit(subject: Subject) -> Audit:
    """Look at a method over a model, at a length. It takes seconds, and needs no weights."""
    found: list[Finding] = []
    queries = audited_queries(subject.seq_len, subject.window)
    with_gradients = queries_with_gradients(queries, subject.seq_len)
    base = dataclasses.replace(subject, attention=Causal())
    seen = []
    of_pairs = []
    for kind in subject.kinds:
        (base_view,) = base.views(kind)
        of_base = Visibility.of(base_view, subject.seq_len, queries)
        for view in subject.views(kind):
            visibility = Visibility.of(view, subject.seq_len, queries)
            leaking = leaks(subject, view, with_gradients.tolist())
            found += findings.of_view(visibility, leaking, of_base)
            seen.append(visibility)
            reaches = visibility.highest.max(0).tolist() if kind.rotates else []
            of_pairs.append(
                [
                    pairs(
                        subject,
                        reach,
                        kind=kind,
                        whole=visibility.whole,
                        stretched=piece.stretched,
                    )
                    for reach, piece in zip(reaches, view.pieces, strict=False)
                ]
            )
    field = receptive_field(subject)
    wrong = wrong_block(subject, EXACT)
    found += findings.of_block(wrong)
    if wrong is None:  # which the receptive field relies on
        found += findings.blind_spots(subject, field.reached)
    kernels = compare_kernels(subject)
    cache = compare_cache(subject)
    found += findings.of_agreement([*kernels, cache])
    return Audit(
        subject=subject,
        findings=found,
        visibility=seen,
        pairs=of_pairs,
        gradients=len(with_gradients),
        field=field,
        kernels=kernels,
        cache=cache,
    )
