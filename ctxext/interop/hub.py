"""Checkpoints and datasets by their name on the Hugging Face hub (extra `hub`)."""

import contextlib
import re
from pathlib import Path

from ctxext.data.documents.kinds import COMPRESSIONS, SUFFIXES
from ctxext.files import read_json
from ctxext.terminal import raw_errors

SETTINGS = [
    "README.md",  # the license
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
]
"""What is downloaded of a model before its weights."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The weights of a model; the second ones, where the first are not there, without unpickling."""
FILE = re.compile(r"[\w-][\w.-]*")
GGUF_FILE = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)/((?:[\w-][\w.-]*/)*[\w-][\w.-]*\.gguf)")
"""A file of a model on the hub: owner/model/FILE.gguf."""
DATA_PATTERNS = [
    f"*{suffix}{compression}" for suffix in SUFFIXES for compression in ("", *COMPRESSIONS)
]


def resolve(source: str | Path, *, dataset: bool = False) -> Path:
    """A local path: `source` itself, or the download of a hub name (meta-llama/Llama-2-7b-hf).

    Of a model, configuration, tokenizer and card are downloaded, then the weights that transformers
    would read, in PyTorch's format where it has no others, never code; for owner/model/FILE.gguf,
    that file; of a dataset, what `ctxext prepare` reads. Raises ValueError if there is no such path
    or the download fails, and, naming one of them, for a model that has only GGUF files.
    """
    if not str(source):
        raise ValueError("the name of a source is empty: name a file or directory")
    if Path(source).exists():
        return Path(source)
    gguf_file = None if dataset else GGUF_FILE.fullmatch(str(source))
    if gguf_file is None and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        expected = "data file or directory" if dataset else "checkpoint directory"
        hub_name = "owner/dataset" if dataset else "owner/model"
        raise ValueError(f"{source} does not exist; give a {expected}, or a hub name ({hub_name})")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            f"{source} does not exist here; to download it: pip install 'ctxext[hub]'"
        ) from None

    def download(patterns: list[str]) -> Path:
        kind = "dataset" if dataset else "model"
        with raw_errors():  # its bars name no files
            path = huggingface_hub.snapshot_download(
                str(source), repo_type=kind, allow_patterns=patterns
            )
        return Path(path)

    try:
        if dataset:
            return download(DATA_PATTERNS)
        if gguf_file is not None:
            with raw_errors():
                return Path(huggingface_hub.hf_hub_download(*gguf_file.groups()))
        directory = download(SETTINGS)
        for single_file in WEIGHTS:
            names = _weight_files(directory, single_file)
            directory = download(SETTINGS + names)
            if any((directory / name).exists() for name in names):
                return directory
        if any(path.name != "README.md" for path in directory.glob("*")):
            return directory
        names = huggingface_hub.list_repo_files(str(source))
    # The library's own errors derive from these.
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ValueError(
            f"{source} does not exist here and cannot be downloaded: {reason}"
        ) from None
    gguf_files = sorted(name for name in names if name.endswith(".gguf"))
    if gguf_files:
        raise ValueError(
            f"{source} has GGUF files and no other weights; name one of them, for example "
            f"{source}/{gguf_files[0]}"
        )
    return directory


def _weight_files(directory: Path, single_file: str) -> list[str]:
    """A file of weights, and the shards that its index names if there is one.

    An index that is damaged names none: whoever reads the weights says what is wrong with it.
    """
    index = directory / f"{single_file}.index.json"
    shards: set[str] = set()
    if index.is_file():
        with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
            shards = {str(name) for name in read_json(index)["weight_map"].values()}
    return [single_file, *sorted(name for name in shards if FILE.fullmatch(name))]
