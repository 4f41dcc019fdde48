"""The words of Chinese text, which has no spaces between them, by the package jieba."""

import functools
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable


def chinese_words(text: str) -> list[str]:
    """The parts of a text, in order: words, marks and spaces, which together are the whole text.

    Raises ValueError if jieba is not installed.
    """
    return _segmenter()(text)


def has_segmenter() -> bool:
    """Whether `chinese_words` can be called."""
    return importlib.util.find_spec("jieba") is not None


@functools.cache
def _segmenter() -> Callable[[str], list[str]]:
    """jieba's accurate mode, which reads its dictionary once, about a second."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its regular expressions, and of pkg_resources
            import jieba
    except ImportError:
        raise ValueError(
            "Chinese words need the package jieba: pip install 'ctxext[benchmarks]'"
        ) from None
    jieba.setLogLevel(logging.WARNING)
    segmenter = jieba.Tokenizer()
    # It would load jieba.cache from the common directory for temporary files, whoever wrote it.
    with tempfile.TemporaryDirectory() as folder:
        segmenter.tmp_dir = folder
        segmenter.initialize()
    return segmenter.lcut
