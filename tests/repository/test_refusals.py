"""README's list "What it refuses": each of its sentences by running it."""

import ast
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file

import ctxext
from ctxext import report
from ctxext.cli.main import main
from ctxext.evals import Retrieval
from ctxext.evals.oracle import EchoPrompt, OracleConfig, PerfectReader
from ctxext.evals.record import EvaluatedModel
from ctxext.evaluate import evaluate
from ctxext.rope import Unscaled
from ctxext.tasks import Passkey
from support.hf_files import write_hf
from support.llamas import TINY, random_params, tokenizer
from support.toy_tokenizer import toy_source, toy_tokenizer

ROOT = Path(__file__).parents[2]
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": TINY.max_position_embeddings,
}
EXTENDED = {"max_position_embeddings": 1024, "rope_parameters": YARN}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("refusals") / "base"
    write_hf(path, TINY, random_params(TINY), Unscaled(), tokenizer(), dtype="float32")
    return path


def change_config(path: Path, **changes) -> None:
    """Set keys of config.json; None removes one."""
    config = json.loads((path / "config.json").read_text())
    config.pop("rope_scaling", None)
    config |= changes
    kept = {key: value for key, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(kept))


def unknown_scaling(path: Path) -> None:
    change_config(path, rope_parameters={"rope_type": "new", "rope_theta": 1e4})


