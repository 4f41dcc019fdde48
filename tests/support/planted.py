"""Planted runs: rows of a made-up comparison whose numbers are known, and whole run directories around them."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from ctxext.data import Stdlib
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
REACH = {  # tokens up to which an variant reads, and how well it reads there
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
    """A number in 0..1 that only the parts decide."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") / 2**48


def label(rope: str, steps: int) -> str:
    return f"{rope}, {steps} steps at 1024" if steps else f"{rope}, zero-shot"


def passkey_row(
    rope,
    steps,
    seq_len,
    depth,
    i,
    correct,
    *,
    condition="needle",
    method=None,
    checkpoint="",
    hint=0.7,
):
    distance = round((1 - depth) * (seq_len - 16)) + 6
    control = "" if condition == "needle" else f"-{condition}"
    luck, kinds = (
        chance("kind", rope, seq_len, depth, i),
        ("made up", "copied", "distractor", "nothing", "no number"),
    )
    nats = 2.1 + 0.2 * luck if condition == "no-needle" else 0.1 if correct else 1.9
    return {
        "checkpoint": checkpoint,
        "method": method or label(rope, steps),
        "window": WINDOW,
        "rope": rope,
        "steps": steps,
        "eval": "retrieval",
        "item": f"passkey/aa{control}/{seq_len}/{depth}/{i}",
        "task": {"name": "passkey", "digits": 5},
        "seq_len": seq_len,
        "depth": depth,
        "depth_achieved": depth,
        "tokens": seq_len,
        "prompt_sha256": f"{seq_len}/{depth}/{i}{control}",
        "prediction": [int(correct)],
        "correct": bool(correct),
        "answer_probability": hint if correct else 0.02,
        "answer_nll": nats,
        "metric": "exact",
        "score": float(correct),
        "failure": None if correct else kinds[int(5 * luck**1.5)],
        "choices": 4,
        "chosen": bool(correct) or luck < 0.25,
        "condition": condition,
        "distance": distance,
        "haystack": []
        if condition == "needle-only"
        else [[int(12 * chance("d", seq_len, depth, i)), 0, seq_len]],
    }


def retrieval(rope: str, steps: int, n: int = 12) -> list[dict]:
    """Rows of an variant: whether an item is right depends on its difficulty, the same for all, and on the variant's reach."""
    far, good = REACH[rope, steps]
    rows = []
    for seq_len in SEQ_LENS:
        for depth in DEPTHS:
            for i in range(n):
                distance = round((1 - depth) * (seq_len - 16)) + 6
                odds = good / (1 + math.exp((0.5 * distance + 0.5 * seq_len - far) / 60))
                mixed = 0.75 * chance("hard", seq_len, depth, i) + 0.25 * chance(
                    "variant", rope, steps, seq_len, depth, i
                )
                rows.append(passkey_row(rope, steps, seq_len, depth, i, mixed < odds))
    return rows


def controls(rope: str, steps: int, n: int = 10) -> list[dict]:
    """No needle: nearly never right. Needle only: nearly always."""
    odds = {"no-needle": 0.01, "needle-only": 0.97}
    return [
        passkey_row(
            rope, steps, seq_len, 0.5, i, chance("control", kind, seq_len, i) < p, condition=kind
        )
        for kind, p in odds.items()
        for seq_len in SEQ_LENS
        for i in range(n)
    ]


def perplexity(rope: str, steps: int) -> list[dict]:
    """Text gets easier with context within an variant's reach and harder beyond it."""
    far, _ = REACH[rope, steps]
    rows = []
    for seq_len in SEQ_LENS:
        for doc in range(8):
            seen = np.arange(1, seq_len)
            nats = (
                3.2
                - 0.13 * np.log2(np.minimum(seen, far))
                + np.maximum(0, np.log2(seen / far)) * 1.3
            )
            nats = nats - 0.12 * (steps > 0) + 0.5 * (chance("doc", doc) - 0.5)
            bins = np.log2(seen).astype(int)
            tail = nats[-128:]
            row = {
                "checkpoint": "",
                "method": label(rope, steps),
                "window": WINDOW,
                "rope": rope,
                "steps": steps,
                "eval": "ppl",
                "item": f"ppl/bb/{seq_len}/{doc}/0",
                "seq_len": seq_len,
                "document": doc,
                "nll": float(tail.sum()),
                "count": 128,
                "bytes": 410 + doc,
            }
            if seq_len == SEQ_LENS[-1]:
                row["by_position"] = {
                    "edges": [2**k for k in range(bins[-1] + 1)] + [seq_len],
                    "nll": np.bincount(bins, nats).tolist(),
                    "count": np.bincount(bins).tolist(),
                }
            rows.append(row)
    return rows


def planted_rows(n: int = 12) -> list[dict]:
    """Four methods, zero-shot and after 60 steps; the controls of the best."""
    rows = [row for rope, steps in REACH for row in retrieval(rope, steps, n)]
    rows += controls("yarn(factor=4)", 60) + controls("none", 0)
    return rows + [row for rope, steps in REACH for row in perplexity(rope, steps)]


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


def write_rows(path: Path, rows: list[dict]) -> None:
    write_text(path / "records.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def write_metrics(path: Path, rope: str) -> None:
    start = {"none": 5.2, "linear(factor=4)": 4.4, "ntk(factor=4)": 2.9, "yarn(factor=4)": 2.6}[
        rope
    ]
    steps = [1, *range(5, 61, 5)]
    losses = [
        2.0 + (start - 2.0) * math.exp(-s / 22) + 0.25 * (chance("l", rope, s) - 0.5) for s in steps
    ]
    lines = (
        json.dumps({"step": s, "loss": x, "grad_norm": 1.0}) + "\n"
        for s, x in zip(steps, losses, strict=True)
    )
    write_text(path / "metrics.jsonl", "".join(lines))


def planted_run(path: Path, rows: list[dict] | None = None, name: str = "planted") -> Path:
    """A whole run directory with three baselines."""
    write_rows(path, planted_rows() if rows is None else rows)
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
