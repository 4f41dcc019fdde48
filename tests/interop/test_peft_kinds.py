"""Adapters of every kind that peft writes for a Llama: peft's logits, or the reason for a refusal.

Every adapter is trained by noise, saved by peft, and read by peft and by us.
"""

import copy
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ctxext import loading
from ctxext.cli.main import main
from ctxext.interop import peft_reader
from support.llamas import TINY, torch_llama

TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 50))
WEIGHTS = "adapter_model.safetensors"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base"
    torch_llama(path)
    return path


@pytest.fixture(scope="module")
def torch_base(base):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )


def logits(model) -> np.ndarray:
    mask = torch.ones(TOKENS.shape, dtype=torch.long)
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS), attention_mask=mask).logits.numpy()


def train(torch_base, **fields):
    """An adapter whose every parameter is moved by noise."""
    torch.manual_seed(0)
    fields = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]} | fields
    config = peft.LoraConfig(task_type="CAUSAL_LM", **fields)
    model = peft.get_peft_model(copy.deepcopy(torch_base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                # Magnitudes of DoRA stay positive, as norms are.
                noise = torch.rand_like if "magnitude" in name else torch.randn_like
                parameter.add_(0.1 * noise(parameter))
    return model


def our_logits(base: Path, adapter: Path) -> np.ndarray:
    return np.asarray(loading.load(base, adapter=adapter, angles="float32").logits(TOKENS))


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "DoRA": {"use_dora": True, "target_modules": EVERY},
    "DoRA, embedding": {"use_dora": True, "target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "ranks": {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7}},
    "ranks, alphas, rslora": {
        "rank_pattern": {"down_proj": 3},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 11.5, "q_proj": 5, "mlp.down_proj": 2},
        "use_rslora": True,
    },
    "ranks, DoRA, part of the layers": {
        "rank_pattern": {"q_proj": 2},
        "use_dora": True,
        "layers_to_transform": 1,
        "target_modules": [*EVERY, "model.layers.0.self_attn.v_proj"],
    },
    "part of the layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    "head alone": {"target_modules": ["lm_head"]},
    "every norm": {"modules_to_save": ["norm"]},
    "final norm": {"modules_to_save": ["model.norm"]},
    "one norm of one layer": {"modules_to_save": ["layers.1.input_layernorm"]},
    "a projection as a whole": {"modules_to_save": ["layers.0.mlp.up_proj", "lm_head"]},
    "pattern": {"target_modules": r".*layers\.0\..*(q|v)_proj"},
    "all linear, without some": {
        "target_modules": "all-linear",
        "exclude_modules": ["gate_proj", "model.layers.1.self_attn.q_proj"],
    },
    "fan_in_fan_out": {"fan_in_fan_out": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_peft_is_read_as_peft_reads_it(kind, base, torch_base, tmp_path):
    model = train(torch_base, **KINDS[kind])
    model.save_pretrained(tmp_path)
    expected = logits(model)
    assert np.abs(expected - logits(torch_base)).max() > 1e-2 * np.abs(expected).max()
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(torch_base), tmp_path)
    assert_close(logits(loaded), expected)
    assert_close(our_logits(base, tmp_path), expected)


def test_adapters_in_bfloat16_and_in_the_files_of_torch(base, torch_base, tmp_path):
    model = train(torch_base, modules_to_save=["embed_tokens"])
    model.save_pretrained(tmp_path)
    stored = {
        name: torch.from_numpy(value).bfloat16()
        for name, value in load_file(tmp_path / WEIGHTS).items()
    }
    (tmp_path / WEIGHTS).unlink()
    torch.save(stored, tmp_path / "adapter_model.bin")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(torch_base), tmp_path)
    assert_close(our_logits(base, tmp_path), logits(loaded))


def test_two_files_of_an_adapter_hold_the_same_or_are_refused(base, torch_base, tmp_path):
    model = train(torch_base)
    model.save_pretrained(tmp_path)
    stored = {name: torch.from_numpy(x) for name, x in load_file(tmp_path / WEIGHTS).items()}
    torch.save(stored, tmp_path / "adapter_model.bin")
    assert_close(our_logits(base, tmp_path), logits(model))
    stored[next(iter(stored))] *= 2
    torch.save(stored, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="two adapters that are not the same, adapter_model.safe"):
        peft_reader.read(tmp_path, TINY)
    stored = {name: torch.from_numpy(x).half() for name, x in load_file(tmp_path / WEIGHTS).items()}
    torch.save(stored, tmp_path / "adapter_model.bin")
    dtypes = f"float32 in {WEIGHTS}, float16 in adapter_model.bin"
    with pytest.raises(ValueError, match=rf"\(the same numbers in two dtypes: {dtypes}\)"):
        peft_reader.read(tmp_path, TINY)
    del stored[next(iter(stored))]
    torch.save(stored, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=rf"lora_A.weight, which only {WEIGHTS} has\); keep one"):
        peft_reader.read(tmp_path, TINY)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
def test_names_of_adapters_inside_the_keys(prefix, base, torch_base, tmp_path):
    model = train(torch_base, use_dora=True, modules_to_save=["model.norm"])
    model.save_pretrained(tmp_path)
    kept = ("lora_", "modules_to_save")
    raw = {
        prefix + name: value.detach().numpy()
        for name, value in model.state_dict().items()
        if any(part in name for part in kept)
    }
    assert any(".default." in name for name in raw)
    save_file(raw, tmp_path / WEIGHTS)
    assert_close(our_logits(base, tmp_path), logits(model))
    if not prefix:
        with warnings.catch_warnings(record=True):
            ignored = _peft_reading(torch_base, tmp_path)
        assert ignored is None or np.abs(ignored - logits(model)).max() > 1e-3  # peft loses it
    for name in [*raw]:
        raw[name.replace(".default", ".other")] = raw[name]
    save_file(raw, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="holds several adapters, default, other; save one"):
        peft_reader.read(tmp_path, TINY)


def _peft_reading(torch_base, directory: Path) -> np.ndarray | None:
    try:
        return logits(peft.PeftModel.from_pretrained(copy.deepcopy(torch_base), directory))
    except KeyError:
        return None


def test_a_directory_of_adapters_names_them(torch_base, tmp_path):
    model = train(torch_base)
    model.add_adapter("second", peft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="has no adapter_config.json; give one of its .*: second"):
        peft_reader.read(tmp_path, TINY)


# LongLoRA


def long_lora(torch_base, directory: Path):
    """The files that LongLoRA's get_trainable_weights.py makes, and the model that they are of."""
    model = train(torch_base, modules_to_save=["embed_tokens", "norm"])
    model.save_pretrained(directory)
    stored = {name: torch.from_numpy(x) for name, x in load_file(directory / WEIGHTS).items()}
    (directory / WEIGHTS).unlink()
    settings = json.loads((directory / "adapter_config.json").read_text())
    settings["modules_to_save"] = None
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    adapter = {name: value for name, value in stored.items() if "lora" in name}
    torch.save(adapter, directory / "adapter_model.bin")
    trained = {
        name.removeprefix("base_model.model."): value
        for name, value in stored.items()
        if "lora" not in name
    }
    torch.save(trained, directory / "trainable_params.bin")
    return model, trained


def test_trainable_params_of_longlora_are_merged(base, torch_base, tmp_path, caplog):
    model, trained = long_lora(torch_base, tmp_path)
    expected = logits(model)
    # As LongLoRA's own script merges them.
    merged = copy.deepcopy(torch_base)
    merged.load_state_dict(torch.load(tmp_path / "trainable_params.bin"), strict=False)
    assert_close(logits(peft.PeftModel.from_pretrained(merged, tmp_path)), expected)
    assert_close(our_logits(base, tmp_path), expected)
    assert "trainable_params.bin is merged too, as LongLoRA does; PEFT by itself" in caplog.text
    # Their padding token, for which no base has a row.
    embedding = trained["model.embed_tokens.weight"]
    trained["model.embed_tokens.weight"] = torch.cat([embedding, embedding[:1]])
    torch.save(trained, tmp_path / "trainable_params.bin")
    with pytest.raises(
        ValueError, match=r"trainable_params.bin: .* the vocabulary was grown by 1 tokens; resize"
    ):
        peft_reader.read(tmp_path, TINY)
    torch.save({"model.layers.9.x": embedding}, tmp_path / "trainable_params.bin")
    with pytest.raises(ValueError, match="model.layers.9.x is not a tensor of this base"):
        peft_reader.read(tmp_path, TINY)


def test_another_base_or_tokenizer_than_the_adapters_is_said(base, torch_base, tmp_path, caplog):
    adapter = tmp_path / "adapter"
    train(torch_base).save_pretrained(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())

    def notes(named: str | None, directory: Path = base) -> str:
        new = settings | {"base_model_name_or_path": named}
        (adapter / "adapter_config.json").write_text(json.dumps(new))
        caplog.clear()
        loading.load(directory, adapter=adapter)
        return caplog.text

    moved = shutil.copytree(base, tmp_path / "models--someone--llama" / "snapshots" / "1234")
    for named in (str(base), f"{base}/", "someone/Base", "/gone/base", "C:\\gone\\base", "", None):
        assert notes(named) == ""
    assert notes("someone/llama", moved) == ""
    for named, directory in (("someone/llama", base), (str(base), moved), ("someone/base", moved)):
        assert f"names {named} as its base and is merged into {directory}: if" in notes(
            named, directory
        )
    recorded = json.loads((moved / "config.json").read_text())
    recorded["_name_or_path"] = "someone/base"
    (moved / "config.json").write_text(json.dumps(recorded))
    assert notes("someone/base", moved) == ""

    for path in base.glob("token*"):
        shutil.copy(path, adapter)
    assert notes(str(base)) == ""
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    assert "chat_template.jinja of the adapter" in notes(str(base))
    assert "are not used: copy them there" in caplog.text


@pytest.mark.check
def test_longloras_adapter_is_proven(base, torch_base, tmp_path):
    long_lora(torch_base, tmp_path)
    assert main(["prove", str(tmp_path), "--against", str(base)]) == 0


@pytest.mark.parametrize(
    "kind",
    [
        "ranks, DoRA, part of the layers",
        pytest.param("DoRA, embedding", marks=pytest.mark.check),
    ],
)
def test_kinds_of_adapters_are_proven(kind, base, torch_base, tmp_path):
    train(torch_base, **KINDS[kind]).save_pretrained(tmp_path)
    assert main(["prove", str(tmp_path), "--against", str(base)]) == 0


# Refused


def test_a_grown_vocabulary_is_refused_with_the_way_out(base, torch_base, tmp_path):
    model = copy.deepcopy(torch_base)
    model.resize_token_embeddings(TINY.vocab_size + 5)
    train(model, modules_to_save=["embed_tokens", "lm_head"]).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"shape \[425, 64\], this base needs \[420, 64\]: the vocabulary was grown by 5 "
        "tokens; resize the base's embeddings, merge the adapter with PEFT, then import",
    ):
        peft_reader.read(tmp_path, TINY)


