"""Files of published benchmarks: what is asked is what they say, and broken ones are named."""

import copy
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.evals import published_samples
from ctxext.evals.base import evaluated_model
from ctxext.evals.oracle import AnswerKey
from ctxext.evals.published import sample
from ctxext.evals.published.sample import fill
from ctxext.evals.published_samples import BENCHMARKS, PublishedSamples, fit, samples
from ctxext.evals.suite import SuiteConfig, evaluations
from ctxext.evals.work import calls_of
from support.toy_tokenizer import toy_tokenizer

TOKENIZER = toy_tokenizer()
STORY = "The mill of Velm is old. " * 12
LONGBENCH = {
    "input": "Who owns the mill?",
    "context": STORY,
    "answers": ["Oda Brask", "Brask"],
    "length": 60,
    "dataset": "hotpotqa",
    "language": "en",
    "all_classes": None,
    "_id": "x",
}
TREC = {**LONGBENCH, "dataset": "trec_e", "answers": ["Date"], "all_classes": ["Date", "City"]}
V2 = {
    "_id": "y",
    "domain": "Single-Document QA",
    "difficulty": "hard",
    "length": "short",
    "question": "Whose is it?",
    **{f"choice_{letter}": f"of {letter.lower()}" for letter in "ABCD"},
    "answer": "C",
    "context": STORY,
}
MESSAGES = [
    {"role": "user", "content": "write a poem about mills"},
    {"role": "assistant", "content": "Mills turn."},
    {"role": "user", "content": "Prepend aB3 to the first poem about mills."},
]
MRCR = {
    "prompt": json.dumps(MESSAGES),
    "answer": "aB3Mills turn.",
    "random_string_to_prepend": "aB3",
    "n_needles": 2,
}
KV = {"context": '{"a": "b"}', "input": "Key: a", "answer": ["b"], "options": []}
CHOICE = {
    "context": STORY,
    "input": "Whose?",
    "answer": ["of b"],
    "options": [*"of a,of b,of c,of d".split(",")],
}
RUN = {"context": "def func_1(x): ...", "input": "What does func_1(-3) give?", "answer": [-7]}
RAG = {
    "question": "Whose is the mill?",
    "answers": ["Oda Brask"],
    "ctxs": [{"title": "Velm", "text": STORY}, {"title": "Orsk", "text": "It is Oda Brask's."}],
}
RANK = {
    "qid": "1",
    "query": "old mills",
    "ctxs": [{"id": str(i), "text": f"mill {i}", "label": i % 3} for i in range(4)],
}
FILES = {
    "longbench": ("hotpotqa.jsonl", [LONGBENCH, TREC]),
    "longbench-v2": ("data.json", [V2]),
    "mrcr:openai": ("2needle.jsonl", [MRCR, {**MRCR, "prompt": MESSAGES}]),
    "infinitebench": ("kv_retrieval.jsonl", [KV]),
    "helmet": ("nq.jsonl", [RAG, RANK]),
}


def write(folder, name, entries):
    path = folder / name
    is_lines = path.suffix == ".jsonl"
    path.write_text("\n\n".join(map(json.dumps, entries)) if is_lines else json.dumps(entries))
    return path


def read(benchmark, path, limit=None):
    return [sample for _, sample in samples(benchmark, str(path), limit)]


def test_longbench_is_read_with_the_measure_of_its_set(tmp_path):
    path = write(tmp_path, "any.jsonl", [LONGBENCH, TREC])
    hotpot, trec = read("longbench", path)
    assert hotpot.prompt == f"{STORY.strip()}\n\nQuestion: Who owns the mill?\nAnswer:"
    assert (hotpot.dataset, hotpot.metric, hotpot.max_new_tokens) == (
        "hotpotqa",
        "longbench:f1",
        32,
    )
    assert list(hotpot.references) == ["Oda Brask", "Brask"]
    assert (trec.dataset, trec.metric) == ("trec", "longbench:classes")
    assert list(trec.labels) == ["Date", "City"] and trec.stop_at_newline
    assert hotpot.facts == {"wording": "ours"}
    assert [sample.place for sample in (hotpot, trec)] == ["1", "3"]


def test_the_wording_is_the_authors_where_their_file_is_at_hand(tmp_path):
    prompts = {"hotpotqa": "Read {context} and say: {input}"}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "dataset2prompt.json").write_text(json.dumps(prompts))
    (tmp_path / "data").mkdir()
    entry = {**LONGBENCH, "context": "what {input} means"}
    (only,) = read("longbench", write(tmp_path / "data", "a.jsonl", [entry]))
    assert only.prompt == "Read what {input} means and say: Who owns the mill?"
    assert only.facts == {"wording": "LongBench's"}
    (tmp_path / "0shot.txt").write_text("<$DOC$> $Q$ $C_A$/$C_D$\n")
    (only,) = read("longbench-v2", write(tmp_path, "data.json", [V2]))
    assert only.prompt == f"<{STORY.strip()}> Whose is it? of a/of d\n\nThe correct answer is ("


