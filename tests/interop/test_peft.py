"""Adapters: PEFT loads ours on the exported base, we merge PEFT's, and the logits agree."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ctxext import loading
from ctxext.cli.main import main
from ctxext.evals.record import read_records
from ctxext.export import export, export_adapter
from ctxext.interop import peft_reader
from ctxext.interop import peft_writer as ours
from ctxext.interop.peft_merge import trained_whole
from ctxext.methods import Linear
from ctxext.model.trainable import LINEARS, LastLayers, LoRA
from ctxext.pipeline import train_only
from ctxext.report import verdict
from ctxext.rope import Unscaled
from support.hf_files import write_hf
from support.llamas import TINY, random_params, tokenizer, torch_llama
from support.tiny_train import tiny_experiment, write_texts

TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 50))
RECIPES = {
    "plain": LoRA(rank=4, alpha=8.0),
    "every linear, rslora": LoRA(rank=3, alpha=5.0, targets=LINEARS, rslora=True, dropout=0.1),
    "longlora": LoRA(modules_to_save=("norm", "embed_tokens", "lm_head")),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def torch_logits(model) -> np.ndarray:
    mask = torch.ones(TOKENS.shape, dtype=torch.long)
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS), attention_mask=mask).logits.numpy()


def our_logits(path: Path, **options) -> np.ndarray:
    return np.asarray(loading.load(path, angles="float32", **options).logits(TOKENS))


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def transformers_model(path: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base"
    write_hf(path, TINY, random_params(), Unscaled(), tokenizer(), dtype="float32")
    return path


def run(texts: Path, base: Path, run_dir: Path, trainable=RECIPES["plain"], rope=None) -> Path:
    experiment = dataclasses.replace(
        tiny_experiment(texts, steps=3, checkpoint_every=3),
        init=str(base),
        model=None,
        rope=rope,
        trainable=trainable,
    )
    return train_only(experiment, run_dir, track=())


@pytest.mark.check
@pytest.mark.parametrize("name", RECIPES)
def test_peft_loads_what_a_run_trained(name, texts, base, tmp_path):
    recipe = RECIPES[name]
    adapter = tmp_path / "adapter"
    path = run(texts, base, tmp_path / "run", recipe)
    assert main(["export", str(path), "--to", "peft", "--out", str(adapter)]) == 0
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base.resolve())
    model = peft.AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    expected = our_logits(path)
    assert_close(torch_logits(model), expected)
    assert_close(torch_logits(model.merge_and_unload()), expected)
    without = torch_logits(transformers_model(base))
    assert np.abs(without - expected).max() > 1e-3 * np.abs(expected).max()
    # Reading the adapter loses no bit of it.
    stored = load_file(adapter / "adapter_model.safetensors")
    read = peft_reader.read(adapter, TINY)
    for module, product in read.low_rank.items():
        assert product.scale == recipe.scale
        stem = peft_reader.PREFIX + module.removesuffix(".weight")
        np.testing.assert_array_equal(product.a.read(), stored.pop(f"{stem}.lora_A.weight"))
        np.testing.assert_array_equal(product.b.read(), stored.pop(f"{stem}.lora_B.weight"))
    assert len(read.low_rank) == TINY.num_hidden_layers * len(recipe.targets)
    for module, tensor in read.replaced.items():
        np.testing.assert_array_equal(tensor.read(), stored.pop(peft_reader.PREFIX + module))
    assert not stored
    trained = trained_whole(read, random_params(), TINY)
    assert {path.split(".")[0] for path in trained if path.split(".")[0] != "segments"} == set(
        recipe.modules_to_save
    )
    assert_close(our_logits(base, adapter=adapter), expected)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_wrote_is_merged(rslora, tmp_path):
    torch.manual_seed(0)
    model = torch_llama(tmp_path / "base")
    config = peft.LoraConfig(
        r=5,
        lora_alpha=12,
        target_modules=["q_proj", "v_proj", "down_proj"],
        use_rslora=rslora,
        task_type="CAUSAL_LM",
        modules_to_save=["embed_tokens", "norm", "input_layernorm", "post_attention_layernorm"],
        lora_dropout=0.05,
    )
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = torch_logits(wrapped)
    assert_close(our_logits(tmp_path / "base", adapter=tmp_path / "adapter"), expected)
    plain = our_logits(tmp_path / "base")
    assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max()
    read = peft_reader.read(tmp_path / "adapter", TINY)
    assert {product.scale for product in read.low_rank.values()} == {12 / (5**0.5 if rslora else 5)}
    assert {product.a.shape[0] for product in read.low_rank.values()} == {5}
    assert len(read.replaced) == 2 + 2 * TINY.num_hidden_layers


@pytest.mark.check
def test_other_frequencies_need_a_base_that_has_them(texts, base, tmp_path):
    path = run(texts, base, tmp_path / "run", rope=Linear(2.0))
    adapter = tmp_path / "adapter"
    scaled = tmp_path / "scaled"
    with pytest.raises(
        ValueError,
        match=r"other frequencies \(linear\(factor=2\)\) than .*base, .* name it with --base",
    ):
        export_adapter(path, adapter)
    export(loading.load(base, method=Linear(2.0)), scaled, dtype="float32")
    assert main(f"export {path} --to peft --base {scaled} --out {adapter}".split()) == 0
    model = peft.PeftModel.from_pretrained(transformers_model(scaled), adapter)
    assert_close(torch_logits(model), our_logits(path))
    export(loading.load(base, method=Linear(2.0)), tmp_path / "rounded", dtype="bfloat16")
    with pytest.raises(ValueError, match="rounded does not hold the parameters"):
        export_adapter(path, tmp_path / "other", base=tmp_path / "rounded")
    assert not (tmp_path / "other").exists()


def test_the_command_line_merges_an_adapter_and_names_it_in_its_records(
    texts, base, tmp_path, capsys
):
    export_adapter(run(texts, base, tmp_path / "run"), tmp_path / "mine")
    argv = f"eval {base} --evals passkey --wording code --seq-len 64 --out {tmp_path}".split()
    assert main(argv) == 0
    assert "haystack: the sources of Python's standard library" in capsys.readouterr().err
    assert main([*argv, "--adapter", str(tmp_path / "mine")]) == 0
    records = read_records(tmp_path / "records.jsonl")
    models = list(dict.fromkeys(record.model for record in records))
    assert [(model.checkpoint, model.label) for model in models] == [
        ("base", "none"),
        ("base", "none, adapter mine"),
    ]
    assert [model.is_trained for model in models] == [False, True]
    assert models[0].weights != models[1].weights
    # The base is in float32, and so is what is merged into it.
    merged = tmp_path / "merged"
    argv = ["export", str(base), "--adapter", str(tmp_path / "mine"), "--out", str(merged)]
    assert main(argv) == 0
    assert {tensor.dtype for tensor in load_file(merged / "model.safetensors").values()} == {
        np.dtype("float32")
    }
    # What the adapter changes is told, and that it was not trained is not.
    text = "\n".join(verdict(records))
    assert "none with the adapter mine" in text
    assert "zero-shot" not in text


def test_runs_that_peft_cannot_represent_are_refused_with_the_reason(texts, base, tmp_path):
    with pytest.raises(ValueError, match="is not a run directory"):
        export_adapter(base, tmp_path / "adapter")
    with pytest.raises(ValueError, match="did not train with --method lora"):
        export_adapter(run(texts, base, tmp_path / "run", LastLayers(1)), tmp_path / "adapter")
    tied = dataclasses.replace(TINY, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="PEFT would separate them"):
        ours.write(
            tmp_path / "adapter", tied, LoRA(modules_to_save=("embed_tokens",)), {}, base="x"
        )
    argv = f"export {base} --to peft --dtype float16 --out {tmp_path / 'x'}".split()
    assert main(argv) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "only adapters of peft_type LORA"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"bias": None}, 'bias null stops PEFT too; write "none", if no biases were trained'),
        ({"use_dora": True}, "it lacks lora_magnitude_vector of model.layers.0.self_attn"),
        ({"rank_pattern": {"q_proj": 2}}, r"has shape \[4, 64\], this base needs \[2, 64\]"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern of q_proj must be a whole number from 1"),
        ({"rank_pattern": {"(a+)+b": 2}}, r"the pattern '\(a\+\)\+b' is too complicated; merge"),
        ({"target_modules": "(.|.)" * 20}, "is too complicated; merge the adapter with PEFT"),
        ({"target_modules": "q_proj("}, "is malformed"),
        ({"target_modules": "[["}, "is malformed"),
        ({"target_modules": "a{99999999999}"}, "is malformed"),
        ({"rank_pattern": {"(?i)q_proj": 4}}, "is malformed"),
        ({"layers_pattern": "(?P<layer>x)"}, "is not a plain name; merge"),
        ({"target_modules": ["q_proj"] * 99_999}, "target_modules must be a list of names"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern of q_proj must be a positive number"),
        ({"layers_to_transform": [0]}, "k_proj, which adapter_config.json does not name"),
        ({"target_modules": ["k_proj", "up_proj"]}, "does not name, so that PEFT ignores it"),
        ({"target_modules": "all-linear"}, "lacks the adapter of model.layers.0.mlp.down_proj"),
        ({"modules_to_save": ["norm"]}, "lacks model.layers.0.input_layernorm.weight, which"),
        ({"lora_bias": True}, "lora_bias is not supported; merge the adapter with PEFT, then"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is not supported; merge"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported; merge"),
        ({"brand_new_key": 1}, "brand_new_key is not supported; merge the adapter with PEFT"),
        ({"init_lora_weights": "pissa"}, "'pissa' changes the base too"),
        ({"r": 0}, "must be a whole number from 1"),
        ({"r": None}, "r must be a whole number from 1 to 16777216, got 'None'"),
        ({"lora_alpha": None}, "lora_alpha must be a positive number, got 'None'"),
        ({"lora_dropout": "x"}, "lora_dropout must be a number from 0 to 1, got 'x'"),
        ({"lora_dropout": 7}, "lora_dropout must be a number from 0 to 1, got '7'"),
        ({"r": 3}, r"lora_A has shape \[4, 64\], this base needs \[3, 64\]"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(change, message, tmp_path):
    lora = LoRA(rank=4)
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), lora.shapes(TINY)[0])
    ours.write(tmp_path / "adapter", TINY, lora, params, base="x")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        peft_reader.read(tmp_path / "adapter", TINY)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.layers.1.self_attn.q_proj.lora_B.weight",
            "lacks lora_B of model.layers.1.self_attn.q_proj",
        ),
        ("model.layers.0.self_attn.q_proj.bias", "holds .*bias, which is not part"),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", "holds .*lora_B.bias, which is not part"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "holds lora_A of .*q_proj twice"),
    ],
)
def test_a_tensor_missing_or_too_many_is_named(name, message, tmp_path):
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), LoRA().shapes(TINY)[0])
    ours.write(tmp_path / "adapter", TINY, LoRA(), params, base="x")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = peft_reader.PREFIX + name
    if key in tensors:
        del tensors[key]
    else:
        tensors[key] = np.ones(3, np.float32)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        peft_reader.read(tmp_path / "adapter", TINY)
