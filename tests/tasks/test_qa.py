"""Questions of a file: what is in the prompt is read back and held against the file, and wrong files are named."""

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
from ctxext.tasks.building.question_files import file_sha256, read_questions
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
    town, work = TOWNS[i], WORKS[j]
    text = f"In {1500 + 37 * i + 11 * j} {town} wanted a {work}. It was {master} who made it, in {j + 2} years."
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
            asked = qa(f"{town}-{j}", question, answer, answer, is_impossible=False)
            open_ = qa(f"open-{town}-{j}", "Why?", is_impossible=True)
            guessed = (
                qa(f"own-{town}-{j}", f"Was it {answer}?", answer),
                qa(f"no-{town}-{j}", "Was it old?", "No"),
            )
            paragraphs.append({"context": text, "qas": [asked, open_, *guessed]})
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
    singles, pairs = [passage(i, 0) for i in range(6)], [passage(i, 1) for i in range(6)]
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
    squad, hot, mine = (read(files / name) for name in ("squad.json", "hotpot.json", "own.jsonl"))
    assert squad.passages[0].title == "Velm town" and squad.questions[0].article == (0, 1, 2, 3)
    assert hot.questions[3].gold == (0, 3) and hot.questions[3].name == "Velm-3"
    assert (
        mine.questions[0].answers == ("Oda Brask", "ODA BRASK")
        and mine.questions[1].name == "line 3"
    )
    assert len(mine.questions[-1].gold) == 2


TASKS = {
    "squad": lambda root: QA(str(root / "squad.json")),
    "far": lambda root: QA(str(root / "squad.json"), related_first=False, shots=0, metric="any"),
    "article": lambda root: QA(str(root / "squad.json"), article=True, shots=1),
    "hotpot": lambda root: QA(str(root / "hotpot.json"), max_new_tokens=20),
    "own": lambda root: QA(str(root / "own.jsonl"), shots=3),
    "haystack": lambda root: QA(str(root / "own.jsonl"), filler="haystack"),
}


def parts(text: str) -> tuple[str, list[str], str]:
    """What comes before the documents, the documents, and the question with its stem."""
    body, question = text.rsplit("\n\nQuestion: ", 1)
    before, *documents = body.split("\n\nDocument:")
    stubs = [
        "\n\nDocument:"[:size] for size in range(10, 0, -1)
    ]  # of a document of which no more fitted in
    return (
        before,
        [next((d.removesuffix(s) for s in stubs if d.endswith(s)), d) for d in documents],
        question,
    )


@pytest.mark.parametrize("name", TASKS)
@few
@given(seed=seeds, seq_len=st.integers(1450, 1800), depth=st.none() | st.floats(0, 1))
def test_the_prompt_is_exact_and_holds_what_the_file_says(files, name, seed, seq_len, depth):
    task = TASKS[name](files)
    asked = example(task, seed, seq_len, depth)
    assert (
        len(asked.prompt) + asked.max_new_tokens == seq_len
        and asked.max_new_tokens == task.max_new_tokens
    )
    file = task.file
    (question,) = [q for q in file.questions if q.name == asked.meta["question"]]
    assert (
        asked.references == question.answers
        and TOKENIZER.decode(asked.answer.tolist()).strip() == question.answers[0]
    )
    gold = {file.passages[i].text for i in question.gold}
    spans = [TOKENIZER.decode(asked.prompt[a : a + n].tolist()) for a, n in asked.meta["needles"]]
    assert {span.split("\n", 3)[3] for span in spans} == gold and len(spans) == len(gold)
    text = TOKENIZER.decode(asked.prompt.tolist())
    before, documents, last = parts(text)
    assert last == f"{question.text}\nAnswer:"
    assert before.count("Question: ") == task.shots and not any(
        a in before for a in question.answers
    )
    assert asked.meta["distance"] == len(asked.prompt) - asked.meta["needles"][0][0]
    outside = text
    for span in spans:
        assert outside.count(span.strip()) == 1
        outside = outside.replace(span.strip(), "")
    assert not any(answer.lower() in outside.lower() for answer in question.answers)
    if depth is not None:
        assert abs(asked.depth - depth) <= 0.501 / max(
            1, sum(n for *_, n in asked.meta["haystack"])
        )
    if name == "haystack":
        assert len(documents) == len(gold)
        return
    whole = {(f" {d.title}" if d.title else "") + f"\n{d.text}" for d in file.passages}
    uncut = [document for document in documents if document in whole]
    cut = [document for document in documents if document not in whole]
    assert (
        len(uncut) == len(set(uncut)) and len(cut) <= 2
    )  # the last of each side, perhaps of one title and no more
    assert all(any(document.startswith(part) for document in whole) for part in cut)


@few
@given(seeds)
def test_an_article_is_whole_and_in_order(files, seed):
    task = TASKS["article"](files)
    asked = example(task, seed, 1500, 0.5)
    (question,) = [q for q in task.file.questions if q.name == asked.meta["question"]]
    text = TOKENIZER.decode(asked.prompt.tolist())
    places = [text.index(task.file.passages[i].text) for i in question.article]
    assert places == sorted(places) and len(places) == 4
    together = text[places[0] : places[-1]]
    assert together.count("\n\nDocument:") == 3


@few
@given(seeds)
def test_related_passages_come_first(files, seed):
    """With room for about three, all three of the same article are there, or a rest of them, and no other."""
    task = QA(str(files / "squad.json"), shots=0)
    asked = example(task, seed, 500, 0.5)
    (question,) = [q for q in task.file.questions if q.name == asked.meta["question"]]
    used = {number for number, *_ in asked.meta["haystack"]}
    others = set(question.article) - set(question.gold)
    assert used & others and (used <= others or others <= used)


