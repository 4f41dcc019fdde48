"""Solvers of the synthetic tasks that read the decoded prompt with regular expressions."""

import re
from collections import Counter


def solve(name: str, text: str) -> list[str]:
    """The answer of a reader who understands the question of task `name`, in order."""
    solvers = {
        "niah": _niah,
        "lines": _lines,
        "vt": _tracking,
        "cwe": _common,
        "fwe": _frequent,
    }
    return solvers[name](text)


def _niah(text: str) -> list[str]:
    body, question = text.rsplit("\n", 1)
    needles = re.findall(r"\nNote: (?:the|one) code for (\S+) is (\S+)(?=\n|$)", "\n" + body)
    keys = re.fullmatch(
        r"Note: (?:the code|all the codes) for (.*?)(?:, in this order,)? (?:is|are)", question
    )
    assert keys, question
    queries = keys[1].split(" and ")
    return [value for query in queries for key, value in needles if key == query]


def _lines(text: str) -> list[str]:
    body, question = text.rsplit("\n", 1)
    drawer = re.fullmatch(r"The drawer (\S+) holds", question)
    assert drawer, question
    return re.findall(rf"\nThe drawer {drawer[1]} holds (\d+)(?=\n|$)", "\n" + body)


def _tracking(text: str) -> list[str]:
    question = re.search(r"\nNames that stand for (\d+), from first to last:$", text)
    assert question, text[-100:]
    values: dict[str, str] = {}
    for name, assigned in re.findall(r"\nLet (\w+) be (\w+)\.(?=\n)", text):
        values[name] = values.get(assigned, assigned)
    return [name for name, value in values.items() if value == question[1]]


def _most_frequent(text: str, start: str, pattern: str) -> list[str]:
    question = re.search(pattern, text)
    assert question, text[-100:]
    words = text.rsplit(start, 1)[1].split("\n")[0].split()
    counts = Counter(word for word in words if word != "...").most_common()
    number = int(question[1])
    is_tied = number < len(counts) and counts[number - 1][1] == counts[number][1]
    if is_tied or number > len(counts):
        return []
    return [word for word, _ in counts[:number]]


def _common(text: str) -> list[str]:
    pattern = r"\nThe (\d+) words of the list that occur most often:$"
    return _most_frequent(text, "\nList:", pattern)


def _frequent(text: str) -> list[str]:
    pattern = r"\nThe (\d+) words that occur most often in it, dots aside:$"
    return _most_frequent(text, "\nCoded text:", pattern)
