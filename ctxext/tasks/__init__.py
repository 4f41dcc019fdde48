"""Retrieval tasks: generators, pure in their random stream."""

from ctxext.tasks.association import Association as Association
from ctxext.tasks.base import FILLER_WEIGHT as FILLER_WEIGHT
from ctxext.tasks.base import Example as Example
from ctxext.tasks.base import Haystack as Haystack
from ctxext.tasks.base import Task as Task
from ctxext.tasks.base import TrainingTask as TrainingTask
from ctxext.tasks.base import without_needle as without_needle
from ctxext.tasks.base import without_needles as without_needles
from ctxext.tasks.facts import Facts as Facts
from ctxext.tasks.kv import KeyValue as KeyValue
from ctxext.tasks.lines import Lines as Lines
from ctxext.tasks.mqar import Mqar as Mqar
from ctxext.tasks.niah import Niah as Niah
from ctxext.tasks.passkey import Passkey as Passkey
from ctxext.tasks.qa import QA as QA
from ctxext.tasks.repeat import Repeat as Repeat
from ctxext.tasks.variable_tracking import VariableTracking as VariableTracking
from ctxext.tasks.words import CommonWords as CommonWords
from ctxext.tasks.words import FrequentWords as FrequentWords
