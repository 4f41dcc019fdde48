"""The support matrix of `ctxext methods` against real exports and how their readers read them."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from ctxext import export
from ctxext.attention import Attention
from ctxext.cli.main import main
from ctxext.cli.support_matrix import COLUMNS, example, places
from ctxext.files import write_json
from ctxext.interop import hf
from ctxext.methods import all_methods, seam
from ctxext.methods.long_rope import LongRope
from ctxext.methods.ntk_by_parts import NTKByParts
from ctxext.model.lm import LM
from ctxext.model.trainable import LoRA
from ctxext.pipeline import train_only
from ctxext.rope import RopeScaling, Unscaled
from ctxext.serialization import to_json
from support.every_method import EVERY
from support.hf_files import write_hf
from support.llamas import LENGTH, TINY, WINDOW, random_params, tokenizer
from support.tiny_train import tiny_experiment, write_texts

METHODS = {name: example(method, TINY) for name, method in all_methods().items()}
NOT_POSITIONS = [name for name in METHODS if seam(type(METHODS[name])) != "positions"]
WIDE = dataclasses.replace(TINY, vocab_size=424)
PLAIN = {"yes": "default", "training": "default"}
"""The rope_type in files of models whose frequencies a method leaves as they are."""
SCALINGS = {name: method for name, method in METHODS.items() if isinstance(method, RopeScaling)}


def in_a_trained_model(method: RopeScaling | Attention) -> RopeScaling | Attention:
    return method.after_training if isinstance(method, Attention) else method


@pytest.mark.parametrize("name", NOT_POSITIONS)
def test_the_matrix_refuses_exactly_the_exports_that_fail(name, tmp_path):
    method = METHODS[name]
    place = places(method, TINY)["hf"]
    lm = LM(TINY, random_params(), tokenizer()).with_method(in_a_trained_model(method))
    if place["how"] == "refused":
        with pytest.raises(ValueError) as error:
            export.export(lm, tmp_path / "out", seq_len=LENGTH)
        assert str(error.value) == place["reason"]
        assert not (tmp_path / "out").exists()
        return
    export.export(lm, tmp_path / "out", seq_len=LENGTH)
    spec = json.loads((tmp_path / "out" / "config.json").read_text())["rope_parameters"]
    expected = (PLAIN | {"generic": "longrope"}).get(place["how"], place["how"])
    assert spec["rope_type"] == expected
    generic = "short_factor" in spec and spec["short_factor"] == spec["long_factor"]
    assert generic == (place["how"] == "generic")
    config, scaling = hf.read_config(tmp_path / "out")
    original = method if isinstance(method, RopeScaling) else Unscaled()
    for length in (WINDOW, LENGTH):
        actual = scaling.rope(config.rope_base(), length).inv_freq
        expected = original.rope(TINY.rope_base(), length).inv_freq
        # The absolute tolerance is for frequencies of zero.
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=2e-12)


def written_or_refused(place: dict[str, str], out: Path, write: Callable[[], object]) -> bool:
    """True if the file is written, False if it is refused for the reason in the matrix."""
    if place["how"] != "refused":
        write()
        return True
    with pytest.raises(ValueError) as error:
        write()
    assert str(error.value) == place["reason"]
    assert not out.exists()
    return False


@pytest.mark.parametrize("name", NOT_POSITIONS)
def test_meta_and_gguf_are_as_the_matrix_says(name, tmp_path):
    place = places(METHODS[name], WIDE)
    config = dataclasses.replace(WIDE, initializer_range=0.02)
    method = in_a_trained_model(METHODS[name])
    lm = LM(config, random_params(config), tokenizer()).with_method(method)
    meta = tmp_path / "out"
    if written_or_refused(
        place["meta"], meta, lambda: export.export(lm, meta, to="meta", seq_len=LENGTH)
    ):
        scaled = json.loads((meta / "rope.json").read_text())["method"] not in ("none", "plain")
        assert scaled == (place["meta"]["how"] == "rope.json")
    file = tmp_path / "out.gguf"
    if written_or_refused(
        place["gguf"], file, lambda: export.export(lm, file, to="gguf", seq_len=LENGTH)
    ):
        reader = gguf.GGUFReader(file)
        field = reader.fields.get("llama.rope.scaling.type")
        if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
            scaling_type = "divisors"
        elif field is None:
            scaling_type = "default"
        else:
            scaling_type = field.contents()
        how = place["gguf"]["how"]
        assert scaling_type == PLAIN.get(how, how)


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and a run that trained an adapter on it."""
    folder = tmp_path_factory.mktemp("run")
    base = folder / "base"
    write_hf(base, TINY, random_params(), Unscaled(), tokenizer(), dtype="float32")
    experiment = dataclasses.replace(
        tiny_experiment(write_texts(folder / "texts"), steps=1, checkpoint_every=1),
        init=str(base),
        model=None,
        rope=None,
        trainable=LoRA(rank=2),
    )
    return base, train_only(experiment, folder / "run", track=())


