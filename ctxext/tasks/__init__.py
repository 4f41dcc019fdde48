"""Synthetic retrieval tasks: generators, pure in their random stream."""

from ctxext.tasks.base import FILLER_WEIGHT as FILLER_WEIGHT
from ctxext.tasks.base import Example as Example
from ctxext.tasks.base import Haystack as Haystack
from ctxext.tasks.base import Task as Task
from ctxext.tasks.base import TrainingTask as TrainingTask
from ctxext.tasks.base import without_needle as without_needle
from ctxext.tasks.base import without_needles as without_needles
from ctxext.tasks.kv import KeyValue as KeyValue
from ctxext.tasks.passkey import Passkey as Passkey
from ctxext.tasks.repeat import Repeat as Repeat