def test_a_template_is_filled_in_one_pass():
    values = {"{a}": "{b}", "{b}": "{a}"}
    assert fill("{a} and {b}, {c}", values) == "{b} and {a}, {c}"


def test_conversations_are_read_from_parquet_and_json_alike(tmp_path):
    table = pyarrow.table({name: [MRCR[name]] for name in MRCR})
    pyarrow.parquet.write_table(table, tmp_path / "2needle_0.parquet")
    lines = write(tmp_path, "2needle.jsonl", [MRCR, {**MRCR, "prompt": MESSAGES}])
    from_parquet = read("mrcr:openai", tmp_path / "2needle_0.parquet")
    from_lines = read("mrcr:openai", lines)
    assert [s._replace(place="") for s in from_lines] == 2 * [from_parquet[0]._replace(place="")]
    (only,) = from_parquet
    assert only.prompt == (
        "User: write a poem about mills\n\nAssistant: Mills turn.\n\n"
        "User: Prepend aB3 to the first poem about mills.\n\nAssistant:"
    )
    assert list(only.references) == ["aB3", "aB3Mills turn."]


def test_other_sets_of_infinitebench(tmp_path):
    (choice,) = read("infinitebench", write(tmp_path, "longbook_choice_eng.jsonl", [CHOICE]))
    assert (choice.answer, [*choice.references], [*choice.choices]) == (
        "B",
        ["of b", "B"],
        [*"ACD"],
    )
    assert "\nB. of b\n" in choice.prompt
    (run,) = read("infinitebench", write(tmp_path, "code_run.jsonl", [RUN]))
    assert run.prompt.endswith("\n\nThe value of func_1(-3) is")
    assert run.references == ["-7"]


def test_passages_to_rank_have_their_grades(tmp_path):
    question, ranking = read("helmet", write(tmp_path, "nq.jsonl", [RAG, RANK]))
    assert question.prompt.endswith(
        "Document: Orsk\nIt is Oda Brask's.\n\nQuestion: Whose is the mill?\nAnswer:"
    )
    assert ranking.answer == "2 > 1 > 0 > 3"
    assert ranking.references == ["1", "2", "2"]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_planted_answer_key_is_recovered_at_every_length(benchmark, tmp_path):
    path = write(tmp_path, *FILES[benchmark])
    config = SuiteConfig(
        (120, 400, 2000), questions=path, count_tokens=lambda text: 1 + len(TOKENIZER.encode(text))
    )
    (evaluation,) = evaluations([benchmark], config)
    evaluation.check(TOKENIZER)
    end = TOKENIZER.eos_id
    key = AnswerKey.of(evaluation, TOKENIZER, manner=lambda ids: [*ids, end])
    records = list(evaluation(key))
    assert [record.item for record in records] and {r.item for r in records} == {
        *evaluation.items()
    }
    for record in records:
        assert record.scores.score == 1, record.scores
        assert record.question.tokens <= record.seq_len
        assert record.settings in record.item and record.question.title.count("/") == 1
    whole = [record for record in records if record.seq_len == max(r.seq_len for r in records)]
    assert all(record.facts["cut_tokens"] == 0 for record in whole)
    calls = calls_of(evaluation, key, evaluation.items(), evaluated_model(key))
    assert sum(len(call.lengths) for call in calls) == len(records)


def test_the_middle_is_cut_out_of_what_is_too_long(tmp_path):
    path = write(tmp_path, *FILES["longbench"])
    evaluation = PublishedSamples("longbench", str(path), (120, 4000), n=1)
    cut, whole = evaluation.examples(TOKENIZER)
    limit = 120 - 32
    assert len(cut.prompt) == limit and cut.max_new_tokens == 32
    assert np.array_equal(cut.prompt[:44], whole.prompt[:44])
    assert np.array_equal(cut.prompt[44:], whole.prompt[-44:])
    assert cut.meta["cut_tokens"] == len(whole.prompt) - limit > 0
    with pytest.raises(ValueError, match="hotpotqa 1: 33 tokens do not hold the question"):
        PublishedSamples("longbench", str(path), (33,)).check(TOKENIZER)


