"""Files of published benchmarks: what is asked is what they say, and broken ones are named."""

import copy
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.evals import published_samples
from ctxext.evals.base import evaluated_model
from ctxext.evals.oracle import AnswerKey
from ctxext.evals.published import helmet_icl, helmet_summ, longbench, sample
from ctxext.evals.published.sample import fill
from ctxext.evals.published_samples import BENCHMARKS, PublishedSamples, fit, samples
from ctxext.evals.suite import SuiteConfig, evaluations
from ctxext.evals.work import calls_of
from ctxext.tasks.building import published_scores
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
PAIRS = {
    "context": '{"k1": "v1", "k2": "v2"}',
    "question": "k2",
    "answer": "v2",
    "demos": [["k1", "v1"], ["k3", "v3"], ["k4", "v4"]],
    "num_kvs": 2,
}
CASE = {"sources": [STORY, "Brask sued."], "summary/short": "Oda Brask sues.\nShe wins."}
LABELLED = [{"text": text, "label": i % 5} for i, text in enumerate("abcdefghijklmnopqrst")]
GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {
    "longbench": ("hotpotqa.jsonl", [LONGBENCH, TREC]),
    "longbench-v2": ("data.json", [V2]),
    "mrcr:openai": ("2needle.jsonl", [MRCR, {**MRCR, "prompt": MESSAGES}]),
    "infinitebench": ("kv_retrieval.jsonl", [KV]),
    "helmet": ("nq.jsonl", [RAG, RANK]),
    "helmet:icl": ("nlu.jsonl", LABELLED),
    "helmet:recall": ("test_k2_dep6.jsonl", [PAIRS]),
    "helmet:summ": ("multi_lexsum.jsonl", [CASE]),
}
LENGTHS = {"helmet:summ": (450, 500, 2000)}


