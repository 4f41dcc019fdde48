"""What a notebook prints of a model, an experiment and records is a line, without arrays."""

import dataclasses

from ctxext.data import Stdlib
from ctxext.evals.record import RecoveryRecord, RecoveryScores
from ctxext.experiment import Experiment, Train
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.lm import LM
from ctxext.model.trainable import LoRA
from ctxext.optim import Optim
from support.llamas import TINY, random_params, tokenizer
from support.planted import passkey_answer, text_losses


def test_a_model():
    lm = LM(TINY, random_params(TINY), tokenizer())
    size = f"{TINY.num_parameters:,} parameters"
    assert repr(lm) == f"LM(llama, {size}, window 64, float32)"
    both = dataclasses.replace(lm, scaling=Yarn(4.0), attention=SelfExtend(2, 16))
    method = "Yarn with factor 4, SelfExtend"
    assert repr(both) == f"LM(llama, {size}, window 64, {method}, float32)"


def test_an_experiment():
    train = Train(steps=48, seq_len=1024, batch_size=4, accumulate=2)
    experiment = Experiment("mine", Stdlib("train"), Optim(1e-3), train)
    plain = "48 steps of 8 x 1,024 tokens, 0 evaluations"
    assert repr(experiment) == f"Experiment(mine: no base, none, {plain})"
    other = dataclasses.replace(experiment, init="DIR", rope=Yarn(4.0), trainable=LoRA(rank=2))
    assert repr(other) == f"Experiment(mine: DIR, yarn(factor=4) + lora(rank=2), {plain})"


def test_records():
    right = passkey_answer("yarn", 1024, 0, True)
    assert repr(right) == f"AnswerRecord(passkey at 1,024 tokens, {right.model.label}: right)"
    assert repr(passkey_answer("yarn", 64, 0, False)).endswith(": score 0)")
    losses = text_losses("yarn", 128, 0, nll=8.0, count=4)
    assert repr(losses).endswith(f" at 128 tokens, {losses.model.label}: 2 nats per token over 4)")
    both = RecoveryRecord(
        model=right.model,
        evaluation="recovery",
        item="x",
        settings="y",
        seq_len=64,
        cluster=right.cluster,
        question=right.question,
        scores=RecoveryScores(1.0, 2.5, 0.5, 4),
    )
    assert repr(both).endswith(": 1 nats, 2.5 without its needle)")
