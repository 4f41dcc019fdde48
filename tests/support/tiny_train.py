"""A training run that takes seconds: two layers, 64 wide, bytes as tokens.

As a script, `tiny_train.py DIRECTORY STEPS` trains on DIRECTORY/texts.
"""

import hashlib
import sys
import time
from pathlib import Path

from ctxext.data import Files, Source
from ctxext.experiment import Experiment, Train
from ctxext.methods.linear import Linear
from ctxext.model.decoder import init_params
from ctxext.model.lm import LM
from ctxext.optim import Optim
from ctxext.rundir import RunDir
from support import tiny

CONFIG = tiny.config(vocab_size=259, tie_word_embeddings=True)


class ByteTokenizer:
    bos_id, eos_id, vocab_size = 1, 2, 259
    num_ids = vocab_size
    adds_bos = True
    files: dict[str, bytes] = {}
    sha256 = "bytes"

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [self.bos_id] * bos + [byte + 3 for byte in text.encode()]

    def special_literals(self, text: str) -> list[str]:
        return []


def write_texts(directory: Path, documents: int = 8) -> Path:
    """Write texts of different lengths whose bytes are the same on every machine."""
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        words = [
            hashlib.sha256(f"{i} {j}".encode()).hexdigest()[: 1 + j % 7] for j in range(20 + 5 * i)
        ]
        (directory / f"{i}.txt").write_text(" ".join(words))
    return directory


def tiny_experiment(data: Source | Path, **train) -> Experiment:
    source = Files(str(data)) if isinstance(data, Path) else data
    options = {
        "steps": 6,
        "seq_len": 64,
        "batch_size": 4,
        "log_every": 1,
        "checkpoint_every": 3,
        **train,
    }
    return Experiment(
        name="tiny",
        data=source,
        model=CONFIG,
        rope=Linear(2.0),
        train=Train(**options),
        optim=Optim(learning_rate=3e-3, warmup_steps=2, weight_decay=0.1),
    )


def tiny_base(seed: int = 0) -> LM:
    return LM(CONFIG, init_params(CONFIG, seed), ByteTokenizer())  # pyright: ignore


class Slow:
    """A sink so slow that the run can be stopped in between."""

    def log(self, row: dict) -> None:
        time.sleep(0.2)

    def rows(self, rows: list[dict]) -> None: ...
    def finish(self, failed: bool = False) -> None: ...


def main(root: Path, steps: int) -> None:
    from ctxext.tracking import start_sinks
    from ctxext.training.loop import train

    experiment = tiny_experiment(root / "texts", steps=steps, checkpoint_every=1000)
    run = RunDir(root / "run").open(experiment)
    with start_sinks(experiment, run, track=()) as sinks:
        train(experiment, run, tiny_base(), sinks=[*sinks, Slow()])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
