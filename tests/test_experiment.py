"""Experiments: JSON and back, type tags and malicious ones, the fingerprint, loading a file."""

import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext import methods, serialization
from ctxext.attention import Attention, Causal
from ctxext.data import Files, Mix, Source, Stdlib, Synthetic
from ctxext.evals import Retrieval
from ctxext.evals.base import Eval
from ctxext.evals.perplexity import Perplexity
from ctxext.experiment import Experiment, Export, Train, load_experiment
from ctxext.methods.linear import Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.ntk import NTK, DynamicNTK
from ctxext.methods.pose import PoSE
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.config import SHAPES
from ctxext.model.trainable import Trainable
from ctxext.optim import Optim
from ctxext.positions import Contiguous, Positions
from ctxext.rope import RopeBase, RopeScaling, Unscaled
from ctxext.serialization import from_json, to_json
from ctxext.tasks import KeyValue, Repeat
from ctxext.tasks.base import Task
from support import tiny

BASE = Experiment(
    "x", Stdlib("train"), Optim(2e-5), Train(steps=10, seq_len=64, batch_size=2), init="tiny-llama"
)

factors = st.integers(1, 64) | st.floats(1, 64)
ropes = st.one_of(
    st.none(),
    st.just(Unscaled()),
    *(st.builds(cls, factors) for cls in (Linear, NTK, DynamicNTK, Llama3)),
    st.builds(
        Yarn, factors, attention_factor=st.none() | st.floats(0.5, 2), truncate=st.booleans()
    ),
)
attentions = st.just(Causal()) | st.builds(SelfExtend, st.integers(1, 64), st.integers(1, 1024))
sources = st.recursive(
    st.builds(Files, st.text(min_size=1))
    | st.just(Stdlib("train"))
    | st.just(Synthetic(Repeat()))
    | st.just(Synthetic(KeyValue())),
    lambda inner: st.lists(st.tuples(st.floats(0.1, 1), inner), min_size=1, max_size=3).map(
        lambda parts: Mix(tuple(parts))
    ),
    max_leaves=4,
)
experiments = st.builds(
    Experiment,
    name=st.text(),
    data=sources,
    optim=st.builds(Optim, st.floats(1e-6, 1), warmup_steps=st.integers(0, 100)),
    train=st.builds(
        Train,
        steps=st.integers(0, 100),
        seq_len=st.integers(1, 10**6),
        batch_size=st.integers(1, 64),
    ),
    init=st.none() | st.text(),
    model=st.none() | st.sampled_from(list(SHAPES.values())),
    rope=ropes,
    attention=attentions,
    positions=st.just(Contiguous()) | st.builds(PoSE, st.integers(1, 10**6), st.integers(2, 9)),
    zero_shot=st.lists(ropes.filter(bool) | attentions, max_size=3).map(tuple),
    export=st.none() | st.just(Export()),
    seed=st.integers(0, 2**32 - 1),
)


@settings(max_examples=40, deadline=None)
@given(experiments)
def test_json_and_back(experiment: Experiment):
    text = json.dumps(to_json(experiment), allow_nan=False)
    again = from_json(json.loads(text))
    assert again == experiment
    assert hash(again) == hash(experiment)
    assert again.fingerprint == experiment.fingerprint


def test_every_method_and_evaluation_goes_through_json():
    base = RopeBase(16, 1e4, 64)
    for cls in methods.all_methods().values():
        method = methods.example(cls, base, factor=2.0)
        assert from_json(json.loads(json.dumps(to_json(method)))) == method
    experiment = dataclasses.replace(
        BASE,
        evals=(Retrieval(seq_lens=(64, 128)), Perplexity(seq_lens=(64, 128), target_tokens=32)),
    )
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


