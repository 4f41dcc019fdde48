"""Scalings that wrap another one: what passes through, what is refused, a wrapper of one's own."""

import dataclasses
import json

import numpy as np
import pytest

from ctxext.cli.main import main
from ctxext.cli.method_options import make_methods
from ctxext.cli.overrides import override
from ctxext.data import Stdlib
from ctxext.experiment import Experiment, Train
from ctxext.interop.ropespec import rope_from_config, rope_spec, rope_to_config
from ctxext.methods import find, label, method_name
from ctxext.methods.cope import CoPE, HardClip
from ctxext.methods.linear import DynamicLinear, Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.long_rope import LongRope
from ctxext.methods.long_rope2 import LongRope2
from ctxext.methods.nope import NoPE
from ctxext.methods.ntk import NTK, DynamicNTK
from ctxext.methods.ntk_mixed import NTKMixed
from ctxext.methods.resonance import Resonance
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.config import SHAPES
from ctxext.model.context import DeclaredContext
from ctxext.optim import Optim
from ctxext.rope import (
    Plain,
    Rope,
    RopeBase,
    RopeScaling,
    RopeWrapper,
    Unscaled,
    rope_at,
    scaling_factor,
    scaling_name,
    target_length,
)
from ctxext.serialization import from_json, read_saved, to_json
from support import tiny

LLAMA2 = RopeBase(128, 1e4, 4096)
ONES = (1.0,) * 64
WRAPPERS = (CoPE, HardClip, Resonance)
EXPERIMENT = Experiment(
    "x", Stdlib("train"), Optim(1e-3), Train(steps=3, seq_len=64, batch_size=2), rope=Yarn(2.0)
)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "inner",
    [LongRope(4.0, (1.0, 1.0, 1.1, 1.2), (1.0, 1.5, 3.0, 6.0)), LongRope2(4.0, 2)],
    ids=lambda inner: type(inner).__name__,
)
def test_over_two_lists_of_divisors_a_config_json_has_both_lists(wrapper: type, inner):
    config = tiny.config(head_dim=8)
    scaling = wrapper(inner=inner) if wrapper is Resonance else wrapper(2, inner=inner)
    base = config.rope_base()
    window = base.original_max_position_embeddings
    written = rope_to_config(scaling, config, 4 * window)
    assert written["rope_parameters"]["factor"] == 4
    theta, read_window, read = rope_from_config(json.loads(json.dumps(written)))
    assert (theta, read_window) == (base.theta, window)
    for length in (1, window, window + 1, 4 * window):
        expected = scaling.rope(base, length)
        actual = read.rope(base, length)
        np.testing.assert_allclose(actual.inv_freq, expected.inv_freq, rtol=1e-12, atol=1e-11)
        assert actual.attention_factor == expected.attention_factor
    assert not np.allclose(scaling.rope(base, 1).inv_freq, scaling.rope(base, 999).inv_freq)


def test_frequencies_of_every_length_are_not_two_lists():
    for inner in (DynamicLinear(), DynamicNTK(2.0)):
        with pytest.raises(
            ValueError, match="CoPE over Dynamic.* changes its frequencies with the"
        ):
            rope_to_config(CoPE(2, inner=inner), tiny.config(head_dim=8), 512)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_length_the_factor_and_m_are_those_of_the_wrapped_scaling(wrapper: type):
    static = wrapper(inner=Yarn(8.0))
    assert not static.depends_on_length
    assert scaling_factor(static) == 8
    assert target_length(static, 4096) == 32768
    assert (
        rope_at(static, LLAMA2, 9000).attention_factor == Yarn(8.0).rope(LLAMA2, 1).attention_factor
    )
    dynamic = wrapper(inner=DynamicLinear())
    assert dynamic.depends_on_length
    assert target_length(dynamic, 4096) is None
    frequencies = [rope_at(dynamic, LLAMA2, length).inv_freq[5] for length in (4096, 40960)]
    assert frequencies[0] / frequencies[1] == pytest.approx(10, rel=0.2)
    assert scaling_factor(wrapper()) is None
    leading = wrapper(inner=LongRope(8.0, ONES, ONES, leading_positions=9))
    kept = rope_at(leading, LLAMA2, 100).leading
    assert kept is not None
    assert kept[0] == 9
    assert [scaling.switch_lengths(LLAMA2) for scaling in (static, dynamic, leading)] == [
        (),
        None,
        (4096,),
    ]
    assert wrapper(inner=LongRope2(8.0)).switch_lengths(LLAMA2) == (4096,)
    assert scaling_name(wrapper(inner=Yarn(8.0))) == f"{wrapper.__name__} over Yarn"
    assert scaling_name(wrapper()) == wrapper.__name__


