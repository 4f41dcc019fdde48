"""Solvers of the synthetic tasks that read the decoded prompt with regular expressions."""

import re
from collections import Counter


def solve(name: str, text: str) -> list[str]:
    """The answer of a reader who understands the question of task `name`, in order."""
    return {"niah": _niah, "lines": _lines, "vt": _tracking, "cwe": _common, "fwe": _frequent}[
        name
    ](text)


def _niah(text: str) -> list[str]:
    body, question = text.rsplit("\n", 1)
    found = re.findall(r"\nNote: (?:the|one) code for (\S+) is (\S+)(?=\n|$)", "\n" + body)
    keys = re.fullmatch(
        r"Note: (?:the code|all the codes) for (.*?)(?:, in this order,)? (?:is|are)", question
    )
    assert keys, question
    return [value for asked in keys[1].split(" and ") for key, value in found if key == asked]


def _lines(text: str) -> list[str]:
    body, question = text.rsplit("\n", 1)
    asked = re.fullmatch(r"The drawer (\S+) holds", question)
    assert asked, question
    return re.findall(rf"\nThe drawer {asked[1]} holds (\d+)(?=\n|$)", "\n" + body)


def _tracking(text: str) -> list[str]:
    asked = re.search(r"\nNames that stand for (\d+), from first to last:$", text)
    assert asked, text[-100:]
    known: dict[str, str] = {}
    for name, given in re.findall(r"\nLet (\w+) be (\w+)\.(?=\n)", text):
        known[name] = known.get(given, given)
    return [name for name, value in known.items() if value == asked[1]]


def _most(text: str, start: str, question: str) -> list[str]:
    found = re.search(question, text)
    assert found, text[-100:]
    words = text.rsplit(start, 1)[1].split("\n")[0].split()
    counts = Counter(word for word in words if word != "...").most_common()
    number = int(found[1])
    ties = number < len(counts) and counts[number - 1][1] == counts[number][1]
    return [] if ties or number > len(counts) else [word for word, _ in counts[:number]]


def _common(text: str) -> list[str]:
    return _most(text, "\nList:", r"\nThe (\d+) words of the list that occur most often:$")


def _frequent(text: str) -> list[str]:
    return _most(
        text, "\nCoded text:", r"\nThe (\d+) words that occur most often in it, dots aside:$"
    )