def test_bare_questions_have_their_documents_and_no_other(files):
    for name in TASKS:
        asked = example(TASKS[name](files), 5, None)
        assert asked.meta["haystack"] == []
        _, documents, _ = parts(TOKENIZER.decode(asked.prompt.tolist()))
        assert len(documents) == (4 if name == "article" else len(asked.meta["needles"]))


@pytest.mark.parametrize("name", TASKS)
def test_the_planted_reader_comes_back(files, name):
    grid = {"seq_lens": (1450, 1600), "depths": (0.0, 0.5, 1.0), "n": 3, "source": toy_source()}
    asked = Retrieval(**grid, task=TASKS[name](files))
    key = AnswerKey.of(asked, TOKENIZER, manner=lambda ids: [*ids, *NEWLINE])
    rows = list(asked(key))
    assert all(row.scores.score == 1 and row.question.tokens == row.seq_len for row in rows)
    assert all(row.facts["file_sha256"] == file_sha256(row.question.fields["path"]) for row in rows)
    for row in asked(dataclasses.replace(key, window=700)):
        assert row.scores.correct == (row.question.distance + len(row.question.gold) - 1 <= 700)
    assert not any(row.scores.score for row in asked(EchoPrompt(TOKENIZER)))
    control = dataclasses.replace(asked, condition="no-needle")
    for whole, without in zip(asked.examples(TOKENIZER), control.examples(TOKENIZER), strict=True):
        assert any(answer in TOKENIZER.decode(whole.prompt.tolist()) for answer in whole.references)
        assert not any(
            answer in TOKENIZER.decode(without.prompt.tolist()) for answer in whole.references
        )


def test_names_of_items_follow_the_file_and_not_its_place(tmp_path):
    path, moved = tmp_path / "own.jsonl", tmp_path / "moved.jsonl"
    path.write_text(own())
    moved.write_text(own())

    def items(path, **options):
        return Retrieval(
            seq_lens=(900,), n=1, source=toy_source(), task=QA(str(path), **options)
        ).items()

    old = items(path)
    assert items(moved) == old and items(path, shots=1) != old
    task = QA(str(path))
    assert len(task.file.questions) == 12
    path.write_text(own().replace("1500", "1501"))
    assert items(path) != old
    assert "1501" in QA(str(path)).file.passages[0].text and "1500" in task.file.passages[0].text
    stale = QA(str(moved))
    assert stale.sha256 and moved.write_text("{}")
    with pytest.raises(ValueError, match="has changed while it was in use"):
        read_questions.__wrapped__(stale.path, stale.sha256)


def test_what_does_not_fit_is_named_and_never_cut(files):
    with pytest.raises(
        ValueError,
        match=r"^qa, question \w+-\d of \S+squad.json: a prompt of 150 tokens cannot hold",
    ):
        example(QA(str(files / "squad.json")), 0, 150)
    with pytest.raises(
        ValueError,
        match=r'^qa: 49\d\d\d tokens are needed .* has \d+ that .* set filler to "haystack"$',
    ):
        example(QA(str(files / "squad.json")), 0, 50_000)
    assert example(QA(str(files / "squad.json"), filler="haystack"), 0, 50_000)
    with pytest.raises(ValueError, match="has 23 other questions that do not give question"):
        example(QA(str(files / "squad.json"), shots=24), 0, 5000)
    with pytest.raises(ValueError, match="no question about a text of at most 20 characters"):
        example(QA(str(files / "squad.json"), max_chars=20), 0, 500)
    short = QA(str(files / "squad.json"), max_chars=150)
    for seed in range(20):
        asked = example(short, seed, 800)
        ((start, size),) = asked.meta["needles"]
        assert len(TOKENIZER.decode(asked.prompt[start : start + size].tolist())) < 190


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "exact"}, "'exact' is not known; choose one of f1, any"),
        ({"filler": "none"}, "'none' is not known; choose one of file, haystack"),
        ({"shots": -1}, "shots must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens at least 1"),
    ],
)
def test_settings_that_there_are_not(files, change, message):
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


def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    for key in (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield from places(value[key], (*path, key))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), which=st.sampled_from([squad, hotpot, own]))
def test_a_corrupted_file_is_read_or_refused_in_one_line(tmp_path_factory, data, which):
    value = which()
    lines = isinstance(value, str)
    value = [json.loads(line) for line in value.split("\n\n")] if lines else value
    value = {"data": value["data"][:2]} if isinstance(value, dict) else value[:3]
    path = data.draw(st.sampled_from(list(places(value))))
    value, target = copy.deepcopy({"root": value}), "root"
    parent = value
    for key in path:
        parent, target = parent[target], key
    if data.draw(st.booleans()) and path:
        del parent[target]
    else:
        parent[target] = data.draw(JSON)
    root = value["root"]
    content = (
        "\n".join(map(json.dumps, root)) if lines and isinstance(root, list) else json.dumps(root)
    )
    content = content.encode()
    content = (
        content[: data.draw(st.integers(0, len(content)))]
        if data.draw(st.integers(0, 9)) == 0
        else content
    )
    file = tmp_path_factory.mktemp("corrupted") / ("a.jsonl" if lines else "a.json")
    file.write_bytes(content)
    try:
        read(file)
    except ValueError as error:
        assert (
            str(file) in str(error)
            and "\n" not in str(error)
            and not isinstance(error, UnicodeError)
        )
