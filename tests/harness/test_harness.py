"""HarnessLM against the harness's own Hugging Face backend on the same checkpoint."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support import llamas

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval, see `make harness`")

import torch  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from ctxext import loading  # noqa: E402
from ctxext.cli.main import main  # noqa: E402
from ctxext.harness import tasks as harness_tasks  # noqa: E402
from ctxext.harness.model import HarnessLM  # noqa: E402
from ctxext.methods.ntk import DynamicNTK  # noqa: E402
from ctxext.plan import longest_text  # noqa: E402

WORDS = (
    "def return self the value name of class import from None for in if not list string object "
    "module"
).split()
CLOSE = 1e-4


def text(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of transformers, with a window of 64 tokens and both tokenizer files."""
    path = tmp_path_factory.mktemp("base") / "hf"
    llamas.torch_llama(path)
    return path


@pytest.fixture(scope="module")
def fast(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without tokenizer.model, so that both backends decode with the same library."""
    path = tmp_path_factory.mktemp("fast") / "hf"
    shutil.copytree(checkpoint, path)
    (path / "tokenizer.model").unlink()
    return path


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> HFLM:
    return HFLM(str(checkpoint), device="cpu", dtype=torch.float32, batch_size=4)


@pytest.fixture(scope="module")
def ours(fast: Path) -> HarnessLM:
    return HarnessLM(loading.load(fast, angles="float32"))


def requests(*args: tuple) -> list[Any]:
    return [SimpleNamespace(args=arg, task_name="t") for arg in args]


@pytest.mark.parametrize("source", ["checkpoint", "fast"])
def test_texts_are_encoded_alike(source: str, theirs: HFLM, request: pytest.FixtureRequest) -> None:
    ours = HarnessLM(loading.load(request.getfixturevalue(source)))
    for backend in (ours, theirs):
        assert backend.max_length == 64
        assert backend.eot_token_id == 2
        assert backend.prefix_token_id == 1
    texts = ["", " ", "value of", " value of ", "\nname\n\n", "naïve 日本語"]
    for string in [*texts, "<s>class", "<s> class"]:
        assert ours.tok_encode(string, None) == theirs.tok_encode(string, None), string
    for string in texts:
        assert ours.tok_encode(string, False) == theirs.tok_encode(string, False), string
    for pair in (("value of ", "name"), ("a  ", " b"), ("x", " "), ("class", "es"), (" ", "y")):
        assert ours._encode_pair(*pair) == theirs._encode_pair(*pair)


def test_loglikelihood(ours: HarnessLM, theirs: HFLM) -> None:
    """Empty and long contexts, trailing spaces, one context with many continuations."""
    pairs = [(text(i, 1 + 3 * i), " " + text(100 + i, 1 + i % 4)) for i in range(12)]
    pairs += [("", text(i, 3)) for i in range(3)]
    pairs += [("", "v"), ("name ", "value"), (" ", "x")]
    pairs += [("the answer is", f" {choice}") for choice in ("A", "B", "None", "a list of")]
    pairs += [(text(i, 90), " " + text(i + 1, 4)) for i in range(3)]
    # Text that the model generates greedily is greedy; after a first wrong token it is not.
    for context in ("def", text(5, 6), text(6, 60)):
        (generated,) = theirs.generate_until(requests((context, {"until": [], "max_gen_toks": 4})))
        pairs.append((context, generated))
    with np.errstate(all="raise"):
        actual = ours.loglikelihood(requests(*pairs), disable_tqdm=True)
    expected = theirs.loglikelihood(requests(*pairs), disable_tqdm=True)
    logprobs = [logprob for logprob, _ in actual]
    np.testing.assert_allclose(logprobs, [x for x, _ in expected], atol=CLOSE, rtol=0)
    assert [greedy for _, greedy in actual] == [greedy for _, greedy in expected]
    assert np.ptp(logprobs) > 5


def test_greedy_flags_agree_with_the_model_s_own_generation(ours: HarnessLM) -> None:
    context = text(3, 8)
    tokens = ours.tok_encode(context)
    new = ours._lm.generate([tokens], max_new_tokens=5)[0].tolist()
    wrong = [*new[:4], (new[4] + 1) % 400]
    (_, greedy), (_, greedy_if_wrong) = ours._loglikelihood_tokens(
        [(None, tokens, new), (None, tokens, wrong)], disable_tqdm=True
    )
    assert greedy
    assert not greedy_if_wrong


def test_loglikelihood_rolling(ours: HarnessLM, theirs: HFLM) -> None:
    """Texts of one token, of exactly a window, and of several."""
    texts = ["x", "", *(text(i, n) for i, n in enumerate((3, 20, 21, 22, 40, 90, 200)))]
    lengths = [len(ours.tok_encode(t)) for t in texts]
    assert min(lengths) == 1
    assert sorted(lengths)[-1] > 4 * 64
    arguments = [(string,) for string in texts]
    actual = ours.loglikelihood_rolling(requests(*arguments), disable_tqdm=True)
    expected = theirs.loglikelihood_rolling(requests(*arguments), disable_tqdm=True)
    np.testing.assert_allclose(actual, expected, atol=CLOSE, rtol=1e-6)


def test_texts_that_are_written_are_held_in_all_layers(ours: HarnessLM, monkeypatch) -> None:
    """Of 40 tokens, 30 of a prompt and 10 to write: 2 numbers of 4 bytes per layer, head, channel.

    The same memory is enough to score a text, of which one layer is held at a time.
    """
    config = ours._lm.config
    numbers = 2 * config.num_key_value_heads * config.head_dim
    needed = 40 * config.num_hidden_layers * numbers * 4
    assert config.num_hidden_layers > 1
    context = text(3, 60)
    asked = requests((context, {"until": [], "max_gen_toks": 10}))
    short = HarnessLM(ours._lm, max_length=40)
    monkeypatch.setattr(longest_text, "machine_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="--max-length: the keys and values of one text of 40 tok"):
        short.generate_until(asked, disable_tqdm=True)
    assert short.loglikelihood(requests((context, " value")), disable_tqdm=True)
    monkeypatch.setattr(longest_text, "machine_bytes", lambda: needed)
    assert len(short.generate_until(asked, disable_tqdm=True)) == 1


def test_generate_until(ours: HarnessLM, theirs: HFLM) -> None:
    """Without stops, with stops of one or more tokens, long contexts, several kinds at once."""
    contexts = [text(1, 4), text(2, 6), text(3, 8), text(9, 90)]
    without_stops = [(context, {"until": [], "max_gen_toks": 40}) for context in contexts]
    free = theirs.generate_until(requests(*without_stops))
    stops = [free[0][4:7], free[1][10:11], free[2][-5:-2], "\n"]
    greedy = {"max_gen_toks": 40, "do_sample": False, "temperature": 0.0}
    arguments = [
        *without_stops,
        *((context, {"until": stops, **greedy}) for context in contexts),
        *((context, {"until": stops[0], "max_new_tokens": 5}) for context in contexts),
    ]
    actual = ours.generate_until(requests(*arguments), disable_tqdm=True)
    expected = theirs.generate_until(requests(*arguments), disable_tqdm=True)
    assert actual == expected
    assert actual[:4] == free
    for stopped, whole in zip(actual[4:7], free[:3], strict=True):
        assert len(stopped) < len(whole)
    for generated in actual[4:8]:
        assert all(stop not in generated for stop in stops)


def test_sampling(ours: HarnessLM, fast: Path) -> None:
    """Seeded; repeated requests, other seeds and temperatures differ; near 0 it is greedy."""
    hot = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 2.0}
    repeated = requests(*[("value of", hot)] * 3)
    first = ours.generate_until(repeated, disable_tqdm=True)
    assert len(set(first)) == 3
    assert first == ours.generate_until(repeated, disable_tqdm=True)
    assert first != HarnessLM(ours._lm, seed=1).generate_until(repeated, disable_tqdm=True)
    cold = {"until": [], "max_gen_toks": 8, "temperature": 1e-3, "top_p": 1e-3}
    greedy = {
        "until": [],
        "max_gen_toks": 8,
        "temperature": 0.7,
        "do_sample": False,
        "top_k": 50,
        "num_beams": 1,
    }
    texts = ours.generate_until(
        requests(("value of", cold), ("value of", greedy)), disable_tqdm=True
    )
    assert texts[0] == texts[1]


def test_frequencies_by_length_do_not_depend_on_neighbours(ours: HarnessLM) -> None:
    """Rows of many lengths in one batch give the same as each alone, beyond the window."""
    model = HarnessLM(ours._lm.with_method(DynamicNTK(4.0)), max_length=128)
    pairs = [(text(i, 12 + i), " " + text(50 + i, 2)) for i in range(4)]
    batch = requests(*pairs, *pairs[:1])
    together = [logprob for logprob, _ in model.loglikelihood(batch, disable_tqdm=True)]
    alone = [model.loglikelihood([request], disable_tqdm=True)[0][0] for request in batch]
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "num_beams is not supported"),
        ({"do_sample": True}, "temperature above 0"),
        ({"do_sample": True, "temperature": 1.0, "top_k": 5}, "top_k is not supported"),
        ({"max_gen_toks": 64}, "no space for a prompt in a window of 64"),
    ],
)
def test_unsupported_options_are_refused(ours: HarnessLM, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours.generate_until(requests(("value", {"until": ["x"], **options})), disable_tqdm=True)


def test_a_continuation_longer_than_the_window_is_refused(ours: HarnessLM) -> None:
    with pytest.raises(ValueError, match="cannot be scored in a window of 64"):
        ours.loglikelihood(requests(("value", " " + text(0, 90))), disable_tqdm=True)


CHOICE = """
task: toy_choice
output_type: multiple_choice
test_split: test
fewshot_split: train
num_fewshot: 1
doc_to_text: "{{question}} is"
doc_to_target: label
doc_to_choice: ["A", "B", "a list of names", "None"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITE = """
task: toy_write
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
PAGES = """
task: toy_pages
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
TASKS = ("toy_choice", "toy_write", "toy_pages")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, ours: HarnessLM) -> Path:
    """A directory with three tasks of twelve documents; two of three answers are this model's."""
    path = tmp_path_factory.mktemp("tasks")
    questions = [text(i, 2 + i % 5) for i in range(12)]
    options = {"until": ["e", "\n"], "max_gen_toks": 12}
    arguments = [(question, options) for question in questions]
    generated = ours.generate_until(requests(*arguments), disable_tqdm=True)
    answers = [answer if i % 3 else "nothing" for i, answer in enumerate(generated)]
    documents = [
        {"question": question, "label": i % 4, "answer": answer, "page": text(i, 5 + 4 * i)}
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    for split in ("train", "test"):
        (path / f"{split}.jsonl").write_text(lines)
    files = {split: str(path / f"{split}.jsonl") for split in ("train", "test")}
    kwargs = json.dumps({"data_files": files, "cache_dir": str(path / "cache")})
    local = f"dataset_path: json\ndataset_kwargs: {kwargs}"
    for name, task in zip(TASKS, (CHOICE, WRITE, PAGES), strict=True):
        (path / f"{name}.yaml").write_text(f"{task}\n{local}\n")
    return path


def test_a_task_file_that_is_named_may_run_code(tasks: Path, fast: Path, tmp_path: Path) -> None:
    """The harness does so while it reads the file."""
    (tmp_path / "mine.py").write_text(
        "import os\nos.mkdir(os.path.join(os.path.dirname(__file__), 'executed'))\n"
        "def question(document):\n    return document['question']\n"
    )
    source = (tasks / "toy_write.yaml").read_text().replace("toy_write", "toy_code")
    (tmp_path / "toy_code.yaml").write_text(
        source.replace('doc_to_text: "{{question}}"', "doc_to_text: !function mine.question")
    )
    options = ["--tasks", "toy_code", "--include-path", str(tmp_path), "--limit", "1"]
    assert main(["harness", str(fast), *options, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "executed").exists()


def numbers(results: dict[str, Any]) -> dict[tuple[str, str], float]:
    """Every number in the results of the harness, by task and metric."""
    return {
        (task, name): value
        for task, metrics in results.items()
        for name, value in metrics.items()
        if isinstance(value, float)
    }


def logged_samples(out: Path) -> list[dict[str, Any]]:
    """The samples that the only run of the command under `out` has logged."""
    (file,) = (out / "harness").glob("*/samples.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_whole_tasks_give_the_results_of_the_harness_s_own_backend(
    tasks: Path, theirs: HFLM, fast: Path, tmp_path: Path, capsys
) -> None:
    """Every metric and sample of the command is that of the harness with its own backend."""
    options = ["--tasks", *TASKS, "--include-path", str(tasks), "--out", str(tmp_path)]
    assert main(["harness", str(fast), *options, "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    reference: Any = lm_eval.simple_evaluate(
        theirs, tasks=list(TASKS), task_manager=manager, bootstrap_iters=1000
    )
    expected = numbers(reference["results"])
    assert numbers(ours["results"]["results"]) == pytest.approx(expected, rel=1e-4)
    assert len(expected) >= 9
    assert 0 < expected["toy_choice", "acc,none"] < 1
    assert expected["toy_write", "exact_match,none"] == pytest.approx(2 / 3)
    samples = logged_samples(tmp_path)
    assert len(samples) == 36
    for sample in samples:
        candidates = reference["samples"][sample["task"]]
        (match,) = [s for s in candidates if s["doc_hash"] == sample["doc_hash"]]
        assert sample["prompt_hash"] == match["prompt_hash"]
        assert sample["of"] == "model"
        response = sample["filtered_resps"]
        expected_response = match["filtered_resps"]
        if sample["task"] == "toy_write":
            assert response == expected_response
        elif sample["task"] == "toy_choice":
            logprobs = [x for x, _ in response]
            np.testing.assert_allclose(logprobs, [x for x, _ in expected_response], atol=1e-4)
        else:
            np.testing.assert_allclose(response, expected_response, rtol=1e-6, atol=1e-4)


def test_against_a_base(tasks: Path, fast: Path, tmp_path: Path, capsys) -> None:
    """Another scaling against the base, document by document; no difference to itself."""
    command = ["harness", str(fast), "--include-path", str(tasks), "--out", str(tmp_path)]
    against = ["--against", str(fast)]
    scaled = ["--method", "linear", "--factor", "4"]
    assert main([*command, "--tasks", *TASKS, "--limit", "8", *scaled, *against, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    differences = {(d["task"], d["metric"]): d for d in output["differences"]}
    units = {d["unit"] for d in differences.values() if d["unit"]}
    assert units == {"points", "nats per word", "nats per byte"}
    samples = logged_samples(tmp_path)
    for of, results in (("base", "base_results"), ("model", "results")):
        match = [s["exact_match"] for s in samples if s["of"] == of and s["task"] == "toy_write"]
        assert differences["toy_write", "exact_match"][of] == pytest.approx(100 * sum(match) / 8)
        perplexity = output[results]["results"]["toy_pages"]["word_perplexity,none"]
        nll_per_word = differences["toy_pages", "word_perplexity"][of]
        assert np.exp(nll_per_word) == pytest.approx(perplexity)
    assert output["method"] == "linear(factor=4)"
    assert output["base"]["method"] == "none"
    write = differences["toy_write", "exact_match"]
    assert write["base"] > write["model"]
    assert write["only_base"] > 0
    assert write["p"] <= write["adjusted"] <= 1

    assert main([*command, "--tasks", "toy_choice", "toy_pages", "--limit", "2", *against]) == 0
    table = capsys.readouterr().out
    assert "toy_choice" in table
    assert "0:0" in table
    assert "nats per byte" in table


def test_a_second_run_of_the_same_tasks_is_refused_at_once(
    tasks: Path, fast: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """While the first one is at work; it is told which process that is."""
    command = ["harness", str(fast), "--include-path", str(tasks), "--out", str(tmp_path)]
    command += ["--tasks", "toy_choice", "--limit", "2"]
    real = harness_tasks.run_tasks
    statuses = []

    def run_tasks(lm, request, name):
        monkeypatch.setattr(harness_tasks, "run_tasks", real)
        statuses.append(main(command))
        assert f"is being written by process {os.getpid()} on" in capsys.readouterr().err
        return real(lm, request)

    monkeypatch.setattr(harness_tasks, "run_tasks", run_tasks)
    assert main(command) == 0
    assert statuses == [2]
    (results,) = (tmp_path / "harness").iterdir()
    assert sorted(path.name for path in results.iterdir()) == ["results.json", "samples.jsonl"]


def test_bad_input_is_one_line(fast: Path, tasks: Path, capsys) -> None:
    def refused(*arguments: str) -> str:
        assert main(["harness", str(fast), *arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        return next(line for line in lines if line.startswith("ctxext: "))

    misspelled = ["--tasks", "toy_choise", "--include-path", str(tasks)]
    assert "did you mean toy_choice" in refused(*misspelled)
    assert "limit must be positive" in refused("--tasks", "toy_choice", "--limit", "0")
    too_long = refused("--tasks", "toy_choice", "--max-length", "2000000000")
    assert "--max-length: the keys and values of one text of 2,000,000,000" in too_long
    assert "unknown option" in refused("--tasks", "toy_choice", "--factor", "2")
    assert "has no checkpoint 7" in refused("--tasks", "toy_choice", "--checkpoint", "7")
