"""Questions of a file: prompts are compared with the file, and broken files are named."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.evals import Retrieval
from ctxext.evals.oracle import AnswerKey, EchoPrompt
from ctxext.tasks import QA, TaskContext
from ctxext.tasks.base import encode_fragment
from ctxext.tasks.building.json_entries import file_sha256
from ctxext.tasks.building.question_files import read_questions
from support.toy_tokenizer import toy_documents, toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
HAYSTACK = toy_documents(TOKENIZER)
NEWLINE = encode_fragment(TOKENIZER, "\n")
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)

TOWNS = ("Velm", "Orsk", "Tarn", "Quill", "Ebbe", "Moss")
FIRST = ("Oda", "Ilja", "Runa", "Pia", "Sten", "Aino", "Leif", "Tove")
LAST = ("Brask", "Venn", "Tolk", "Lind", "Falk", "Dahl")
WORKS = ("mill", "bridge", "tower", "gate")


def passage(i: int, j: int) -> tuple[str, str, str]:
    """Context, question and answer: four works for each town, every answer in one passage only."""
    master = f"{FIRST[(3 * i + j) % 8]} {LAST[i]}"
    town = TOWNS[i]
    work = WORKS[j]
    text = (
        f"In {1500 + 37 * i + 11 * j} {town} wanted a {work}. "
        f"It was {master} who made it, in {j + 2} years."
    )
    more = " Nobody had seen the like before, and many came from far away." * (i + j)
    return text + more, f"Who made the {work} of {town}?", master


def squad() -> dict:
    def qa(name: str, question: str, *answers: str, **more) -> dict:
        return {
            "id": name,
            "question": question,
            "answers": [{"text": a, "answer_start": 0} for a in answers],
            **more,
        }

    articles = []
    for i, town in enumerate(TOWNS):
        paragraphs = []
        for j in range(4):
            text, question, answer = passage(i, j)
            questions = [
                qa(f"{town}-{j}", question, answer, answer, is_impossible=False),
                # Not answerable, and two that can be guessed.
                qa(f"open-{town}-{j}", "Why?", is_impossible=True),
                qa(f"own-{town}-{j}", f"Was it {answer}?", answer),
                qa(f"no-{town}-{j}", "Was it old?", "No"),
            ]
            paragraphs.append({"context": text, "qas": questions})
        articles.append({"title": f"{town}_town", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": articles}


def hotpot() -> list:
    entries = []
    for i, town in enumerate(TOWNS):
        passages = [passage(i, j) for j in range(4)]
        context = [
            [f"{work} of {town}", [text[:30], text[30:]]]
            for work, (text, *_) in zip(WORKS, passages, strict=True)
        ]
        for j, (_, question, answer) in enumerate(passages):
            facts = [[context[j][0], 0], [context[(j + 1) % 4][0], 1]]
            entries.append(
                {
                    "_id": f"{town}-{j}",
                    "question": question,
                    "answer": answer,
                    "type": "bridge",
                    "supporting_facts": facts,
                    "context": context,
                }
            )
    return [*entries, {**entries[0], "_id": "yes", "answer": "yes"}]


def own() -> str:
    singles = [passage(i, 0) for i in range(6)]
    pairs = [passage(i, 1) for i in range(6)]
    lines = [{"question": q, "answers": [a, a.upper()], "document": text} for text, q, a in singles]
    lines += [
        {"question": q, "answers": [a], "documents": [text, pairs[i - 1][0]]}
        for i, (text, q, a) in enumerate(pairs)
    ]
    return "\n\n".join(map(json.dumps, lines)) + "\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("qa")
    (root / "squad.json").write_text(json.dumps(squad()))
    (root / "hotpot.json").write_text(json.dumps(hotpot()))
    (root / "own.jsonl").write_text(own())
    return root


def read(path):
    return read_questions(str(path), file_sha256(str(path)))


def example(task, seed, seq_len, depth=None):
    context = TaskContext(np.random.default_rng(seed), TOKENIZER, HAYSTACK)
    return task.example(context, seq_len, depth)


def test_three_formats_are_read_into_one_form(files):
    first = passage(0, 0)
    for name, questions, documents in (
        ("squad.json", 24, 24),
        ("hotpot.json", 24, 24),
        ("own.jsonl", 12, 12),
    ):
        file = read(files / name)
        assert (len(file.questions), len(file.passages)) == (questions, documents)
        question = file.questions[0]
        assert (question.text, question.answers[0]) == first[1:]
        assert file.passages[question.gold[0]].text == first[0]
        for question in file.questions:
            assert any(question.answers[0] in file.passages[i].text for i in question.gold)
            assert set(question.gold) <= set(question.article)
    from_squad = read(files / "squad.json")
    assert from_squad.passages[0].title == "Velm town"
    assert from_squad.questions[0].article == (0, 1, 2, 3)
    from_hotpot = read(files / "hotpot.json")
    assert from_hotpot.questions[3].gold == (0, 3)
    assert from_hotpot.questions[3].name == "Velm-3"
    from_jsonl = read(files / "own.jsonl")
    for name in ("own.NDJSON", "own.JSONL"):
        (files / name).write_bytes(b"\xef\xbb\xbf" + (files / "own.jsonl").read_bytes())
        assert read(files / name) == from_jsonl
    assert from_jsonl.questions[0].answers == ("Oda Brask", "ODA BRASK")
    assert from_jsonl.questions[1].name == "line 3"
    assert len(from_jsonl.questions[-1].gold) == 2


TASKS = {
    "squad": lambda root: QA(str(root / "squad.json")),
    "far": lambda root: QA(str(root / "squad.json"), related_first=False, shots=0, metric="any"),
    "article": lambda root: QA(str(root / "squad.json"), article=True, shots=1),
    "hotpot": lambda root: QA(str(root / "hotpot.json"), max_new_tokens=20),
    "own": lambda root: QA(str(root / "own.jsonl"), shots=3),
    "haystack": lambda root: QA(str(root / "own.jsonl"), filler="haystack"),
}


def parts(text: str) -> tuple[str, list[str], str]:
    """The text before the documents, the documents, and the question with its stem."""
    body, question = text.rsplit("\n\nQuestion: ", 1)
    before, *documents = body.split("\n\nDocument:")
    # A document may be cut to the first characters of its heading.
    stubs = ["\n\nDocument:"[:size] for size in range(10, 0, -1)]
    whole = [next((d.removesuffix(s) for s in stubs if d.endswith(s)), d) for d in documents]
    return before, whole, question


@pytest.mark.parametrize("name", TASKS)
@few
@given(seed=seeds, seq_len=st.integers(1450, 1800), depth=st.none() | st.floats(0, 1))
def test_the_prompt_is_exact_and_agrees_with_the_file(files, name, seed, seq_len, depth):
    task = TASKS[name](files)
    e = example(task, seed, seq_len, depth)
    assert len(e.prompt) + e.max_new_tokens == seq_len
    assert e.max_new_tokens == task.max_new_tokens
    file = task.file
    (question,) = [q for q in file.questions if q.name == e.meta["question"]]
    assert e.references == question.answers
    assert TOKENIZER.decode(e.answer.tolist()).strip() == question.answers[0]
    gold = {file.passages[i].text for i in question.gold}
    spans = [TOKENIZER.decode(e.prompt[a : a + n].tolist()) for a, n in e.meta["needles"]]
    assert {span.split("\n", 3)[3] for span in spans} == gold
    assert len(spans) == len(gold)
    text = TOKENIZER.decode(e.prompt.tolist())
    before, documents, last = parts(text)
    assert last == f"{question.text}\nAnswer:"
    assert before.count("Question: ") == task.shots
    assert not any(answer in before for answer in question.answers)
    assert e.meta["distance"] == len(e.prompt) - e.meta["needles"][0][0]
    outside = text
    for span in spans:
        assert outside.count(span.strip()) == 1
        outside = outside.replace(span.strip(), "")
    assert not any(answer.lower() in outside.lower() for answer in question.answers)
    if depth is not None:
        size = sum(n for *_, n in e.meta["haystack"])
        assert abs(e.depth - depth) <= 0.501 / max(1, size)
    if name == "haystack":
        assert len(documents) == len(gold)
        return
    whole = {(f" {d.title}" if d.title else "") + f"\n{d.text}" for d in file.passages}
    uncut = [document for document in documents if document in whole]
    cut = [document for document in documents if document not in whole]
    assert len(uncut) == len(set(uncut))
    # Only the last of each side is cut; both may be cut to the same title.
    assert len(cut) <= 2
    assert all(any(document.startswith(part) for document in whole) for part in cut)


@few
@given(seeds)
def test_an_article_is_whole_and_in_order(files, seed):
    task = TASKS["article"](files)
    e = example(task, seed, 1500, 0.5)
    (question,) = [q for q in task.file.questions if q.name == e.meta["question"]]
    text = TOKENIZER.decode(e.prompt.tolist())
    starts = [text.index(task.file.passages[i].text) for i in question.article]
    assert starts == sorted(starts)
    assert len(starts) == 4
    assert text[starts[0] : starts[-1]].count("\n\nDocument:") == 3


@few
@given(seeds)
def test_related_passages_come_first(files, seed):
    """About three others fit: all three of the same article, or some of them and no other."""
    task = QA(str(files / "squad.json"), shots=0)
    e = example(task, seed, 500, 0.5)
    (question,) = [q for q in task.file.questions if q.name == e.meta["question"]]
    used = {number for number, *_ in e.meta["haystack"]}
    others = set(question.article) - set(question.gold)
    assert used & others
    assert used <= others or others <= used


def test_without_a_length_there_are_only_the_documents_of_the_question(files):
    for name in TASKS:
        e = example(TASKS[name](files), 5, None)
        assert e.meta["haystack"] == []
        _, documents, _ = parts(TOKENIZER.decode(e.prompt.tolist()))
        assert len(documents) == (4 if name == "article" else len(e.meta["needles"]))


@pytest.mark.parametrize("name", TASKS)
def test_a_planted_answer_key_is_recovered(files, name):
    grid = {"seq_lens": (1450, 1600), "depths": (0.0, 0.5, 1.0), "n": 3, "source": toy_source()}
    evaluation = Retrieval(**grid, task=TASKS[name](files))
    key = AnswerKey.of(evaluation, TOKENIZER, manner=lambda ids: [*ids, *NEWLINE])
    for record in evaluation(key):
        assert record.scores.score == 1
        assert record.question.tokens == record.seq_len
        assert record.facts["file_sha256"] == file_sha256(record.question.fields["path"])
    for record in evaluation(dataclasses.replace(key, window=700)):
        reach = record.question.distance + len(record.question.gold) - 1
        assert record.scores.correct == (reach <= 700)
    assert not any(record.scores.score for record in evaluation(EchoPrompt(TOKENIZER)))
    control = dataclasses.replace(evaluation, condition="no-needle")
    examples = zip(evaluation.examples(TOKENIZER), control.examples(TOKENIZER), strict=True)
    for with_needles, without in examples:
        whole = TOKENIZER.decode(with_needles.prompt.tolist())
        rest = TOKENIZER.decode(without.prompt.tolist())
        assert any(answer in whole for answer in with_needles.references)
        assert not any(answer in rest for answer in with_needles.references)


def test_item_names_follow_the_content_of_the_file_and_not_its_path(tmp_path):
    path = tmp_path / "own.jsonl"
    moved = tmp_path / "moved.jsonl"
    path.write_text(own())
    moved.write_text(own())

    def items(path, **options):
        task = QA(str(path), **options)
        return Retrieval(seq_lens=(900,), n=1, source=toy_source(), task=task).items()

    old = items(path)
    assert items(moved) == old
    assert items(path, shots=1) != old
    task = QA(str(path))
    assert len(task.file.questions) == 12
    path.write_text(own().replace("1500", "1501"))
    assert items(path) != old
    assert "1501" in QA(str(path)).file.passages[0].text
    assert "1500" in task.file.passages[0].text
    stale = QA(str(moved))
    assert stale.sha256
    moved.write_text("{}")
    with pytest.raises(ValueError, match="has changed while it was in use"):
        read_questions.__wrapped__(stale.path, stale.sha256)


def test_a_text_that_does_not_fit_is_named_and_never_cut(files):
    path = str(files / "squad.json")
    message = r"^qa, question \w+-\d of \S+squad.json: a prompt of 150 tokens cannot hold"
    with pytest.raises(ValueError, match=message):
        example(QA(path), 0, 150)
    message = r'^qa: 49\d\d\d tokens are needed .* has \d+ that .* set filler to "haystack"$'
    with pytest.raises(ValueError, match=message):
        example(QA(path), 0, 50_000)
    assert example(QA(path, filler="haystack"), 0, 50_000)
    with pytest.raises(ValueError, match="has 23 other questions that do not give question"):
        example(QA(path, shots=24), 0, 5000)
    with pytest.raises(ValueError, match="no question about a text of at most 20 characters"):
        example(QA(path, max_chars=20), 0, 500)
    short = QA(path, max_chars=150)
    for seed in range(20):
        e = example(short, seed, 800)
        ((start, size),) = e.meta["needles"]
        assert len(TOKENIZER.decode(e.prompt[start : start + size].tolist())) < 190


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "exact"}, "'exact' is not known; choose one of f1, any"),
        ({"filler": "none"}, "'none' is not known; choose one of file, haystack"),
        ({"shots": -1}, "shots must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens at least 1"),
    ],
)
def test_impossible_settings_are_refused(files, change, message):
    with pytest.raises(ValueError, match=message):
        QA(str(files / "squad.json"), **change)


LINE = {"question": "Q?", "answers": ["A"], "document": "A."}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", r"a\.json is not JSON"),
        ("a.json", {"version": 1}, "is neither SQuAD"),
        ("a.json", {"data": []}, "holds 0 questions"),
        ("a.json", {"data": [{"title": "x"}]}, r'a\.json: \$\.data\[0\] has no "paragraphs"'),
        (
            "a.json",
            json.dumps(squad()).replace('"question"', '"query"', 1),
            r'data\[0\]\.\S+\.qas\[0\] has no "question"',
        ),
        (
            "a.json",
            json.dumps(hotpot()).replace('["mill of Velm", 0]', '["x", 0]', 1),
            r"\$\[0\]\.supporting_facts name",
        ),
        ("a.jsonl", json.dumps(LINE) + '\n\n{"question":', r"a\.jsonl, line 3, is not JSON"),
        ("a.jsonl", {**LINE, "answers": []}, r"a\.jsonl, line 1: \$ has no answer"),
        ("a.jsonl", {"question": "Q?", "answers": ["A"]}, r'line 1: \$ has no "document"'),
        ("a.jsonl", {**LINE, "documents": []}, r"\$\.documents is empty"),
        ("a.jsonl", {**LINE, "documents": [" "]}, r"\$\.documents\[0\] is not a text"),
        ("a.jsonl", {**LINE, "question": "\ud800?"}, r"\$\.question holds half a surrogate pair"),
        ("a.jsonl", {**LINE, "answers": ["Yes"]}, "holds 1 questions, and none"),
    ],
)
def test_broken_files_are_named_with_the_entry(tmp_path, name, content, message):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="nowhere.json cannot be read"):
        QA(str(tmp_path / "nowhere.json")).file  # noqa: B018


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=5,
)


def json_paths(value, path=()):
    """Every path into a JSON value."""
    yield path
    keys = ()
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield from json_paths(value[key], (*path, key))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), which=st.sampled_from([squad, hotpot, own]))
def test_a_corrupted_file_is_read_or_refused_in_one_line(tmp_path_factory, data, which):
    value = which()
    is_jsonl = isinstance(value, str)
    if is_jsonl:
        value = [json.loads(line) for line in value.split("\n\n")]
    value = {"data": value["data"][:2]} if isinstance(value, dict) else value[:3]
    path = data.draw(st.sampled_from(list(json_paths(value))))
    parent = copy.deepcopy({"root": value})
    document = parent
    target = "root"
    for key in path:
        parent = parent[target]
        target = key
    if data.draw(st.booleans()) and path:
        del parent[target]
    else:
        parent[target] = data.draw(JSON)
    root = document["root"]
    as_lines = is_jsonl and isinstance(root, list)
    content = "\n".join(map(json.dumps, root)) if as_lines else json.dumps(root)
    content = content.encode()
    if data.draw(st.integers(0, 9)) == 0:
        content = content[: data.draw(st.integers(0, len(content)))]
    file = tmp_path_factory.mktemp("corrupted") / ("a.jsonl" if is_jsonl else "a.json")
    file.write_bytes(content)
    try:
        read(file)
    except ValueError as error:
        assert str(file) in str(error)
        assert "\n" not in str(error)
        assert not isinstance(error, UnicodeError)
