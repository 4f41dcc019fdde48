"""Every family from a checkpoint to a proven export and a report, by one run each."""

import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import ctxext
from ctxext.cli.main import main
from ctxext.data import Stdlib
from ctxext.evals import Retrieval
from ctxext.experiment import Experiment, Export, Train
from ctxext.export import convert
from ctxext.interop import hf
from ctxext.interop.families import FAMILIES
from ctxext.methods import LMInfinite, SelfExtend, Yarn, label
from ctxext.model.trainable import Full, LoRA, Trainable
from ctxext.optim import Optim
from ctxext.pipeline import Run
from ctxext.rope import Unscaled
from ctxext.tokenization.expressions import QWEN2
from ctxext.tokenization.tokenizer import CONFIG, JSON, Tokenizer
from support import families
from support.hf_files import write_hf
from support.llamas import random_params, tokenizer

WINDOW = 64
TARGET = 2 * WINDOW
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@functools.cache
def qwen_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with the rules of Qwen's, and without BOS."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE())
    library.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=417, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator([inspect.getsource(inspect)], trainer)
    library.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT,
    }
    files = {JSON: library.to_str().encode(), CONFIG: json.dumps(settings).encode()}
    return Tokenizer(files)


CASES = {
    "llama": "llama-bias",
    "mistral": "mistral-sw4",
    "ministral": "mistral-sw4",
    "qwen2": "qwen2-sw",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "falcon": "falcon-40b",
    "falcon-7b": "falcon-7b",
    "falcon-11b": "falcon-11b",
    "mpt": "mpt-h6",
    "ministral3": "ministral3",
}
ADAPTERS = LoRA(rank=2, targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
ADAPTED = r"(q|v|o|up|down)_proj\.kernel"
ONE_FUSED = (
    pytest.param("falcon", marks=pytest.mark.slow),
    pytest.param("mpt", marks=pytest.mark.slow),
)
"""Families with one matrix for queries, keys and values."""
IN_CHECK = ("llama", "mistral", "qwen3", "falcon", "ministral3")
CHANGES = {
    "ministral": {"layer_types": ["sliding_attention", "full_attention"]},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.1,
        }
    },
}
"""Name of a case here -> the golden model, and what differs in its config.json."""


def write_base(name: str, directory: Path) -> Path:
    """A random model of a family with a tokenizer, imported as a user would import it."""
    config = families.parts_config(CASES[name], **CHANGES.get(name, {}))
    its_tokenizer = qwen_tokenizer() if name.startswith("qwen") else tokenizer()
    config = dataclasses.replace(
        config, bos_token_id=its_tokenizer.bos_id, eos_token_id=its_tokenizer.eos_id
    )
    params = random_params(config)
    hub = directory / "hub"
    write_hf(hub, config, params, Unscaled(), its_tokenizer, dtype="float32")
    return convert(hub, directory / "base")


def experiment(base: Path, trainable: Trainable, **changes: Any) -> Experiment:
    return Experiment(
        name="family",
        init=str(base),
        data=Stdlib("train"),
        trainable=trainable,
        optim=Optim(learning_rate=1e-2),
        train=Train(steps=2, seq_len=TARGET, batch_size=1, remat="full", log_every=1),
        evals=(Retrieval(seq_lens=(TARGET,), depths=(0.5,), n=1),),
        export=Export(dtype="float32"),
        **changes,
    )


def leaves(params: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree by their dotted paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def check_run(run: Run, base: Path, model_type: str, trained: str) -> None:
    """The proof, the files, the report, and that training changed the parameters it is to change.

    trained: an expression for the paths of those.
    """
    proof = run.proof
    assert proof is not None and proof["equal"]
    assert {reader["reader"] for reader in proof["readers"]} == {"numpy", "transformers"}
    for reader in proof["readers"]:
        assert reader["token_ids_equal"] and reader["vocabulary_equal"]
    assert proof["max_position_embeddings"] == TARGET
    export = run.path / "export"
    assert json.loads((export / "config.json").read_text())["model_type"] == model_type
    report = (run.path / "report.html").read_text()
    assert ("Wavelength of every rotary pair" in report) == (model_type != "mpt")
    before = leaves(ctxext.load(base).params)
    after = leaves(ctxext.load(export).params)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if re.search(trained, name)}


