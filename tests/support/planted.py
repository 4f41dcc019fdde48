"""Planted runs: records of an invented comparison with known numbers, and run directories."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ctxext.data import Stdlib
from ctxext.evals.perplexity import by_position
from ctxext.evals.record import (
    AnswerRecord,
    AnswerScores,
    Cluster,
    Condition,
    EvalRecord,
    EvaluatedModel,
    LossEstimator,
    LossRecord,
    LossScores,
    Question,
)
from ctxext.experiment import Experiment, Train
from ctxext.files import write_json, write_text
from ctxext.methods.linear import Linear
from ctxext.methods.ntk import NTK
from ctxext.methods.yarn import Yarn
from ctxext.model.config import LlamaConfig
from ctxext.optim import Optim
from ctxext.rope import Unscaled
from ctxext.serialization import to_json

WINDOW = 256
SEQ_LENS = (256, 512, 768, 1024)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
ROPES = {
    "none": Unscaled(),
    "linear(factor=4)": Linear(4.0),
    "ntk(factor=4)": NTK(4.0),
    "yarn(factor=4)": Yarn(4.0),
}
# (method, training steps): effective context length in tokens, and accuracy within it.
EFFECTIVE_CONTEXT = {
    ("none", 0): (350, 0.95),
    ("none", 60): (430, 0.95),
    ("linear(factor=4)", 0): (128, 0.3),
    ("linear(factor=4)", 60): (700, 0.9),
    ("ntk(factor=4)", 0): (520, 0.8),
    ("ntk(factor=4)", 60): (900, 0.95),
    ("yarn(factor=4)", 0): (740, 0.9),
    ("yarn(factor=4)", 60): (1040, 0.97),
}


def chance(*parts: object) -> float:
    """A pseudo-random number from 0 to 1 that depends only on the parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") / 2**48


def model(rope: str, steps: int, checkpoint: str = "") -> EvaluatedModel:
    return EvaluatedModel(
        window=WINDOW, rope=rope, checkpoint=checkpoint, steps=steps, train_seq_len=1024
    )


def label(rope: str, steps: int) -> str:
    return model(rope, steps).label


def passkey_record(
    rope: str,
    steps: int,
    seq_len: int,
    depth: float,
    i: int,
    correct: bool,
    *,
    condition: Condition = "needle",
    checkpoint: str = "",
    hint: float = 0.7,
) -> AnswerRecord:
    """The answer to passkey question `i` at a length and depth.

    hint: the probability of the gold answer where the answer is correct.
    """
    luck = chance("kind", rope, seq_len, depth, i)
    kinds = ("made up", "copied", "distractor", "nothing", "no number")
    nll = 0.1 if correct else 1.9
    if condition == "no-needle":
        nll = 2.1 + 0.2 * luck
    control = "" if condition == "needle" else f"-{condition}"
    item = f"passkey/aa{control}/{seq_len}/{depth}/{i}"
    document = int(12 * chance("d", seq_len, depth, i))
    needle_only = condition == "needle-only"
    return AnswerRecord(
        model=model(rope, steps, checkpoint),
        evaluation="retrieval",
        item=item,
        settings="aa",
        seq_len=seq_len,
        cluster=Cluster(document=item if needle_only else document, text=item),
        question=Question(
            task="passkey",
            fields={"digits": 5},
            condition=condition,
            needle_item=f"passkey/aa/{seq_len}/{depth}/{i}",
            tokens=seq_len,
            prompt_sha256=f"{seq_len}/{depth}/{i}{control}",
            gold=(1,),
            depth=depth,
            depth_achieved=depth,
            distance=round((1 - depth) * (seq_len - 16)) + 6,
            haystack=() if needle_only else ((document, 0, seq_len),),
        ),
        scores=AnswerScores(
            prediction=(int(correct),),
            text=str(int(correct)),
            metric="exact",
            score=float(correct),
            correct=bool(correct),
            answer_logprobs=(-nll,),
            answer_nll=nll,
            answer_probability=hint if correct else 0.02,
            choices=4,
            chosen=bool(correct) or luck < 0.25,
            failure=None if correct else kinds[int(5 * luck**1.5)],
        ),
    )


