"""What the texts of an evaluation are, in words, by the source that its records name."""

from collections.abc import Iterable

from ctxext.evals.record import EvalRecord

STDLIB = "Python's standard library"


def sources_of(records: Iterable[EvalRecord]) -> list[str]:
    """The sources that records name, such as "Stdlib(split=heldout)"; none for unknown ones."""
    return sorted({str(r.protocol["source"]) for r in records if r.protocol.get("source")})


def source_text(source: str) -> str:
    """Such as: files of Python's standard library (Stdlib(split=heldout))."""
    return f"files of {STDLIB} ({source})" if is_stdlib(source) else f"documents of {source}"


def is_stdlib(source: str) -> bool:
    """Whether a source is the sources of Python's standard library, the default of `eval`."""
    return source.partition("(")[0] == "Stdlib"