def test_conversations_are_asked_at_the_shortest_length_that_holds_them(tmp_path):
    long = [{"role": "user", "content": STORY}, *MESSAGES]
    path = write(tmp_path, "a.jsonl", [MRCR, {**MRCR, "prompt": long}, MRCR])

    def count(text):
        return 1 + len(TOKENIZER.encode(text))

    evaluation = PublishedSamples("mrcr:openai", str(path), (60, 200, 2000), n=1)
    fitting = fit(evaluation, count)
    assert [seq_len for _, seq_len in fitting] == [200, 2000]
    with pytest.raises(ValueError, match=r"a\.jsonl: no sample fits into 60 tokens, of which the"):
        fit(PublishedSamples("mrcr:openai", str(path), (60,)), count)
    with pytest.raises(
        ValueError, match="longbench reads a file that you provide: give --questions"
    ):
        evaluations(["longbench"], SuiteConfig((4096,)))
    with pytest.raises(ValueError, match="benchmark 'x' is not known; choose one of longbench"):
        PublishedSamples("x", str(path), (60,))


@pytest.mark.parametrize(
    ("benchmark", "name", "entries", "message"),
    [
        (
            "longbench",
            "a.jsonl",
            [{**LONGBENCH, "dataset": "x"}],
            r"a\.jsonl, line 1: \$\.dataset is 'x', not",
        ),
        ("longbench", "a.jsonl", [LONGBENCH, {"dataset": "qmsum"}], r'line 3: \$ has no "context"'),
        ("longbench", "a.jsonl", [{**LONGBENCH, "dataset": "lsht"}], "Chinese segmentation"),
        ("longbench", "a.jsonl", [{**LONGBENCH, "answers": []}], r"\$\.answers is empty"),
        (
            "longbench",
            "a.jsonl",
            [{**LONGBENCH, "dataset": "passage_count"}],
            r"\$\.answers has no number",
        ),
        ("longbench-v2", "d.json", [{**V2, "answer": "E"}], r"\$\[0\]\.answer is 'E', not one of"),
        ("longbench-v2", "d.json", {"a": 1}, r"d\.json: \$ is not a list"),
        ("mrcr:openai", "a.jsonl", [{**MRCR, "answer": "x"}], "does not begin with 'aB3'"),
        (
            "mrcr:openai",
            "a.jsonl",
            [{**MRCR, "prompt": "["}],
            r"line 1: \$\.prompt, which is not JSON",
        ),
        (
            "mrcr:openai",
            "a.jsonl",
            [{**MRCR, "prompt": [{"role": "x"}]}],
            "role is 'x', not one of",
        ),
        ("mrcr:openai", "a.parquet", [], r"a\.parquet cannot be read as parquet"),
        ("infinitebench", "math_calc.jsonl", [KV], "asks for 30,000 new tokens, which is not"),
        ("infinitebench", "other.jsonl", [KV], "is not named after a set of InfiniteBench"),
        ("infinitebench", "code_run.jsonl", [{**RUN, "input": "?"}], "calls no function"),
        ("infinitebench", "code_run.jsonl", [{**RUN, "answer": ["x"]}], "is not a number"),
        (
            "infinitebench",
            "code_debug.jsonl",
            [{**CHOICE, "options": ["of a"]}],
            "are not four with the answer in them",
        ),
        ("helmet", "a.jsonl", [{**RAG, "ctxs": []}], r"\$\.ctxs is empty"),
        (
            "helmet",
            "a.jsonl",
            [{**RANK, "ctxs": [{"id": "1", "text": "x", "label": 10**9}]}],
            "a label from 0 on",
        ),
        (
            "helmet",
            "a.jsonl",
            [{**RANK, "ctxs": [{"id": "1", "text": "x", "label": 0}]}],
            "has no relevant passage",
        ),
    ],
)
def test_broken_files_are_named_with_the_line(benchmark, name, entries, message, tmp_path):
    path = write(tmp_path, name, entries)
    with pytest.raises(ValueError, match=message) as error:
        read(benchmark, path)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path, *FILES["longbench"])
    monkeypatch.setattr(sample, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(published_samples, "file_sha256", None)
    with pytest.raises(ValueError, match=r"hotpotqa\.jsonl has \d+ bytes, more than 100: give a"):
        read("longbench", path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"holds no file that ends in \.jsonl"):
        read("longbench", tmp_path)
    with pytest.raises(ValueError, match="nowhere.jsonl cannot be read"):
        read("longbench", tmp_path / "nowhere.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=4,
)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), benchmark=st.sampled_from(sorted(BENCHMARKS)))
def test_a_changed_file_is_read_or_refused_in_one_line(tmp_path_factory, data, benchmark):
    name, entries = FILES[benchmark]
    entries = copy.deepcopy(entries)
    key = data.draw(st.sampled_from(sorted(entries[0])))
    entries[0][key] = data.draw(JSON)
    path = write(tmp_path_factory.mktemp("changed"), name, entries)
    try:
        read(benchmark, path)
    except ValueError as error:
        assert name in str(error) and "\n" not in str(error)
        assert not isinstance(error, UnicodeError)