@pytest.mark.usefixtures("readers")
def test_the_whole_way_of_an_mpt(tmp_path):
    """The family with most parts of its own: ALiBi, LayerNorm, one matrix for q, k and v."""
    base = write_base("mpt", tmp_path)
    run = ctxext.run(experiment(base, Full()), run_dir=tmp_path / "run", track=())
    check_run(run, base, "mpt", trained="")
    assert [(record.model.method, record.model.steps) for record in run.records] == [("none", 2)]


@pytest.mark.slow
@pytest.mark.usefixtures("readers")
def test_adapters_and_attention_methods_on_an_mpt(tmp_path):
    base = write_base("mpt", tmp_path)
    methods = (SelfExtend(2, 32), LMInfinite(32, 4))
    run = ctxext.run(
        experiment(base, ADAPTERS, zero_shot=methods), run_dir=tmp_path / "run", track=()
    )
    check_run(run, base, "mpt", trained=ADAPTED)
    measured = {(record.model.attention, record.model.steps) for record in run.records}
    assert measured == {(label([method]), 0) for method in methods} | {("causal", 2)}


def ways() -> Iterator[Any]:
    """Every family with both ways of training: one of them in `make check`, by turns.

    Families whose parts others have too are for `make slow`.
    """
    for number, name in enumerate(name for name in CASES if name != "mpt"):
        for trainable in (Full(), ADAPTERS):
            is_full = trainable == Full()
            is_its_turn = is_full == (number % 2 == 0) and name in IN_CHECK
            tier = pytest.mark.check if is_its_turn else pytest.mark.slow
            yield pytest.param(name, trainable, marks=tier, id=f"{name}-{label([trainable])[:4]}")


@pytest.mark.parametrize(("name", "trainable"), list(ways()))
@pytest.mark.usefixtures("readers")
def test_the_whole_way_of_a_family_under_yarn(name, trainable, tmp_path):
    base = write_base(name, tmp_path)
    run = ctxext.run(
        experiment(base, trainable, rope=Yarn(2.0)), run_dir=tmp_path / "run", track=()
    )
    check_run(run, base, name.partition("-")[0], trained="" if trainable == Full() else ADAPTED)
    config, scaling = hf.read_config(run.path / "export")
    assert scaling == Yarn(2.0)
    assert config == hf.read_config(base)[0]


@pytest.mark.parametrize("name", ONE_FUSED)
@pytest.mark.usefixtures("readers")
def test_adapters_on_a_base_in_eight_bits(name, tmp_path):
    """Queries, keys and values are quantized each by itself, out of the one matrix of the file."""
    base = write_base(name, tmp_path)
    lora = dataclasses.replace(ADAPTERS, quantize="int8")
    run = ctxext.run(experiment(base, lora), run_dir=tmp_path / "run", track=())
    assert run.proof is not None and run.proof["equal"]
    before = leaves(ctxext.load(base).params)
    after = leaves(ctxext.load(run.path / "export").params)
    kernel = before["segments.0.self_attn.k_proj.kernel"]  # without an adapter
    step = np.abs(kernel).max(axis=1, keepdims=True) / 127
    rounded = np.rint(kernel / step) * step
    np.testing.assert_allclose(
        after["segments.0.self_attn.k_proj.kernel"], rounded, atol=1e-6 * np.abs(kernel).max()
    )


@pytest.mark.parametrize("name", ONE_FUSED)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.usefixtures("readers")
def test_an_adapter_of_a_fused_matrix_is_proven(name, tmp_path):
    """Its rank is that of queries and values together, and the run has the sums of each alone."""
    base = write_base(name, tmp_path)
    run = ctxext.run(experiment(base, ADAPTERS), run_dir=tmp_path / "run", track=())
    adapter = tmp_path / "adapter"
    assert (
        main(["export", str(run.path), "--to", "peft", "--base", str(base), "--out", str(adapter)])
        == 0
    )
    assert main(["prove", str(adapter), "--against", str(run.path)]) == 0


def test_every_family_goes_the_whole_way():
    assert {name.partition("-")[0] for name in CASES} == set(FAMILIES)
