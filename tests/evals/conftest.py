"""A random Llama in two libraries, built once for all evaluations."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def two_llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A random Llama in transformers, and the same weights here."""
    pytest.importorskip("torch")
    from ctxext import load
    from support.llamas import torch_llama

    folder = tmp_path_factory.mktemp("llama")
    return torch_llama(folder), load(folder)