def test_the_fingerprint_covers_everything_but_the_number_of_steps():
    def changed(**fields):
        return dataclasses.replace(BASE, **fields).fingerprint

    assert len(BASE.fingerprint) == 8
    assert int(BASE.fingerprint, 16) >= 0
    assert changed(train=dataclasses.replace(BASE.train, steps=999)) == BASE.fingerprint
    others = {
        changed(name="y"),
        changed(seed=1),
        changed(rope=Yarn(2.0)),
        changed(rope=Linear(2.0)),
        changed(rope=Linear(4.0)),
        changed(attention=SelfExtend(2, 8)),
        changed(positions=PoSE(128)),
        changed(optim=Optim(1e-5)),
        changed(train=dataclasses.replace(BASE.train, seq_len=65)),
        changed(init=None),
        changed(export=None),
    }
    assert len(others | {BASE.fingerprint}) == 12
    assert changed(rope=Linear(4)) == changed(rope=Linear(4.0)), (
        "equal experiments have equal names"
    )


@pytest.mark.parametrize(
    "tag",
    [
        "",
        5,
        None,
        "Yarn",
        "os:system",
        "builtins:eval",
        "subprocess:Popen",
        "ctxext.methods.yarn:Nothing",
        "ctxext.methods.yarn:math",
        "ctxext.methods.yarn:turns_ramp",
        "ctxext.methods:Yarn",
        "ctxext.nowhere:Yarn",
        "ctxext.nowhere.deeper:Yarn",
        "ctxext.files.deeper:Yarn",
        "ctxext.files:Path",
        "ctxext.__main__:main",
        "ctxext..methods.yarn:Yarn",
        "ctxextra.methods:Yarn",
        "tests.tiny:CONFIG",
        "ctxext.rope:RopeScaling:x",
        "ctxext.methods.yarn:Yarn",
        "ctxext.experiment",
        "rope/",
        "rope/Yarn",
        "rope/yarn:Yarn",
        "rope/../rope/yarn",
        "/rope/yarn",
        "mesh/mesh",
        "os/system",
    ],
)
def test_an_unknown_type_is_refused(tag):
    with pytest.raises(ValueError, match="unknown type"):
        from_json({"__type__": tag, "factor": 2.0})
    assert "ctxext.__main__" not in sys.modules, "reading a configuration runs no program"


def test_an_unknown_tag_imports_nothing():
    serialization.tagged_classes()
    modules = set(sys.modules)
    for tag in ("antigravity", "antigravity:x", "ctxext.harness.tasks:Request", "this/zen"):
        with pytest.raises(ValueError, match="unknown type"):
            from_json({"__type__": tag})
    assert set(sys.modules) == modules


def test_tags_are_unique_and_name_no_module():
    tags = serialization.tagged_classes()  # which asserts that no two classes share one
    assert {serialization.type_tag(cls): cls for cls in tags.values()} == tags
    assert all(re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+)*", tag) for tag in tags)
    assert {
        "rope/none",
        "rope/yarn",
        "attention/self-extend",
        "positions/pose",
        "eval/retrieval",
        "task/passkey",
        "task/passkey/yarn",
        "data/files",
        "trainable/lora",
        "mesh",
        "train",
        "optim",
        "export",
        "model",
        "expected",
        "experiment",
    } <= set(tags)


def test_every_part_of_an_experiment_has_a_tag():
    """Without a tag, a class that an experiment can hold could not be saved."""
    bases = (RopeScaling, Attention, Positions, Trainable, Source, Task, Eval)
    tagged = set(serialization.tagged_classes().values())
    for base in bases:
        for cls in subclasses(base):
            # A test may have added a module for a while.
            is_imported = cls.__module__ in sys.modules
            is_ours = cls.__module__.startswith(serialization.PACKAGES)
            if is_imported and is_ours and not inspect.isabstract(cls):
                assert cls in tagged, cls