def unknown_dtype(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"F32"', b'"F9"', 1))


def second_weights(path: Path) -> None:
    tensors = {name: torch.tensor(x) for name, x in load_file(path / "model.safetensors").items()}
    tensors["model.norm.weight"] += 1
    torch.save(tensors, path / "pytorch_model.bin")


def second_tokenizer(path: Path) -> None:
    settings = json.loads((path / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (path / "tokenizer.json").write_text(json.dumps(settings))


def missing_shard(path: Path) -> None:
    names = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def other_model(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    gpt2 = {name.replace("model.layers", "transformer.h"): x for name, x in tensors.items()}
    save_file(gpt2, path / "model.safetensors")


def splits(path: Path) -> None:
    (path / "texts").mkdir()
    for name in ("train", "test"):
        (path / "texts" / f"{name}-0.jsonl").write_text('{"text": "a"}\n')


def extended(path: Path) -> None:
    change_config(path, **EXTENDED)


IMPORT = "import DIR --out OUT"
REFUSED: dict[str, tuple[str, Callable[[Path], None] | None, tuple[str, ...]]] = {
    "a scaling that it does not understand": (
        IMPORT,
        unknown_scaling,
        ("config.json: rope_type 'new' is not supported; known: default, linear",),
    ),
    "a length that does not fit": (
        "eval DIR --evals passkey --seq-len 8 --out OUT",
        None,
        ("a prompt of 8 tokens cannot hold", "the shortest is"),
    ),
    "an unknown dtype": (
        "export DIR --out OUT --dtype float8",
        None,
        ("--dtype: 'float8' is unknown; did you mean float", "float16, bfloat16"),
    ),
    "an unknown dtype of a tensor": (IMPORT, unknown_dtype, ("model.safetensors", "copy it again")),
    "two sets of weights": (IMPORT, second_weights, ("two sets of weights that are", "keep one")),
    "two tokenizers": (
        IMPORT,
        second_tokenizer,
        ("different tokenizers: id 300", "remove the one"),
    ),
    "an index without its shards": (IMPORT, missing_shard, ("is missing; copy the shard again",)),
    "splits": (
        "prepare DIR/texts --tokenizer DIR --out OUT",
        splits,
        ("several splits (test, train): give the files or the directory of one",),
    ),
    "tensors of another kind of model": (
        IMPORT,
        other_model,
        ("18 other tensors, such as transformer.h.0.", "of different models, take both from one"),
    ),
    "an attention method that no format has": (
        "export DIR --method self-extend --group-size 2 --neighbor-window 16 --out OUT",
        None,
        ("SelfExtend is a way to run a model, for which the hf format has no field; export with",),
    ),
    "frequencies that a format cannot represent": (
        "export DIR --to meta --method dynamic-yarn --factor 2 --out OUT",
        None,
        ("which Meta's format cannot represent; export a static scaling",),
    ),
    "a factor that is not given": (
        "export DIR --method yarn --out OUT",
        None,
        ("method 'yarn' needs factor",),
    ),
    "a window that is not declared": (
        IMPORT,
        lambda path: change_config(path, max_position_embeddings=None),
        ("max_position_embeddings must be an integer, got None; add the window in tokens",),
    ),
    "less than the checkpoint declares": (
        "export DIR --method yarn --factor 2 --out OUT",
        extended,
        ("makes 128 tokens, 2 x the 64 of pre-training", "1,024", "give --allow-shorter"),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_one_line_no_success_and_nothing_left(kind, base, tmp_path, capsys):
    command, damage, messages = REFUSED[kind]
    directory = shutil.copytree(base, tmp_path / "dir")
    if damage is not None:
        damage(directory)
    before = sorted(tmp_path.rglob("*"))
    words = command.replace("DIR", str(directory)).replace("OUT", str(tmp_path / "out")).split()
    try:
        code = main(words)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ctxext: ")]
    assert len(errors) == 1
    for message in messages:
        assert message in errors[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_factor_says_what_it_counts_from_and_exports_state_window_and_theta(
    base, tmp_path, capsys
):
    directory = shutil.copytree(base, tmp_path / "dir")
    extended(directory)
    longer = f"export {directory} --method yarn --factor 32 --out {tmp_path / 'longer'}"
    assert main(longer.split()) == 0
    assert (
        "context: Yarn with factor 32: 2,048 tokens, 32 x the 64 of pre-training; as it is, "
        in (capsys.readouterr().err)
    )
    shorter = f"export {directory} --method yarn --factor 2 --out {tmp_path / 'shorter'}"
    assert main([*shorter.split(), "--allow-shorter"]) == 0
    assert "the checkpoint declares 1,024 tokens by Yarn with factor 16" in capsys.readouterr().err
    plain = shutil.copytree(base, tmp_path / "plain")
    change_config(plain, rope_theta=None, rope_parameters=None)
    assert main(f"import {plain} --out {tmp_path / 'imported'}".split()) == 0
    config = json.loads((tmp_path / "imported" / "config.json").read_text())
    assert (config["rope_theta"], config["max_position_embeddings"]) == (1e4, 64)


def test_protocols_have_tables_of_their_own_and_differences_have_intervals():
    oracle = OracleConfig(128)
    records = []
    for wording in ("code", "prose"):
        task = Passkey(wording=wording)
        questions = (Retrieval((128,), (0.0, 1.0), n=8, task=task, source=toy_source()),)
        for rope, model in (("none", PerfectReader), ("linear(factor=2)", EchoPrompt)):
            described = EvaluatedModel(128, rope=rope)
            reader = model(toy_tokenizer(), oracle)
            records += evaluate(reader, questions, model=described, progress=False)
    titles = [line for line in report.tables(records).splitlines() if ": right / asked, " in line]
    accuracies = [title for title in titles if "controls" not in title]
    assert [title.partition(":")[0] for title in accuracies] == [
        "passkey [task=Passkey(wording=code)]",
        "passkey [task=Passkey]",
    ]
    differences = [
        block for block in report.tables(records).split("\n\n") if ": difference to" in block
    ]
    assert differences
    for block in differences:
        assert "interval]" in block.splitlines()[0]


def test_no_library_is_patched():
    """No attribute of an imported module or class is assigned to, except of Python's own."""
    for path in Path(ctxext.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {
            (alias.asname or alias.name).partition(".")[0]
            for node in imports
            for alias in node.names
        }
        assigned = [
            target
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
        ]
        patched = [t.value.id for t in assigned if t.value.id in names - sys.stdlib_module_names]
        assert not patched, f"{path} assigns to attributes of {patched}"


def test_no_sentence_of_the_list_is_without_a_test():
    section = (ROOT / "README.md").read_text().partition("## What it refuses")[2]
    points = re.findall(r"^\* ([\w ]+)[.:]", section.partition("\n## ")[0], re.MULTILINE)
    assert points == [
        "To guess",
        "To fall back silently",
        "Hidden defaults",
        "To shrink a model silently",
        "To compare different protocols",
    ]