@pytest.fixture(autouse=True, scope="module")
def words_without_packages():
    """Stand-ins for jieba and nltk, which are no dependencies of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helmet_summ, "has_stemmer", lambda: True)
        patch.setattr(published_scores, "porter_stem", lambda: str)
        yield


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


def test_chinese_sets_have_the_measure_of_their_set(tmp_path, monkeypatch):
    names = ["lsht", "passage_retrieval_zh"]
    answers = {"lsht": "City", "passage_retrieval_zh": "段落12"}
    entries = [
        {**TREC, "dataset": name, "answers": [answers.get(name, "磨坊")]}
        for name in [*names, "multifieldqa_zh", "dureader", "vcsum"]
    ]
    assert [s.metric for s in read("longbench", write(tmp_path, "a.jsonl", entries[:2]))] == [
        "longbench:classes",
        "longbench:numbers",
    ]
    monkeypatch.setattr(longbench, "has_segmenter", lambda: True)
    sets = read("longbench", write(tmp_path, "b.jsonl", entries))
    assert [(s.metric, s.max_new_tokens, s.stop_at_newline) for s in sets] == [
        ("longbench:classes", 64, True),
        ("longbench:numbers", 32, True),
        ("longbench:chinese-f1", 64, True),
        ("longbench:chinese-rouge-l", 128, False),
        ("longbench:chinese-rouge-l", 512, False),
    ]
    assert sets[2].prompt == f"{STORY.strip()}\n\n问题：Who owns the mill?\n答案："


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


@pytest.mark.parametrize("case", json.loads((GOLDEN / "helmet_icl.json").read_text()))
def test_examples_and_numbers_of_labels_are_those_that_helmet_draws(case, tmp_path, monkeypatch):
    stem = next(stem for stem, (names, _) in helmet_icl.FILES.items() if case["set"] in names)
    examples = helmet_icl.FILES[stem][1]
    if examples is None:
        write(tmp_path, f"{stem}.jsonl", case["train"])
    else:
        write(tmp_path, f"{stem}.jsonl", case["test"])
        write(tmp_path, f"{examples}.jsonl", case["train"])
    monkeypatch.setattr(helmet_icl, "MAX_QUESTIONS", case["most"])
    monkeypatch.setattr(helmet_icl, "num_shots", lambda name, seq_len: case["shots"])
    of_set = [s for s in read("helmet:icl", tmp_path) if s.dataset == case["set"]]
    assert len(of_set) == case["count"]
    asked = [(s.at(9).prompt, s.answer) for s in of_set[: len(case["samples"])]]
    assert asked == [
        (f"{context}\n\n{question}\nlabel:", answer)
        for context, question, answer in case["samples"]
    ]


def test_longer_texts_have_as_many_more_examples_as_helmet_has(tmp_path):
    assert [helmet_icl.num_shots("nlu", n) for n in (8192, 65_536, 131_072)] == [510, 4080, 8296]
    assert [helmet_icl.num_shots("trec_fine", n) for n in (64, 4096, 12_288)] == [3, 200, 600]
    path = write(tmp_path, *FILES["helmet:icl"])
    evaluation = PublishedSamples("helmet:icl", str(path), (200, 2000), n=1)
    short, long = evaluation.examples(TOKENIZER)
    assert [short.meta["shots"], long.meta["shots"]] == [12, 124]
    assert TOKENIZER.decode(long.prompt).count("label:") == 125
    assert short.meta["cut_tokens"] == long.meta["cut_tokens"] == 0


def test_items_change_with_the_file_of_examples(tmp_path):
    write(tmp_path, "banking77_test.jsonl", LABELLED)
    names = []
    for rows in (LABELLED, LABELLED[:9]):
        write(tmp_path, "banking77_train.jsonl", rows)
        evaluation = PublishedSamples("helmet:icl", str(tmp_path), (400,), n=2)
        names.append(evaluation.items())
    assert [len(items) for items in names] == [2, 2]
    assert not set(names[0]) & set(names[1])


def test_recall_is_read_with_the_answers_of_its_task(tmp_path):
    (pairs,) = read("helmet:recall", write(tmp_path, "test_k2_dep6.jsonl", [PAIRS]))
    assert pairs.prompt == (
        '{"k1": "v1", "k2": "v2"}\n\nKey: k1\nCorresponding value: v1\n\n'
        "Key: k3\nCorresponding value: v3\n\nKey: k2\nCorresponding value:"
    )
    assert (pairs.dataset, pairs.metric, pairs.may_cut) == ("json_kv", "helmet:contains", False)
    needles = {
        "context": STORY,
        "query": "brask",
        "type_needle_v": "numbers",
        "outputs": ["12", "30"],
    }
    (tmp_path / "niah_multivalue").mkdir()
    path = write(tmp_path / "niah_multivalue", "validation_8192.jsonl", [needles])
    (values,) = read("helmet:recall", path)
    assert values.prompt.endswith("\n\nThe special magic numbers for brask are:")
    assert (values.dataset, values.metric, values.answer) == ("niah_multivalue", "all", "12, 30")
    (tmp_path / "vt").mkdir()
    chains = {"context": "VAR A = 5", "query": "5", "num_v": 1, "example": "Ex.", "answer": ["A"]}
    (chain,) = read("helmet:recall", write(tmp_path / "vt", "validation_8192.jsonl", [chains]))
    assert chain.prompt == "Ex.\n\nVAR A = 5\n\nThe 1 variables that have the value 5 are:"


def test_a_directory_without_questions_of_helmet_names_those_it_could_have(tmp_path):
    write(tmp_path, "banking77_train.jsonl", LABELLED)
    with pytest.raises(
        ValueError, match=r"banking77_train\.jsonl is not named after .*banking77_t"
    ):
        read("helmet:icl", tmp_path)


def test_the_documentation_names_the_files_of_in_context_learning():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    files = [name for stem, (_, examples) in helmet_icl.FILES.items() for name in (stem, examples)]
    assert [name for name in files if name and f"`{name}.jsonl`" not in page] == []


def test_lawsuits_without_a_summary_are_not_counted(tmp_path):
    path = write(tmp_path, "lexsum.jsonl", [{**CASE, "summary/short": None}, CASE, CASE])
    assert [s.place for _, s in samples("helmet:summ", str(path), 1)] == ["3"]


def test_summaries_are_read_and_need_the_stems_of_words(tmp_path, monkeypatch):
    path = write(tmp_path, "lexsum.jsonl", [{**CASE, "summary/short": None}, CASE])
    (lawsuit,) = read("helmet:summ", path)
    assert lawsuit.prompt == f"{STORY.strip()}\n\nBrask sued.\n\nSummary:"
    assert (lawsuit.dataset, lawsuit.max_new_tokens) == ("multi_lexsum", 400)
    book = {**KV, "answer": ["A mill."]}
    path = write(tmp_path, "longbook_sum_eng.jsonl", [book])
    (ours,) = read("helmet:summ", path)
    (theirs,) = read("infinitebench", path)
    assert (ours.metric, theirs.metric) == ("helmet:book-rouge-lsum", "infinitebench:rouge-lsum")
    assert ours.max_new_tokens == theirs.max_new_tokens == 1200
    assert not ours.stop_at_newline and not theirs.stop_at_newline
    monkeypatch.setattr(helmet_summ, "has_stemmer", lambda: False)
    published_samples._read.cache_clear()
    with pytest.raises(ValueError, match=r"lexsum\.jsonl is scored by .* 'ctxext\[benchmarks\]'"):
        read("helmet:summ", tmp_path / "lexsum.jsonl")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_planted_answer_key_is_recovered_at_every_length(benchmark, tmp_path):
    path = write(tmp_path, *FILES[benchmark])
    config = SuiteConfig(
        LENGTHS.get(benchmark, (120, 400, 2000)),
        questions=path,
        count_tokens=lambda text: 1 + len(TOKENIZER.encode(text)),
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
        (
            "longbench",
            "a.jsonl",
            [{**LONGBENCH, "dataset": "dureader"}],
            r"line 1: \$: dureader is scored by Chinese .* pip install 'ctxext\[benchmarks\]'",
        ),
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
        ("helmet:icl", "x.jsonl", LABELLED, "is not named after the questions of a set: trec_test"),
        ("helmet:icl", "banking77_test.jsonl", LABELLED, "put banking77_train.jsonl next to it"),
        ("helmet:icl", "nlu.jsonl", [{"text": "a", "label": 68}], "label is 68, not one of 0 to"),
        ("helmet:icl", "nlu.jsonl", [{"text": "a", "label": "x"}], "label is not a whole number"),
        ("helmet:icl", "nlu.jsonl", LABELLED[:1], "nlu has no questions or no examples"),
        ("helmet:icl", "nlu.jsonl", [{"text": 10_001 * "a", "label": 1}], "more than 10,000 char"),
        ("helmet:recall", "a.jsonl", [RAG], 'has no "demos", as json_kv has, and the directory'),
        ("helmet:recall", "a.jsonl", [{**PAIRS, "demos": [["a"]]}], r"demos\[0\] is not a pair"),
        ("helmet:summ", "a.jsonl", [{**CASE, "sources": "x"}], r"\$\.sources is not a list"),
        ("helmet:summ", "longbook_qa_eng.jsonl", [KV], "and the file is not InfiniteBench's longb"),
        (
            "helmet:summ",
            "a.jsonl",
            [{**CASE, "summary/short": 100_001 * "a"}],
            "an answer of 100,001 characters, more than the 100,000 that ROUGE",
        ),
        (
            "longbench",
            "a.jsonl",
            [{**LONGBENCH, "dataset": "gov_report", "answers": [100_001 * "a"]}],
            "line 1: \\$ has an answer of 100,001 characters",
        ),
        ("helmet", "a.jsonl", [{"docs": []}], r"line 1: \$ is of HELMET's citations \(ALCE\)"),
        ("helmet", "a.jsonl", [{"document": {}}], "is of NarrativeQA, which GPT-4 judges"),
        ("helmet", "a.jsonl", [PAIRS], "is of json_kv: --evals helmet:recall reads"),
        ("infinitebench", "longbook_sum_eng.jsonl", [{**KV, "answer": ["", ""]}], "is not a text"),
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
