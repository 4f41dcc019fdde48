"""A method that reads the length but forgets to declare it is refused wherever it would be used."""

import dataclasses

import pytest

from ctxext.interop.formats import encode_rope_hf
from ctxext.rope import Rope, RopeScaling
from ctxext.rundir import RunDir
from ctxext.training.loop import train
from support import tiny
from support.tiny_train import tiny_base, tiny_experiment, write_texts

MESSAGE = "Forgetful gives other frequencies at .* tokens than at .*set depends_on_length = True"


@dataclasses.dataclass(frozen=True)
class Forgetful(RopeScaling):
    """Linear with factor l / L; `depends_on_length` is missing."""

    def rope(self, base, seq_len):
        return Rope(base.inv_freq / max(1.0, seq_len / base.original_max_position_embeddings))


def test_the_model_refuses_an_undeclared_length():
    lm = tiny.lm(scaling=Forgetful())
    with pytest.raises(ValueError, match=MESSAGE):
        lm.logits(tiny.tokens(1, 20))
    with pytest.raises(ValueError, match=MESSAGE):
        lm.generate(tiny.tokens(1, 20), max_new_tokens=2)


def test_training_refuses_an_undeclared_length(tmp_path):
    experiment = tiny_experiment(write_texts(tmp_path / "texts"), steps=1)
    experiment = dataclasses.replace(experiment, rope=Forgetful())
    run = RunDir(tmp_path / "run").open(experiment)
    with pytest.raises(ValueError, match=MESSAGE):
        train(experiment, run, tiny_base(), progress=False)


def test_exports_refuse_an_undeclared_length():
    with pytest.raises(ValueError, match=MESSAGE):
        encode_rope_hf(Forgetful(), tiny.CONFIG, 64)