def passkey_answer(
    rope: str, seq_len: int, i: int, correct: bool, *, condition: Condition = "needle"
) -> AnswerRecord:
    """An answer of a checkpoint evaluated on its own: an NLL of 0.5 if it is right, else 1.5."""
    record = passkey_record(rope, 0, seq_len, 0.5, i, correct, condition=condition)
    return dataclasses.replace(
        record,
        model=EvaluatedModel(window=WINDOW, rope=rope),
        scores=dataclasses.replace(record.scores, answer_nll=0.5 if correct else 1.5),
    )


def text_losses(rope: str, seq_len: int, document: int, *, nll: float, count: int) -> LossRecord:
    """The losses on one text of a checkpoint evaluated on its own."""
    scores = LossScores(nll=nll, count=count, num_bytes=3 * count)
    return loss_record(EvaluatedModel(window=WINDOW, rope=rope), seq_len, document, scores)


def loss_record(
    model: EvaluatedModel, seq_len: int, document: int, scores: LossScores
) -> LossRecord:
    item = f"ppl/bb/{seq_len}/{document}/0"
    return LossRecord(
        model=model,
        evaluation="ppl",
        item=item,
        settings="bb",
        seq_len=seq_len,
        cluster=Cluster(document=document, text=item),
        estimator=LossEstimator("same-target"),
        scores=scores,
    )


def retrieval(rope: str, steps: int, n: int = 12) -> list[AnswerRecord]:
    """Answers that depend on the item's difficulty and the variant's effective context length."""
    far, good = EFFECTIVE_CONTEXT[rope, steps]
    records = []
    for seq_len in SEQ_LENS:
        for depth in DEPTHS:
            for i in range(n):
                distance = round((1 - depth) * (seq_len - 16)) + 6
                odds = good / (1 + math.exp((0.5 * distance + 0.5 * seq_len - far) / 60))
                hard = chance("hard", seq_len, depth, i)
                luck = chance("variant", rope, steps, seq_len, depth, i)
                correct = 0.75 * hard + 0.25 * luck < odds
                records.append(passkey_record(rope, steps, seq_len, depth, i, correct))
    return records


def controls(rope: str, steps: int, n: int = 10) -> list[AnswerRecord]:
    """No needle: nearly never right. Needle only: nearly always."""
    odds: dict[Condition, float] = {"no-needle": 0.01, "needle-only": 0.97}
    return [
        passkey_record(
            rope, steps, seq_len, 0.5, i, chance("control", kind, seq_len, i) < p, condition=kind
        )
        for kind, p in odds.items()
        for seq_len in SEQ_LENS
        for i in range(n)
    ]


def perplexity(rope: str, steps: int) -> list[LossRecord]:
    """Losses that fall with context up to the effective context length, and rise beyond it."""
    far, _ = EFFECTIVE_CONTEXT[rope, steps]
    records = []
    for seq_len in SEQ_LENS:
        for document in range(8):
            context = np.arange(1, seq_len)
            nll = 3.2 - 0.13 * np.log2(np.minimum(context, far))
            nll = nll + np.maximum(0, np.log2(context / far)) * 1.3
            nll = nll - 0.12 * (steps > 0) + 0.5 * (chance("doc", document) - 0.5)
            scores = LossScores(
                nll=float(nll[-128:].sum()),
                count=128,
                num_bytes=410 + document,
                by_position=by_position(nll) if seq_len == SEQ_LENS[-1] else None,
            )
            records.append(loss_record(model(rope, steps), seq_len, document, scores))
    return records