@pytest.mark.parametrize("inner", [Unscaled(), Yarn(8.0), NTK(4.0), DynamicLinear(), NoPE()])
def test_a_wrapper_that_changes_nothing_is_the_wrapped_scaling(inner: RopeScaling):
    for length in (100, 4096, 50000):
        expected = inner.rope(LLAMA2, length)
        for scaling in (CoPE(0, inner=inner), CoPE(1, inner=inner), HardClip(0, inner=inner)):
            assert scaling.rope(LLAMA2, length).equals(expected)


def test_wrappers_change_what_they_say():
    plain = LLAMA2.inv_freq
    cope = CoPE().rope(LLAMA2, 4096).inv_freq
    assert (cope != plain).sum() == 19
    assert cope[-1] == 0
    hard = HardClip().rope(LLAMA2, 4096).inv_freq
    assert (hard != plain).sum() == (hard == 0).sum() == 20
    nested = HardClip(4, inner=Resonance(inner=Yarn(8.0))).rope(LLAMA2, 4096).inv_freq
    wavelengths = 2 * np.pi / nested[:60]
    np.testing.assert_allclose(wavelengths, np.rint(wavelengths), rtol=1e-12)
    assert (nested[60:] == 0).all()
    assert (Resonance(inner=NoPE()).rope(LLAMA2, 1).inv_freq == 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoPE(inner=CoPE()), "CoPE cannot wrap itself; give it once"),
        (lambda: CoPE(inner=Resonance(inner=CoPE())), "CoPE cannot wrap itself"),
        (lambda: CoPE(inner=SelfExtend(4, 8)), "such as Yarn, but inner is SelfExtend"),
        (lambda: HardClip(inner=None), "HardClip changes the frequencies of another .*None"),
        (lambda: CoPE(-1), "num_pairs must be 0 .none. or more, such as 20, got -1"),
        (lambda: HardClip(-1), "num_pairs must be"),
        (lambda: NTKMixed(4.0, -0.5), "mixed_b must be in 0 .. 16, such as 0.75, got -0.5"),
        (lambda: NTKMixed(4.0, 0.75, float("inf")), "mixed_a must be a finite number from 0 up"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(make, message: str):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_wrapper_of_none_wraps_what_the_checkpoint_carries():
    llama31 = DeclaredContext(8192, 131072, Llama3(8.0))
    for scaling in (CoPE(), CoPE(inner=Llama3(8.0))):
        assert llama31.resolve(scaling) == CoPE(inner=Llama3(8.0))
        llama31.check(scaling)  # it shortens nothing, although 8 x 8,192 is less than 131,072
        assert llama31.export_length(scaling, 100) == 131072
        assert not llama31.is_plain(scaling)
    assert "CoPE over Llama3 with factor 8: 131,072 tokens" in llama31.text(CoPE())
    nested = llama31.resolve(HardClip(inner=Resonance()))
    assert nested == HardClip(inner=Resonance(inner=Llama3(8.0)))
    assert llama31.resolve(CoPE(inner=Plain())) == CoPE(inner=Plain())
    with pytest.raises(ValueError, match="CoPE over Yarn with factor 2 makes 16,384 tokens"):
        llama31.check(CoPE(inner=Yarn(2.0)))
    plain = DeclaredContext(4096, 4096, Unscaled())
    assert plain.resolve(CoPE(inner=Plain())) == CoPE()
    # A run that was trained with a wrapper carries it.
    run = DeclaredContext(4096, 4096, CoPE())
    assert run.resolve(CoPE()) == CoPE()
    assert run.resolve(HardClip()) == HardClip(inner=CoPE())


def test_json_goes_both_ways(tmp_path):
    scaling = CoPE(12, inner=Resonance(inner=Yarn(8.0)))
    data = json.loads(json.dumps(to_json(scaling)))
    assert (data["__type__"], data["inner"]["__type__"]) == ("rope/cope", "rope/resonance")
    assert data["inner"]["inner"]["factor"] == 8
    assert from_json(data) == scaling
    assert hash(from_json(data)) == hash(scaling)
    for wrong in (to_json(SelfExtend(4, 8)), to_json(CoPE()), 3):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"rope": data | {"inner": wrong}}))
        with pytest.raises(
            ValueError, match=r"config.json: .*(inner cannot be|cannot wrap itself)"
        ):
            read_saved(file, RopeScaling, key="rope")


