"""A new file in methods/ is all that a new method needs, for its name, example and matrix row."""

import dataclasses
import importlib
import json
import sys

import pytest

from ctxext import methods
from ctxext.attention.pieces import Attention, Band, Piece
from ctxext.cli.main import main
from ctxext.positions import Positions
from ctxext.rope import Rope, RopeBase, RopeScaling, Unscaled

LLAMA2 = RopeBase(128, 1e4, 4096)
NEW_FILE = '''
import dataclasses

from ctxext.rope import Rope, RopeBase, RopeScaling


@dataclasses.dataclass(frozen=True)
class BrandNew(RopeScaling):
    """f'_i = f_i / slowness."""

    slowness: float
    strides: tuple[float, ...]

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(base.inv_freq / self.slowness)
'''


@pytest.fixture
def new_file(tmp_path, monkeypatch):
    """Add a file to the package ctxext.methods."""
    (tmp_path / "brand_new.py").write_text(NEW_FILE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    methods.all_methods.cache_clear()
    yield
    methods.all_methods.cache_clear()
    del sys.modules["ctxext.methods.brand_new"]


def test_the_methods_command_has_a_row_for_it(new_file, capsys):
    assert main(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    row = rows["brand-new"]
    assert (row["seam"], row["required"]) == ("rope", ["slowness", "strides"])
    assert row["formats"]["hf"]["how"] != "refused"
    assert main(["methods"]) == 0
    assert "brand-new" in capsys.readouterr().out


def test_it_is_found_and_made_by_name(new_file):
    method = methods.make("brand-new", slowness=2.0, strides=(1.0,))
    assert method.rope(LLAMA2, 1).equals(Rope(LLAMA2.inv_freq / 2))
    assert methods.BrandNew is type(method)


@dataclasses.dataclass(frozen=True)
class Share(RopeScaling):
    """Takes a number from 0 to 1 only."""

    share: float

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError("share must be in 0 .. 1")

    def rope(self, base, seq_len):
        return Rope(base.inv_freq * self.share)


@dataclasses.dataclass(frozen=True)
class Declared(RopeScaling):
    """Takes only one number, which its declaration names."""

    answer: int = dataclasses.field(metadata={"example": 42})

    def __post_init__(self):
        if self.answer != 42:
            raise ValueError("answer must be 42")

    def rope(self, base, seq_len):
        return Rope(base.inv_freq)


@dataclasses.dataclass(frozen=True)
class Wrapping(RopeScaling):
    inner: RopeScaling
    attention: Attention

    def rope(self, base, seq_len):
        return self.inner.rope(base, seq_len)


@dataclasses.dataclass(frozen=True)
class Near(Attention):
    reach: int

    def pieces(self, seq_len):
        return (Piece(Band(0, self.reach)),)


@dataclasses.dataclass(frozen=True)
class Backwards(Positions):
    is_odd: bool

    def sample(self, rng, shape):
        raise NotImplementedError


def test_the_fields_of_a_method_decide_its_example():
    def example(method):
        return methods.example(method, LLAMA2, factor=4.0)

    assert example(Share) == Share(0.5)
    assert example(Declared) == Declared(42)
    assert example(Wrapping).inner == Unscaled()
    assert example(Near) == Near(4 * 4096)
    assert example(Backwards) == Backwards(False)


@pytest.mark.parametrize("method", methods.all_methods().values())
def test_every_method_accepts_its_example(method):
    for base in (LLAMA2, RopeBase(16, 5e5, 32)):
        instance = methods.example(method, base, factor=4.0)
        if isinstance(instance, RopeScaling):
            assert instance.rope(base, 64).inv_freq.shape == (base.head_dim // 2,)


def test_a_refused_example_is_an_error_that_names_what_to_declare():
    @dataclasses.dataclass(frozen=True)
    class Difficult(RopeScaling):
        answer: int

        def __post_init__(self):
            raise ValueError("answer must be 42")

        def rope(self, base, seq_len):
            return Rope(base.inv_freq)

    with pytest.raises(ValueError, match=r"Difficult refuses .*must be 42.*metadata=\{\"example\""):
        methods.example(Difficult, LLAMA2, factor=4.0)