@pytest.mark.parametrize("name", NOT_POSITIONS)
def test_an_adapter_is_as_the_matrix_says(name, adapter_run, tmp_path):
    """The run's files name the method as if it had been trained; its base has the frequencies."""
    base, run = adapter_run
    method = METHODS[name]
    place = places(method, TINY)["peft"]
    out = tmp_path / "adapter"
    shutil.copytree(run, tmp_path / "run")
    if isinstance(method, RopeScaling):
        write_json(tmp_path / "run" / "base" / "scaling.json", to_json(method))
        if place["how"] != "refused":
            lm = LM(TINY, random_params(), tokenizer(), scaling=method)
            base = export.export(lm, tmp_path / "scaled", dtype="float32", seq_len=LENGTH)
    else:
        settings = json.loads((run / "config.json").read_text())
        write_json(tmp_path / "run" / "config.json", settings | {"attention": to_json(method)})
    if written_or_refused(
        place, out, lambda: export.export_adapter(tmp_path / "run", out, base=base)
    ):
        how = places(method, TINY)["hf"]["how"]
        rope_type = json.loads((out / "config.json").read_text())["rope_parameters"]["rope_type"]
        assert rope_type == (PLAIN | {"generic": "longrope"}).get(how, how)


def vllm_reads(scaling: RopeScaling) -> tuple[np.ndarray, float]:
    """Frequencies by transformers' functions and the attention factor by vLLM's own rule."""
    import torch
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = hf.config_json(TINY, scaling, seq_len=LENGTH, dtype="float32")
    spec = config["rope_parameters"]
    kind = spec["rope_type"]
    if kind == "default":
        return spec["rope_theta"] ** (-np.arange(0, 16, 2) / 16), 1.0
    length = LENGTH
    if kind == "dynamic":
        length = round(spec["factor"] * config["max_position_embeddings"])
    inv_freq, _ = ROPE_INIT_FUNCTIONS[kind](
        transformers.LlamaConfig(**config), torch.device("cpu"), seq_len=length
    )
    if kind == "yarn":
        attention_factor = 0.1 * np.log(spec["factor"]) + 1
    elif kind == "longrope":
        attention_factor = spec.get("long_mscale")
    else:
        attention_factor = 1.0
    return inv_freq.numpy(), attention_factor


@pytest.mark.parametrize(
    "name", [name for name in SCALINGS if places(SCALINGS[name], TINY)["hf"]["how"] != "refused"]
)
def test_vllm_gives_the_method_where_the_matrix_says_so(name):
    inv_freq, attention_factor = vllm_reads(SCALINGS[name])

    def same(length: int) -> bool:
        ours = SCALINGS[name].rope(TINY.rope_base(), length)
        return bool(
            np.allclose(inv_freq, ours.inv_freq, rtol=1e-5, atol=2e-12)
            and np.isclose(attention_factor, ours.attention_factor)
        )

    how = places(SCALINGS[name], TINY)["vllm"]["how"]
    assert (same(WINDOW // 2), same(LENGTH)) in {
        "refused": [(False, False), (False, True)],
        "long list": [(False, True)],
    }.get(how, [(True, True)])


@pytest.mark.parametrize("method", EVERY, ids=repr)
def test_a_method_with_other_fields_is_refused_for_its_own_reason(method):
    place = places(method, TINY)["hf"]
    try:
        hf.config_json(TINY, method, seq_len=LENGTH, dtype="float32")
    except ValueError as error:
        assert place == {"how": "refused", "reason": str(error)}
    else:
        assert place["how"] != "refused"


def test_the_command_shows_the_matrix(capsys):
    assert main(["methods", "--json"]) == 0
    rows = {row["name"]: row["formats"] for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == METHODS.keys()
    assert all(list(row) == list(COLUMNS) for row in rows.values())
    for row in rows.values():
        for place in row.values():
            assert bool(place.get("reason")) == (place["how"] == "refused")
    assert rows["yarn"]["hf"]["how"] == "yarn"
    assert rows["linear"]["hf"]["how"] == "linear"
    assert rows["ntk"]["hf"]["how"] == "default"
    assert rows["revised-yarn"]["hf"]["how"] == "generic"
    assert rows["long-rope"]["hf"]["how"] == "longrope"
    assert rows["pose"]["hf"]["how"] == rows["s2-attn"]["hf"]["how"] == "training"
    assert "September 2026" in rows["ntk-by-parts"]["vllm"]["reason"]
    assert isinstance(METHODS["ntk-by-parts"], NTKByParts)
    assert rows["self-extend"]["hf"]["reason"].startswith("SelfExtend is a way to run a model")
    assert main(["methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name, row in rows.items():
        cells = " ".join(place["how"] for place in row.values())
        assert f" {cells} " in f"{' '.join(lines[name].split())} "
    header = lines["name"]
    begins = [header.index(name) for name in (*rows["yarn"], "fields")]
    for name in rows:
        assert all(lines[name][begin - 2 : begin].isspace() for begin in begins[:-1]), name
    leading = LongRope(4.0, (1.0,) * 8, tuple(np.linspace(1, 4, 8)), leading_positions=9)
    reason = places(leading, TINY)["hf"]["reason"]
    assert "plain RoPE at the first 9 positions" in reason
