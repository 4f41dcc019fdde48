"""Every frequency method in the model, in training and from the command line, against numpy."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ctxext import loading
from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.data import make_batch
from ctxext.evals.record import read_records
from ctxext.files import read_jsonl
from ctxext.methods import label, method_name
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import init_params
from ctxext.rope import Plain, Unscaled
from ctxext.rundir import RunDir
from ctxext.serialization import to_json
from ctxext.tokenization.tokenizer import load_tokenizer
from ctxext.tracking import JsonlSink
from ctxext.training.loop import train
from support import tiny
from support.every_method import CHECKED_LESS_OFTEN, EVERY, flags, sparingly
from support.hf_files import write_hf
from support.reference_llama import ReferenceLlama
from support.tiny_train import CONFIG, tiny_base, tiny_experiment, write_texts

FOLLOWING_THE_LENGTH = [
    scaling
    if scaling.depends_on_length and not isinstance(scaling, CHECKED_LESS_OFTEN)
    else pytest.param(scaling, marks=pytest.mark.check)
    for scaling in EVERY
]
"""Every method; training with those of which only one set of frequencies is used is checked less
often."""
SMALL = LlamaConfig(1024, 32, 48, 1, 2, 2, 16, 1e-5, 1e4, 32)


def test_labels_are_unique_and_short():
    labels = {label([scaling]) for scaling in EVERY}
    assert len(labels) == len(EVERY)
    assert max(map(len, labels)) < 110, "long vectors are shortened"


@pytest.mark.parametrize("scaling", sparingly(EVERY), ids=method_name)
@pytest.mark.parametrize("length", [20, 100])
def test_the_model_rotates_by_its_frequencies(scaling, length):
    tokens = tiny.tokens(1, length, seed=length)
    rope = scaling.rope(tiny.CONFIG.rope_base(), length)
    expected = ReferenceLlama(tiny.CONFIG, tiny.params()).feed(tokens[0], rope)
    actual = np.asarray(tiny.lm(scaling=scaling).logits(tokens))[0]
    np.testing.assert_allclose(actual, expected, atol=3e-5)
    bf16 = np.asarray(tiny.lm(scaling=scaling, dtype="bfloat16").logits(tokens))[0]
    assert np.corrcoef(bf16.ravel(), expected.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("scaling", FOLLOWING_THE_LENGTH, ids=method_name)
def test_training_rotates_by_its_frequencies(scaling, tmp_path):
    """The first step has the loss of the reference; the second differs: something was learned."""
    experiment = tiny_experiment(write_texts(tmp_path / "texts"), steps=2, batch_size=2)
    experiment = dataclasses.replace(experiment, rope=scaling)
    run = RunDir(tmp_path / "run").open(experiment)
    train(experiment, run, tiny_base(), sinks=[JsonlSink(run.metrics_file)], progress=False)
    losses = [row["loss"] for row in read_jsonl(run.metrics_file)]
    rows = experiment.data.open(tiny_base().tokenizer)
    batch = make_batch(rows, experiment.positions, seed=0, step=0, batch_size=2, seq_len=64)
    assert (batch.segment_ids == batch.segment_ids[:, :1]).all(), "one document per row"
    total = 0.0
    for i in range(2):
        rope = scaling.rope(CONFIG.rope_base(), 64)
        logits = ReferenceLlama(CONFIG, tiny_base().params).feed(batch.tokens[i], rope)
        top = logits.max(-1, keepdims=True)
        lse = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
        nll = lse - logits[np.arange(64), batch.targets[i]]
        total += (nll * batch.weights[i]).sum()
    assert losses[0] == pytest.approx(total / batch.weights.sum(), abs=2e-5)
    assert losses[1] != losses[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An HF directory with weights sharp enough that frequencies matter."""
    path = tmp_path_factory.mktemp("base") / "hf"

    def sharpened(x):
        return np.asarray(x) * (6 if x.ndim == 3 else 1)

    params = jax.tree.map(sharpened, init_params(SMALL, 0))
    write_hf(path, SMALL, params, Unscaled(), load_tokenizer(TINY_LLAMA), dtype="float32")
    return path


@pytest.mark.check
def test_eval_of_a_directory_by_flags(base, tmp_path, capsys):
    """`ctxext eval DIR --method NAME --field value` has the losses of the same method in Python."""
    all_losses = set()
    for scaling in EVERY:
        out = tmp_path / method_name(scaling)
        argv = ["eval", str(base), "--method", method_name(scaling), *flags(scaling, tmp_path)]
        options = ["--evals", "ppl", "--seq-len", "64", "--no-base", "--out", str(out)]
        code = main([*argv, *options])
        assert code == 0, capsys.readouterr().err
        records = read_records(out / "records.jsonl")
        # On a base without a scaling, plain RoPE is the base as it is.
        meant = Unscaled() if scaling == Plain() else scaling
        assert {record.model.label for record in records} == {label([meant])}
        lm = loading.load(base, method=scaling)
        expected = {record.item: record.scores.nll for record in perplexity_records(lm)}
        for record in records:
            assert record.scores.nll == pytest.approx(expected[record.item], rel=1e-6)
        all_losses.add(tuple(round(record.scores.nll, 3) for record in records))
    assert len(all_losses) == len(EVERY) - 1, "all but none and plain have different losses"


def perplexity_records(lm):
    from ctxext.evals.suite import SuiteConfig, evaluations

    (evaluation,) = evaluations(("ppl",), SuiteConfig((64,)))
    return evaluation(lm)


@pytest.mark.parametrize("name", ["custom", "long-rope"])
def test_vectors_from_a_file_in_an_experiment(name, base, tmp_path, capsys):
    file = tmp_path / "experiment.py"
    file.write_text(f"""
from ctxext.data import Stdlib
from ctxext.experiment import Experiment, Train
from ctxext.optim import Optim

experiment = Experiment(
    name="x",
    init={str(base)!r},
    data=Stdlib("train"),
    optim=Optim(1e-3),
    train=Train(steps=1, seq_len=128, batch_size=1),
)
""")
    scaling = next(x for x in EVERY if method_name(x) == name)
    options = flags(scaling, tmp_path, "--rope.")
    argv = ["train", str(file), "--method", name, *options, "--print-config"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["rope"] == json.loads(json.dumps(to_json(scaling)))
    (tmp_path / "bad.json").write_text('{"other": [1, 2]}')
    field = "divisors" if name == "custom" else "long-factor"
    value = argv.index(f"--rope.{field}") + 1
    assert main([*argv[:value], str(tmp_path / "bad.json"), *argv[value + 1 :]]) == 2
    assert "must be numbers" in capsys.readouterr().err