def subclasses(cls: type) -> set[type]:
    """Every direct and indirect subclass."""
    children = set(cls.__subclasses__())
    return children.union(*(subclasses(child) for child in children))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 2.0, "fctor": 1}, "has no field fctor; was this written by another version"),
        ({}, "does not fit this version: .*factor"),
        ({"factor": "two"}, "does not fit this version"),
        ({"factor": 0.5}, "factor must be"),
        ({"factor": {"no": "type"}}, "unknown type"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        from_json({"__type__": "rope/yarn", **fields})


MINE = """
import dataclasses
from pathlib import Path
from ctxext.rope import Rope, RopeScaling
Path(__file__).with_suffix(".ran").touch()

@dataclasses.dataclass(frozen=True)
class Mine(RopeScaling):
    factor: float
    def rope(self, base, seq_len):
        return Rope(base.inv_freq / self.factor)
"""


def test_code_outside_the_package_runs_only_when_trusted(tmp_path: Path):
    (tmp_path / "mine.py").write_text(MINE)
    mine = f"{tmp_path}/mine.py:Mine"
    experiment = dataclasses.replace(BASE, rope=methods.make(mine, factor=3.0))
    data = json.loads(json.dumps(to_json(experiment)))
    assert data["rope"] == {"__type__": mine, "factor": 3.0}
    assert from_json(data, trust=True) == experiment
    other = tmp_path / "other.py"
    other.write_text(MINE)
    data["rope"]["__type__"] = f"{other}:Mine"
    with pytest.raises(ValueError, match="--trust-run"):
        from_json(data)
    assert not other.with_suffix(".ran").exists()
    assert from_json(data, trust=True).rope.factor == 3.0
    assert other.with_suffix(".ran").exists()


@pytest.mark.parametrize("value", [{1, 2}, {"a": 1}, print, Yarn, object()])
def test_other_values_cannot_be_written_as_json(value):
    with pytest.raises(ValueError, match="cannot write"):
        to_json(dataclasses.replace(BASE, evals=(value,)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", -1),
        ("seq_len", 0),
        ("batch_size", 0),
        ("accumulate", 0),
        ("log_every", 0),
        ("checkpoint_every", 0),
        ("dtype", "float99"),
        ("remat", "some"),
        ("kernel", "flash"),
    ],
)
def test_impossible_training_is_refused(field: str, value):
    with pytest.raises(ValueError, match=f"train.{field}"):
        dataclasses.replace(BASE.train, **{field: value})


HEAD = """
from ctxext import Experiment, methods
from ctxext.data import Stdlib
from ctxext.experiment import Train
from ctxext.model.trainable import Trainable
from ctxext.optim import Optim
"""


def test_a_file_holds_a_value_a_function_or_a_variant(tmp_path: Path):
    (tmp_path / "first_recipe.py").write_text(
        HEAD + "experiment = Experiment('first', Stdlib('train'), Optim(1e-4), Train(1, 64, 2), "
        "rope=methods.Linear(2.0))\n"
    )
    (tmp_path / "variant.py").write_text(
        "import dataclasses\nfrom first_recipe import experiment as first\n"
        "experiment = dataclasses.replace(first, name='variant')\n"
    )
    (tmp_path / "function.py").write_text(
        HEAD + "def experiment(base):\n"
        "    train = Train(1, 4 * base.max_position_embeddings, 2)\n"
        "    return Experiment('function', Stdlib('train'), Optim(1e-4), train)\n"
    )
    first = load_experiment(tmp_path / "first_recipe.py")
    assert first.rope == Linear(2.0)
    variant = load_experiment(str(tmp_path / "variant.py"))
    assert variant == dataclasses.replace(first, name="variant")
    function = load_experiment(tmp_path / "function.py", lambda: (tiny.CONFIG, 32))
    assert function.train.seq_len == 128
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "does not exist"), ("x = 1", "defines no"), ("experiment = 3", "defines no")],
)
def test_a_file_without_an_experiment_is_refused(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "e.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_experiment(tmp_path / "e.py", lambda: (tiny.CONFIG, 32))
    (tmp_path / "e.txt").write_text("")
    with pytest.raises(ValueError, match="not a Python file"):
        load_experiment(tmp_path / "e.txt")
