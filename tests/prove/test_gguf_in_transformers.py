"""What transformers does not read of a GGUF file, and that a proof of the file says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxext.interop import gguf
from ctxext.interop.hf_weights import WriteOptions
from ctxext.methods import NTK, Linear, Llama3, Yarn
from ctxext.prove.artifact import Artifact
from ctxext.prove.known_incompatibilities import known_incompatibilities
from ctxext.rope import RopeScaling, Unscaled
from support.hf_files import stored_model
from support.llamas import LENGTH, TINY, random_params, tokenizer

pytest.importorskip("gguf", reason="needs the extra gguf")
from support.gguf_files import rewrite  # noqa: E402


def save(path: Path, scaling: RopeScaling) -> Path:
    model = stored_model(TINY, random_params(TINY), scaling, tokenizer(), seq_len=LENGTH)
    gguf.write(path, model, WriteOptions("float32"))
    return path


def effects(path: Path) -> list[str]:
    known = known_incompatibilities(Artifact.recognize(path), tokenizer())
    return [entry.effect for entry in known if entry.reader == "transformers"]


@pytest.mark.parametrize("scaling", [Unscaled(), NTK(4.0)], ids=str)
def test_another_base_is_read(tmp_path, scaling):
    assert effects(save(tmp_path / "m.gguf", scaling)) == []


@pytest.mark.parametrize("scaling", [Linear(4.0), Yarn(4.0), Llama3(4.0)], ids=str)
def test_a_scaling_that_is_not_read_is_a_known_incompatibility(tmp_path, scaling):
    (effect,) = effects(save(tmp_path / "m.gguf", scaling))
    assert effect.startswith("does not read the scaling of a GGUF file")


@pytest.mark.check
@pytest.mark.usefixtures("readers")
@pytest.mark.parametrize("scaling", [NTK(4.0), Linear(4.0), Yarn(4.0), Llama3(4.0)], ids=str)
def test_transformers_reads_the_base_and_no_scaling(tmp_path, scaling):
    import torch
    import transformers

    save(tmp_path / "m.gguf", scaling)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    as_read = scaling if isinstance(scaling, NTK) else Unscaled()
    expected = as_read.rope(TINY.rope_base(), LENGTH).inv_freq
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq.numpy(), expected, rtol=1e-6)


@pytest.mark.check
@pytest.mark.usefixtures("readers")
def test_transformers_stops_at_a_file_named_mistral(tmp_path):
    import transformers

    save(tmp_path / "m.gguf", Unscaled())
    path = rewrite(tmp_path / "m.gguf", tmp_path / "n.gguf", {"general.name": "mistral"})
    with pytest.raises(NotImplementedError, match="Unknown gguf model_type: mistral"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    assert effects(path) == ["stops at a file whose general.name is mistral; give it another name"]
