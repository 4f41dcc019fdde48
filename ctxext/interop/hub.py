"""Checkpoints and datasets by hub name, behind the extra `hub`."""

import re
from pathlib import Path

PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
]

DATA_PATTERNS = ["*.parquet", "*.arrow", "*.jsonl", "*.txt", "*state.json"]


def resolve(source: str | Path, *, dataset: bool = False) -> Path:
    """A local directory: the path itself, or the download of a hub name such as meta-llama/Llama-2-7b-hf.

    Only safetensors, configuration and tokenizer files are fetched, never pickles or code; of a dataset, its tables,
    JSONL and text. Raises ValueError if there
    is no such directory or the download fails.
    """
    if Path(source).exists():
        return Path(source)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        kind, name = (
            ("data file or directory,", "dataset") if dataset else ("checkpoint directory", "model")
        )
        raise ValueError(f"{source} does not exist; give a {kind} or a hub name (owner/{name})")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            f"{source} is no local directory; to download it: pip install 'ctxext[hub]'"
        ) from None
    try:
        if dataset:
            found = huggingface_hub.snapshot_download(
                str(source), repo_type="dataset", allow_patterns=DATA_PATTERNS
            )
        else:
            found = huggingface_hub.snapshot_download(str(source), allow_patterns=PATTERNS)
        return Path(found)
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # the library's own errors derive from these
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} is no local directory and cannot be downloaded: {reason}"
        ) from None