@dataclasses.dataclass(frozen=True)
class Shrinking(RopeWrapper):
    """Twice as slow beyond the window, whatever it wraps; with a factor of its own."""

    depends_on_length = True
    factor: float

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        rope = self.inner.rope(base, seq_len)
        slower = 2 if seq_len > base.original_max_position_embeddings else 1
        return dataclasses.replace(rope, inv_freq=rope.inv_freq / slower)


def test_a_wrapper_may_follow_the_length_itself_and_have_a_factor():
    scaling = Shrinking(3.0, inner=Yarn(8.0))
    assert scaling_factor(scaling) == 3
    assert scaling_factor(CoPE(inner=scaling)) == 3
    assert CoPE(inner=scaling).depends_on_length
    assert scaling.switch_lengths(LLAMA2) is CoPE(inner=scaling).switch_lengths(LLAMA2) is None
    ratio = rope_at(scaling, LLAMA2, 10).inv_freq / rope_at(scaling, LLAMA2, 9999).inv_freq
    np.testing.assert_allclose(ratio, 2)


def test_names_and_labels():
    assert [method_name(cls) for cls in (CoPE, HardClip, NoPE)] == ["cope", "hard-clip", "nope"]
    assert find("hardclip") is HardClip
    assert find("drope") is NoPE
    assert label([CoPE(inner=Yarn(8.0))]) == "cope(inner=yarn(factor=8))"
    assert label([CoPE()]) == "cope"
    assert label([HardClip(4, inner=Resonance())]) == "hard-clip(inner=resonance, num_pairs=4)"


SPELLINGS = [
    (["--inner", "yarn", "--factor", "8"], CoPE(inner=Yarn(8.0))),
    (["--inner=yarn", "--inner.factor=8", "--num-pairs", "4"], CoPE(4, inner=Yarn(8.0))),
    (["--rope.inner", "yarn", "--rope.inner.factor", "8"], CoPE(inner=Yarn(8.0))),
    (["--inner", "ntk", "--inner", "yarn", "--factor", "8"], CoPE(inner=Yarn(8.0))),
    (
        ["--inner", "resonance", "--inner.inner", "yarn", "--factor", "8", "--no-truncate"],
        CoPE(inner=Resonance(inner=Yarn(8.0, truncate=False))),
    ),
    (["--num-pairs", "4"], CoPE(4)),
]


@pytest.mark.parametrize(("options", "scaling"), SPELLINGS)
def test_the_command_line_names_the_wrapped_scaling(options: list[str], scaling: RopeScaling):
    assert make_methods(["cope"], options) == (scaling,)
    assert override(EXPERIMENT, options, methods=["cope"]).rope == scaling