def test_a_base_with_the_grown_vocabulary_is_the_way_out(base, torch_base, tmp_path):
    resized = copy.deepcopy(torch_base)
    resized.resize_token_embeddings(TINY.vocab_size + 5)
    model = train(resized, modules_to_save=["embed_tokens", "lm_head"])
    model.save_pretrained(tmp_path / "adapter")
    resized.save_pretrained(tmp_path / "resized")
    for file in base.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "resized")
    assert_close(our_logits(tmp_path / "resized", tmp_path / "adapter"), logits(model))


@pytest.mark.parametrize(
    "fields",
    [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["embed_tokens"]}],
    ids=["whole", "adapter"],
)
def test_a_tied_embedding_is_refused(fields, tmp_path):
    model = torch_llama(tmp_path / "tied", tie_word_embeddings=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(model, **fields).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="it changes model.embed_tokens.weight, but the embedding"):
        loading.load(tmp_path / "tied", adapter=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base too; merge"),
        ({"bias": "lora_only"}, "bias 'lora_only' is not supported, only 'none'; merge"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is not supported; merge"),
    ],
)
def test_kinds_that_are_refused(fields, message, torch_base, tmp_path):
    train(torch_base, **fields).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        peft_reader.read(tmp_path, TINY)
    assert "then import the result" in str(error.value)


def test_other_adapters_than_lora_are_refused(torch_base, tmp_path):
    config = peft.IA3Config(
        target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"
    )
    peft.get_peft_model(copy.deepcopy(torch_base), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only adapters of peft_type LORA .* merge the adapter"):
        peft_reader.read(tmp_path, TINY)


def test_the_state_of_a_whole_peft_model_is_refused(torch_base, tmp_path):
    model = train(torch_base)
    model.save_pretrained(tmp_path)
    save_file({n: x.detach().numpy() for n, x in model.state_dict().items()}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="save the adapter with PEFT's save_pretrained"):
        peft_reader.read(tmp_path, TINY)