def planted_records(n: int = 12) -> list[EvalRecord]:
    """Records of four methods, zero-shot and after 60 steps, with controls of best and worst."""
    records: list[EvalRecord] = []
    for rope, steps in EFFECTIVE_CONTEXT:
        records += retrieval(rope, steps, n)
    records += controls("yarn(factor=4)", 60) + controls("none", 0)
    for rope, steps in EFFECTIVE_CONTEXT:
        records += perplexity(rope, steps)
    return records


def experiment(rope: str, name: str = "planted") -> Experiment:
    return Experiment(
        name=name,
        init="tiny-llama",
        rope=ROPES[rope],
        data=Stdlib("train"),
        optim=Optim(learning_rate=5e-4),
        train=Train(steps=60, seq_len=1024, batch_size=4),
        zero_shot=tuple(ROPES.values()),
    )


def write_records(path: Path, records: Iterable[EvalRecord]) -> None:
    lines = (json.dumps(record.to_json()) + "\n" for record in records)
    write_text(path / "records.jsonl", "".join(lines))


def write_metrics(path: Path, rope: str) -> None:
    first_loss = {
        "none": 5.2,
        "linear(factor=4)": 4.4,
        "ntk(factor=4)": 2.9,
        "yarn(factor=4)": 2.6,
    }[rope]
    lines = []
    for step in [1, *range(5, 61, 5)]:
        noise = 0.25 * (chance("l", rope, step) - 0.5)
        loss = 2.0 + (first_loss - 2.0) * math.exp(-step / 22) + noise
        lines.append(json.dumps({"step": step, "loss": loss, "grad_norm": 1.0}) + "\n")
    write_text(path / "metrics.jsonl", "".join(lines))


def planted_run(
    path: Path, records: Iterable[EvalRecord] | None = None, name: str = "planted"
) -> Path:
    """A whole run directory with three baselines."""
    write_records(path, planted_records() if records is None else records)
    write_json(path / "config.json", to_json(experiment("yarn(factor=4)", name)))
    write_json(
        path / "base" / "model.json",
        to_json(LlamaConfig(1024, 128, 352, 4, 4, 4, 32, 1e-5, 1e4, WINDOW)),
    )
    write_json(path / "base" / "scaling.json", to_json(Unscaled()))
    write_text(path / "experiment.py", "experiment = ...\n")
    write_metrics(path, "yarn(factor=4)")
    for rope in ("none", "linear(factor=4)", "ntk(factor=4)"):
        folder = path / "baselines" / rope.split("(")[0]
        write_json(folder / "config.json", to_json(experiment(rope, name)))
        write_metrics(folder, rope)
    write_json(
        path / "provenance.json",
        {
            "versions": {"python": "3.11.7", "ctxext": "0.1.0", "jax": "0.10.2"},
            "git_commit": "2588a91" + "0" * 33 + "-dirty",
            "data": {
                "kind": "mix",
                "weights": [1.0],
                "parts": [
                    {
                        "kind": "text",
                        "documents": 181,
                        "tokens": 2131688,
                        "sha256": "1fc34e6e938f" + "b" * 52,
                        "files": {"ast.py": "c513073798bd" + "c" * 52},
                    }
                ],
            },
            "tokenizer": "d34bb20655eb" + "d" * 52,
            "seed": 0,
            "device": "cpu",
        },
    )
    write_json(
        path / "export" / "proof.json",
        {
            "equal": True,
            "against": "the model that was exported",
            "dtype": "bfloat16",
            "positions": [0, 255, 256, 1023],
            "weights_that_differ": [],
            "readers_not_run": {"transformers": "torch is not installed"},
            "readers": [
                {
                    "reader": "numpy",
                    "version": "2.4.6",
                    "angles": "exact",
                    "inv_freq": 3.18e-16,
                    "attention_factor": 0.0,
                    "tables": [3.8e-10, 2.7e-07, 2.4e-07, 2.7e-07],
                    "logits": [8e-06, 5e-06, 6.3e-06, 6.1e-06],
                    "token_ids_equal": None,
                    "equal": True,
                }
            ],
        },
    )
    return path
