"""The demo as an experiment file, for any base: ctxext run experiments/demo.py --init HF_DIR.

The experiment itself is in ctxext/demo.py.
"""

from ctxext.demo import experiment

__all__ = ["experiment"]
