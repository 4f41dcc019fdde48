"""Checkpoints by hub name, behind the extra `hub`."""

import re
from pathlib import Path

PATTERNS = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.model",
            "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.jinja"]  # fmt: skip


def resolve(source: str | Path) -> Path:
    """A local directory: the path itself, or the download of a hub name such as meta-llama/Llama-2-7b-hf.

    Only safetensors, configuration and tokenizer files are fetched, never pickles or code. Raises ValueError if there
    is no such directory or the download fails.
    """
    if Path(source).exists():
        return Path(source)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise ValueError(f"{source} does not exist; give a checkpoint directory or a hub name (owner/model)")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"{source} is no local directory; to download it: pip install 'ctxext[hub]'") from None
    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=PATTERNS))
    except (OSError, ValueError, RuntimeError) as error:  # the library's own errors derive from these
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{source} is no local directory and cannot be downloaded: {reason}") from None
