"""A text that is read in parts equals the same text in one reading, and says how far it is."""

import dataclasses

import numpy as np
import pytest

from ctxext import progress
from ctxext.attention import Causal
from ctxext.methods.ntk import DynamicNTK
from ctxext.methods.self_extend import SelfExtend
from ctxext.model import reading
from ctxext.model.lm import _next_token_values
from ctxext.model.parts import Parts
from ctxext.parallel.mesh import Mesh
from ctxext.rope import Unscaled
from support import tiny
from support.attention_by_definition import Everything

ROWS = tiny.tokens(2, 150, seed=1)
"""Two rows; padded to 160 tokens, of which five chunks of 32 are read."""
ALIBI = tiny.config(parts=Parts(alibi_exponent=8.0))
WINDOWS = tiny.config(
    parts=Parts(sliding_window=40, windowed=(True, False), rotary=(True, False)),
)


LM = tiny.lm(attention=SelfExtend(4, 8))
"""Two pieces, whose keys are cached before their rotation."""
PROMPTS = [ROWS[0][:100], ROWS[1][:70]]
PREFIXES = [[[1, 2], [3]], [[], [5]]]


@pytest.fixture
def small_parts(monkeypatch):
    """Everything is read in parts, and in chunks of 32 tokens where a kernel can."""
    monkeypatch.setitem(reading.PART, "cpu", 1e3)
    monkeypatch.setattr(reading, "SMALLEST_CHUNK", 32)


def answers(lm):
    """What a model makes of texts of equal and of different length."""
    tokens, nll = lm.continuations(PROMPTS, PREFIXES, max_new_tokens=6)
    return {"loss": lm.loss(ROWS), "tokens": tokens, "nll": nll}


@pytest.mark.parametrize(
    "lm",
    [
        LM,
        pytest.param(tiny.lm(), marks=pytest.mark.slow),
        pytest.param(
            tiny.lm(attention=SelfExtend(4, 8), scaling=DynamicNTK(2.0)), marks=pytest.mark.check
        ),
        pytest.param(tiny.lm(WINDOWS), marks=pytest.mark.check),
        pytest.param(tiny.lm(ALIBI), marks=pytest.mark.slow),
        pytest.param(tiny.lm(attention=Everything()), marks=pytest.mark.slow),
        pytest.param(tiny.lm(kernel="dense"), marks=pytest.mark.slow),
    ],
    ids=["two pieces", "causal", "by length", "layers differ", "alibi", "everything", "dense"],
)
def test_a_reading_in_parts_equals_one_reading(lm, monkeypatch):
    """All layers and chunks are one program, for each kind of layer."""
    whole = answers(lm)
    monkeypatch.setitem(reading.PART, "cpu", 1e3)
    monkeypatch.setattr(reading, "SMALLEST_CHUNK", 32)
    chunk = reading.chunk_tokens(lm._setup, 2, 160)
    assert chunk == (160 if lm.kernel == "dense" else 32)
    in_one_go = _next_token_values._cache_size()
    in_chunks = reading._chunk_of_layer._cache_size()
    in_parts = {"loss": lm.loss(ROWS)}
    assert _next_token_values._cache_size() == in_one_go
    assert reading._chunk_of_layer._cache_size() - in_chunks == len(lm.config.layers.kinds)
    in_parts |= answers(lm)
    for name, value in whole.items():
        np.testing.assert_allclose(in_parts[name], value, atol=2e-5, err_msg=name)


def test_a_reading_says_how_far_it_is(small_parts):
    """By operations: later chunks of a text attend to more, and take longer."""
    shares = []
    with progress.heard_by(shares.append):
        LM.loss(ROWS)
    # Two layers of five chunks, and the logits of five.
    assert len(shares) == 15
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    steps = np.diff(shares)
    assert steps[3] > steps[0]
    shares.clear()
    with progress.heard_by(shares.append):
        LM.continuations(PROMPTS, PREFIXES, max_new_tokens=6)
    assert len(shares) == 2 * 4 + 6, "two layers of four chunks, then one token after the other"
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_parts_of_a_call_are_parts_of_its_share():
    """Rows that are read one after the other, as where the frequencies follow the length."""
    shares = []
    with progress.heard_by(shares.append):
        for row in range(2):
            with progress.as_part(row, 2):
                progress.Meter(4).add(2)
    assert shares == [0.25, 0.75]
    assert progress.seconds_left(30.0, 1.0, 9.0) == 270
    assert progress.seconds_left(30.0, 0.0, 9.0) is None


def test_ctrl_c_is_answered_between_parts(small_parts):
    """The listener stands for the signal, which Python raises when a part is done."""
    heard = []

    def interrupt(share):
        heard.append(share)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress.heard_by(interrupt):
        LM.loss(ROWS)
    assert len(heard) == 3


def test_what_is_short_or_on_several_devices_is_read_in_one_go(monkeypatch):
    setup = tiny.lm()._setup
    assert reading.chunk_tokens(setup, 2, 160) == 0
    monkeypatch.setitem(reading.PART, "cpu", 1e3)
    assert reading.chunk_tokens(setup, 2, 160) == 160, "no chunk is below SMALLEST_CHUNK"
    over_devices = dataclasses.replace(setup, mesh=Mesh(seq=2))
    assert reading.chunk_tokens(over_devices, 2, 160) == 0


def test_a_part_of_a_real_model_takes_seconds():
    """Of SmolLM2-135M at 16k tokens, which takes 95 s on two cores: at most one each."""
    config = tiny.config(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
    )
    lm = dataclasses.replace(tiny.lm(), config=config)
    chunk = reading.chunk_tokens(lm._setup, 1, 16384)
    assert chunk == 512
    of_layers = reading.reading_operations(lm._setup, 16384)
    last = reading.layer_operations(config, Causal(), 0, 16384 - chunk, 16384)
    assert 95 * last / of_layers < 1
    assert lm.scaling == Unscaled()
