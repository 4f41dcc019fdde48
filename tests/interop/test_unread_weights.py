"""Weights in a directory that no reader takes: those that are read are right, the others named.

What is read comes from transformers and from Meta's files.
"""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ctxext import loading
from ctxext.cli.main import main
from ctxext.interop import meta, peft_reader, peft_writer
from ctxext.interop.hf_weights import WriteOptions
from ctxext.model.trainable import LoRA
from ctxext.rope import Unscaled
from support.hf_files import stored_model, write_hf
from support.llamas import TINY, random_params, tokenizer

FILE = "model.safetensors"
EMBEDDING = "model.embed_tokens.weight"
UNREAD = (
    "consolidated.safetensors",
    "ema.safetensors",
    "model.fp16.safetensors",
    "pytorch_model.fp16.bin",
)
STATE_OF_TRAINING = ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin")
AS_A_MODEL = (
    "To use another one, move it to a directory of its own with config.json and the tokenizer, as "
    "model.safetensors or pytorch_model.bin (shards with their index)"
)
AS_META = "move Meta's shards, params.json and tokenizer.model to their own directory"


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A directory in Hugging Face's format, and the same shape in Meta's with other numbers."""
    folder = tmp_path_factory.mktemp("clean")
    params = random_params(TINY)
    write_hf(folder / "hf", TINY, params, Unscaled(), tokenizer(), dtype="float32")
    other = stored_model(TINY, random_params(TINY, seed=1), Unscaled(), tokenizer())
    meta.write(folder / "meta", other, WriteOptions("float32", shards=2))
    return folder


@pytest.fixture
def model(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean / "hf", tmp_path / "m"))


def add_unread(directory: Path) -> None:
    """Weights of another model, in files that transformers does not take, and no weights."""
    stored = {name: value + 1 for name, value in load_file(directory / FILE).items()}
    save_file(stored, directory / "consolidated.safetensors")
    save_file(stored, directory / "model.fp16.safetensors")
    save_file({EMBEDDING: stored[EMBEDDING]}, directory / "ema.safetensors")
    for name in ("pytorch_model.fp16.bin", *STATE_OF_TRAINING):
        (directory / name).write_bytes(b"never opened")


def add_meta(directory: Path, clean: Path) -> None:
    for path in [*(clean / "meta").glob("*.pth"), clean / "meta" / "params.json"]:
        shutil.copy(path, directory)


def warning(caplog) -> str:
    """The only warning that there was, which is forgotten."""
    (text,) = [record.getMessage() for record in caplog.records if record.name == "ctxext"]
    caplog.clear()
    return text


def embedding(directory: Path) -> np.ndarray:
    return loading.read_checkpoint(directory).tensors[EMBEDDING].read()


def test_weights_that_transformers_does_not_take_are_named(model, caplog):
    add_unread(model)
    stock = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    np.testing.assert_array_equal(embedding(model), stock.state_dict()[EMBEDDING].numpy())
    unread = ", ".join(UNREAD)
    assert warning(caplog) == (
        f"{model}: {FILE} is read, as in transformers; not read: {unread}. {AS_A_MODEL}"
    )


def test_one_of_them_is_read_as_the_warning_says(model, caplog):
    add_unread(model)
    own = model.with_name("own")
    own.mkdir()
    for path in model.glob("*.json"):
        shutil.copy(path, own)
    shutil.copy(model / "consolidated.safetensors", own / FILE)
    np.testing.assert_array_equal(embedding(own), embedding(model) + 1)
    assert f"{model}: " in warning(caplog)  # none of `own`


def test_a_model_in_two_formats_is_read_as_transformers_does(clean, model, caplog):
    add_meta(model, clean)
    stock = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    np.testing.assert_array_equal(embedding(model), stock.state_dict()[EMBEDDING].numpy())
    assert warning(caplog) == (
        f"{model}: {FILE} is read, as in transformers; not read: consolidated.00.pth (Meta's "
        f"format), consolidated.01.pth (Meta's format). To use another one, {AS_META}"
    )


def test_metas_format_is_read_where_there_is_no_config(clean, model, caplog):
    add_meta(model, clean)
    shutil.copy(clean / "meta" / "rope.json", model)
    (model / "config.json").unlink()
    np.testing.assert_array_equal(embedding(model), embedding(clean / "meta"))
    assert warning(caplog) == (
        f"{model}: consolidated.00.pth is read, as in Meta's code (there is no config.json); not "
        f"read: {FILE}. {AS_A_MODEL}"
    )


def test_shards_links_and_many_others(clean, tmp_path, caplog):
    out = tmp_path / "m"
    params = random_params(TINY)
    options = {"dtype": "float32", "max_shard_size": 60_000}
    write_hf(out, TINY, params, Unscaled(), tokenizer(), **options)
    torch.save({"x": torch.ones(3)}, out / "consolidated.00.pth")  # of another model
    first, *_ = sorted(out.glob("model-*"))
    (out / "latest.safetensors").symlink_to(first.name)
    (out / "gone.safetensors").symlink_to("nowhere")
    for i in range(9):
        (out / f"step{i}.ckpt").touch()
    shutil.copy(first, out / "model-old.gguf")
    np.testing.assert_array_equal(embedding(out), embedding(clean / "hf"))
    assert warning(caplog) == (
        f"{out}: {FILE}.index.json is read, as in transformers; not read: consolidated.00.pth "
        "(Meta's format), model-old.gguf (GGUF), step0.ckpt, step1.ckpt, 7 more. "
        f"{AS_A_MODEL}; or {AS_META}; or give the GGUF file itself"
    )


def test_other_weights_next_to_an_adapter(tmp_path, caplog):
    adapter = tmp_path / "adapter"
    lora = LoRA(rank=2)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), lora.shapes(TINY)[0])
    peft_writer.write(adapter, TINY, lora, zeros, base="base")
    for name in STATE_OF_TRAINING:
        (adapter / name).touch()
    peft_reader.read(adapter, TINY)
    assert not caplog.records
    (adapter / "non_lora_trainables.bin").touch()
    peft_reader.read(adapter, TINY)
    assert warning(caplog) == (
        f"{adapter}: adapter_model.safetensors is read, as in PEFT; not read: "
        "non_lora_trainables.bin. To use another one, move it to a directory of its own with "
        "adapter_config.json, as adapter_model.safetensors"
    )


@pytest.mark.parametrize(
    "command",
    [
        "import {model} --out {out}",
        "export {model} --method linear --factor 2 --out {out}",
        "export {model} --to meta --out {out}",
        pytest.param("prove {model}", marks=pytest.mark.check),
        pytest.param("prove {clean} --against {model}", marks=pytest.mark.slow),
        pytest.param("generate {model} --prompt x --max-new-tokens 1", marks=pytest.mark.slow),
        pytest.param("eval {model} --evals ppl --seq-len 64", marks=pytest.mark.slow),
        pytest.param("run {file} --init {model} --run-dir {out}", marks=pytest.mark.check),
    ],
)
def test_every_command_says_it_once(command, clean, model, tmp_path, caplog, monkeypatch):
    """It opens the directory several times: for its window, its dtype and its numbers."""
    monkeypatch.chdir(tmp_path)
    add_unread(model)
    copy = shutil.copytree(clean / "hf", tmp_path / "clean")
    file = tmp_path / "experiment.py"
    file.write_text(
        "from ctxext.data import Stdlib\n"
        "from ctxext.experiment import Experiment, Train\n"
        "from ctxext.optim import Optim\n"
        "experiment = Experiment(name='x', data=Stdlib('train'), optim=Optim(learning_rate=1e-3),\n"
        "    train=Train(steps=1, seq_len=64, batch_size=1))\n"
    )
    words = command.format(model=model, clean=copy, file=file, out=tmp_path / "out")
    assert main(words.split()) == 0
    assert f"{model}: {FILE} is read" in warning(caplog)
