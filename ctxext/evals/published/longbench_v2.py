"""LongBench v2 (arXiv 2412.15204): questions with four choices about long texts, in JSON."""

from collections.abc import Iterator
from pathlib import Path

from ctxext.evals.published.sample import PublishedSample, fill, read_entries

LETTERS = "ABCD"
STEM = "The correct answer is ("
"""The beginning of an answer as the benchmark reads it: a base model only has to go on."""
PROMPT = "$DOC$\n\nQuestion: $Q$\n(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n(D) $C_D$"
TEMPLATE = "0shot.txt"
"""The authors' file of the prompt without examples, in whose wording is asked where it is at
hand."""


def longbench_v2(path: Path, limit: int | None = None) -> Iterator[PublishedSample]:
    """The samples of a file, in the authors' wording if `0shot.txt` is next to it, or in `prompts`.

    The prompt ends with the beginning of the answer. Raises ValueError that names the file and the
    entry.
    """
    templates = [path.parent / TEMPLATE, path.parent / "prompts" / TEMPLATE]
    published = next((template for template in templates if template.is_file()), None)
    template = published.read_text(errors="replace") if published else PROMPT
    for number, entry in read_entries(path, limit):
        answer = entry["answer"].text()
        if answer not in tuple(LETTERS):
            raise ValueError(f"{entry.location}.answer is {answer!r}, not one of A, B, C, D")
        values = {"$DOC$": entry["context"].text(), "$Q$": entry["question"].text()}
        values |= {f"$C_{x}$": entry[f"choice_{x}"].text() for x in LETTERS}
        facts = {name: entry[name].text() for name in ("difficulty", "length") if entry.has(name)}
        yield PublishedSample(
            dataset=entry["domain"].text() if entry.has("domain") else "longbench-v2",
            place=number,
            prompt=f"{fill(template, values).rstrip()}\n\n{STEM}",
            answer=f"{answer})",
            references=[answer],
            metric="longbench-v2:choice",
            max_new_tokens=8,
            choices=[f"{letter})" for letter in LETTERS if letter != answer],
            stem=STEM,
            facts={"wording": "LongBench's" if published else "ours", **facts},
        )