def test_an_experiment_keeps_the_fields_of_the_scaling_it_replaces():
    def changed(rope: RopeScaling, *options: str, method: str) -> RopeScaling | None:
        experiment = dataclasses.replace(EXPERIMENT, rope=rope)
        return override(experiment, options, methods=[method]).rope

    assert changed(Yarn(4.0), "--inner", "ntk", method="cope") == CoPE(inner=NTK(4.0))
    wrapped = CoPE(6, inner=Yarn(4.0))
    assert changed(wrapped, method="hard-clip") == HardClip(6, inner=Yarn(4.0))
    assert changed(wrapped, method="ntk") == NTK(4.0)
    experiment = dataclasses.replace(EXPERIMENT, rope=wrapped)
    assert override(experiment, ["--rope.inner.factor", "2"]).rope == CoPE(6, inner=Yarn(2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--inner", "yrn"], "--inner yrn: there is no method 'yrn'; did you mean 'yarn'"),
        (["--inner", "self-extend"], "--inner self-extend is not a scaling .*seam is attention"),
        (["--inner", "cope"], "CoPE cannot wrap itself"),
        (["--inner", "yarn"], "method 'yarn' needs factor"),
        (["--inner"], "--inner needs a value: text"),
        (["--inner", "yarn", "--fctor", "8"], r"unknown option --fctor; did you mean --factor\?"),
    ],
)
def test_a_wrong_wrapped_scaling_is_one_clear_line(options: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        make_methods(["cope"], options)
    with pytest.raises(ValueError, match=message):
        override(dataclasses.replace(EXPERIMENT, rope=None), options, methods=["cope"])


MINE = '''
import dataclasses

from ctxext.rope import Rope, RopeBase, RopeWrapper


@dataclasses.dataclass(frozen=True)
class Slower(RopeWrapper):
    """f'_i = f_i / slowness for the frequencies f_i of `inner`."""

    slowness: float

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        rope = self.inner.rope(base, seq_len)
        return dataclasses.replace(rope, inv_freq=rope.inv_freq / self.slowness)
'''


def test_a_class_in_a_file_wraps_and_is_wrapped(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    name = f"{file}:Slower"
    (scaling,) = make_methods([name], ["--slowness", "2", "--inner", "yarn", "--factor", "8"])
    assert isinstance(scaling, RopeWrapper)
    assert scaling == find(name)(2.0, inner=Yarn(8.0))
    assert target_length(scaling, 4096) == 32768
    yarn = Yarn(8.0).rope(LLAMA2, 4096)
    expected = Rope(yarn.inv_freq / 2, yarn.attention_factor)
    assert scaling.rope(LLAMA2, 4096).equals(expected)
    (wrapped,) = make_methods(["hard-clip"], ["--inner", name, "--slowness", "2"])
    assert wrapped == HardClip(inner=find(name)(2.0))
    with pytest.raises(ValueError, match="pass --trust-run to import it"):
        from_json(to_json(wrapped))
    assert from_json(to_json(wrapped), trust=True) == wrapped
    # It is exported like any other spectrum.
    spec = rope_spec(scaling, SHAPES["llama2-7b"], 4096)
    assert (spec.rope_type, spec.generic, spec.length) == ("longrope", True, 32768)
    theta, window, again = rope_from_config(spec.config_keys())
    assert (theta, window) == (1e4, 4096)
    np.testing.assert_allclose(
        again.rope(LLAMA2, 9).inv_freq, scaling.rope(LLAMA2, 9).inv_freq, rtol=1e-13
    )
    argv = ["rope", name, "--slowness", "2", "--inner", "yarn", "--factor", "8", "--json"]
    assert main(argv) == 0
    shown = json.loads(capsys.readouterr().out)
    np.testing.assert_array_equal(shown["inv_freq"], expected.inv_freq)


def test_an_export_that_cannot_be_names_both_scalings():
    with pytest.raises(ValueError, match="CoPE over DynamicLinear changes its frequencies with"):
        rope_spec(CoPE(inner=DynamicLinear()), SHAPES["llama2-7b"], 4096)


def test_ntk_mixed_lies_between_linear_and_ntk():
    def inv_freq(scaling: RopeScaling) -> np.ndarray:
        return scaling.rope(LLAMA2, 4096).inv_freq

    np.testing.assert_allclose(inv_freq(NTKMixed(8.0, 0.0)), inv_freq(Linear(8.0)), rtol=1e-12)
    mixed = inv_freq(NTKMixed(8.0))
    assert mixed[-1] == pytest.approx(LLAMA2.inv_freq[-1] / 8)
    assert (mixed >= inv_freq(Linear(8.0)) * (1 - 1e-12)).all()
    assert (mixed <= inv_freq(NTK(8.0)) * (1 + 1e-12))[1:].all()
    assert (inv_freq(NTKMixed(8.0, mixed_a=0.0)) == LLAMA2.inv_freq).all()
