"""Few programs are compiled: lengths fall into buckets, and methods change only arrays."""

import numpy as np
import pytest

from ctxext.methods.linear import Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.ntk import NTK, DynamicNTK
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.generation import advance, begin
from ctxext.model.lm import _logits, _next_token_values
from ctxext.model.padding import bucket
from ctxext.rope import Unscaled
from support import tiny

# No other test has this shape, so that it is not compiled yet.
CONFIG = tiny.config(num_hidden_layers=1, hidden_size=32, intermediate_size=32)
SCALINGS = [
    Unscaled(),
    Linear(2.0),
    Linear(4.0),
    NTK(3.0),
    DynamicNTK(2.0),
    Yarn(2.0),
    Yarn(8.0, attention_factor=1.0),
    Llama3(8.0),
]


def program_counts() -> tuple[int, ...]:
    """How many programs of each jitted function are compiled."""
    functions = (_next_token_values, _logits, begin, advance)
    return tuple(function._cache_size() for function in functions)


def test_buckets_are_a_quarter_longer_at_most():
    sizes = [bucket(n) for n in range(1, 20000)]
    assert all(n <= size <= max(n + 31, n * 1.25) for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert bucket(4096) == 4096
    assert bucket(32768) == 32768
    assert len({size for size in sizes if 1024 < size <= 2048}) == 4


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100, 4097])
def test_a_bucket_is_its_own_bucket(length: int):
    assert bucket(bucket(length)) == bucket(length)


@pytest.mark.check
def test_an_eval_over_lengths_and_scalings_compiles_once_per_bucket():
    lm = tiny.lm(CONFIG)
    before = program_counts()
    lengths = [3, 17, 32, 33, 40, 63, 64, 65]
    for scaling in SCALINGS:
        for length in lengths:
            lm.with_method(scaling).loss(tiny.tokens(2, length + 1))
        for length in (5, 20, 32):
            lm.with_method(scaling).logits(tiny.tokens(1, length))
            lm.with_method(scaling).generate(tiny.tokens(3, length), max_new_tokens=4)
            lm.with_method(scaling).generate(
                tiny.tokens(4, length), max_new_tokens=4, eos_token_id=7
            )
    after = program_counts()
    assert len({bucket(n) for n in lengths}) == 3
    # Decoding is compiled once more for frequencies that follow the length: they are one per step.
    np.testing.assert_array_equal(np.subtract(after, before), [3, 1, 2, 2])


def test_a_stream_is_two_programs_whatever_its_length_and_chunks():
    lm = tiny.lm(CONFIG)
    before = (begin._cache_size(), advance._cache_size())
    for length, new, chunk in ((3, 9, 1), (3, 9, 4), (9, 30, 7), (32, 32, 8)):
        assert len(list(lm.stream(tiny.tokens(1, length)[0], max_new_tokens=new, chunk=chunk))) > 1
        lm.generate(tiny.tokens(1, length), max_new_tokens=new)
    assert (begin._cache_size() - before[0], advance._cache_size() - before[1]) == (1, 1)


def test_another_attention_is_another_program():
    lm = tiny.lm(CONFIG)
    tokens = tiny.tokens(1, 9)
    lm.loss(tokens)
    before = _next_token_values._cache_size()
    for attention in (SelfExtend(2, 4), SelfExtend(2, 4), SelfExtend(2, 5)):
        lm.with_method(attention).loss(tokens)
    assert _next_token_values._cache_size() - before == 2
