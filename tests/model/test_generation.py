"""Decoding with a cache against recomputing everything, both semantics of length-dependent scalings, and sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Causal
from ctxext.methods import method_name
from ctxext.methods.lm_infinite import LMInfinite
from ctxext.methods.long_rope import LongRope
from ctxext.methods.ntk import DynamicNTK
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.generation import sample_token
from ctxext.model.segments import layers_apart, segment_sizes
from ctxext.rope import RopeScaling, Unscaled
from support import tiny
from support.every_method import BY_LENGTH
from support.reference_llama import Textbook

NEW = 12
LEADING = LongRope(4.0, (1.0,) * 8, tuple(np.linspace(1, 4, 8).tolist()), leading_positions=9)


@dataclasses.dataclass(frozen=True)
class Fixed(RopeScaling):
    """The frequencies that `scaling` has at one length, whatever the length asked for."""

    scaling: RopeScaling
    length: int

    def rope(self, base, seq_len):
        return self.scaling.rope(base, self.length)


def follows(tokens: np.ndarray, logits: np.ndarray, least: int) -> None:
    """`tokens` are the best of `logits` up to the first step whose best two are within 1e-4; at least `least`."""
    best = np.sort(logits, -1)
    clear = np.append(best[:, -1] - best[:, -2] > 1e-4, False)
    steps = int(np.argmin(clear))
    assert steps >= least
    np.testing.assert_array_equal(tokens[:steps], logits.argmax(-1)[:steps])


@pytest.mark.parametrize(
    "attention", [Causal(), pytest.param(SelfExtend(4, 8), marks=pytest.mark.check)], ids=repr
)
def test_cached_decoding_equals_recomputing(attention):
    """Across the edge of the window (25 tokens and 12 new ones) and beyond it (40); `frozen` is the default."""
    seen = set()
    for scaling in (Unscaled(), Yarn(2.0), DynamicNTK(2.0), LEADING):
        lm = tiny.lm(attention=attention, scaling=scaling)
        for length in (25, 40):
            prompts = tiny.tokens(2, length, seed=length)
            new = lm.generate(prompts, max_new_tokens=NEW)
            assert new.shape == (2, NEW) and new.dtype == np.int32
            whole = np.concatenate([prompts, new], 1)
            logits = lm.with_method(Fixed(scaling, length + NEW)).logits(whole)
            for row in range(2):
                follows(new[row], np.asarray(logits)[row, length - 1 : -1], least=NEW // 2)
            seen.add(tuple(new[0]))
    assert len(seen) >= 5, "methods and prompts matter"


def test_leading_positions_reach_the_model():
    """Prefill and decoding honour them: at this length everything is plain up to position 30, and nothing after."""
    plain, whole = tiny.lm(), tiny.lm(scaling=dataclasses.replace(LEADING, leading_positions=30))
    tokens = tiny.tokens(1, 48)
    a, b = np.asarray(plain.logits(tokens)), np.asarray(whole.logits(tokens))
    np.testing.assert_allclose(b[:, :30], a[:, :30], atol=1e-5)
    assert abs(b[:, 30:] - a[:, 30:]).max() > 1e-2
    none = dataclasses.replace(LEADING, leading_positions=0)
    assert abs(np.asarray(tiny.lm(scaling=none).logits(tokens)) - b).max() > 1e-2
    new = tiny.lm(scaling=LEADING).generate(tokens, max_new_tokens=NEW, semantics="incremental")
    assert new.shape == (1, NEW)


@pytest.mark.parametrize("scaling", BY_LENGTH, ids=method_name)
def test_both_semantics_of_every_scaling_that_follows_the_length(scaling):
    """Across the edge of the window (20 + 24 tokens) and beyond it, step by step in float64 numpy.

    incremental: un-rotated keys, turned by the frequencies of the length so far; frozen: by those of the last length.
    """
    base, lm, differ = tiny.CONFIG.rope_base(), tiny.lm(scaling=scaling), False
    for length in (20, 36):
        prompts = tiny.tokens(2, length, seed=1)
        found = {
            kind: lm.generate(prompts, max_new_tokens=24, semantics=kind)
            for kind in ("frozen", "incremental")
        }
        for kind, new in found.items():
            for prompt, out in zip(prompts, new, strict=True):
                slow = Textbook(tiny.CONFIG, tiny.params())
                at = [
                    scaling.rope(base, length + (step if kind == "incremental" else 24))
                    for step in range(24)
                ]
                logits = [slow.feed(prompt, at[0])[-1]]
                logits += [slow.feed(out[step - 1 : step], at[step])[0] for step in range(1, 24)]
                follows(out, np.array(logits), least=10)
        differ |= (found["frozen"] != found["incremental"]).any()
    assert differ, "the two semantics differ"


def test_incremental_is_frozen_where_frequencies_do_not_follow_the_length():
    lm, prompts = tiny.lm(scaling=Yarn(2.0)), tiny.tokens(2, 25)
    frozen, incremental = (
        lm.generate(prompts, max_new_tokens=NEW, semantics=s) for s in ("frozen", "incremental")
    )
    np.testing.assert_array_equal(frozen, incremental)


@pytest.mark.parametrize("scaling", [Unscaled(), DynamicNTK(2.0)], ids=repr)
def test_rows_do_not_influence_each_other(scaling: RopeScaling):
    """Three rows of different lengths, padded to four, equal three calls; also with frequencies by length."""
    lm = tiny.lm(scaling=scaling)
    prompts = [tiny.tokens(1, length, seed=length)[0] for length in (5, 20, 30)]
    together = lm.generate(prompts, max_new_tokens=NEW)
    alone = [lm.generate([prompt], max_new_tokens=NEW)[0] for prompt in prompts]
    np.testing.assert_array_equal(together, alone)


def test_a_stop_id_ends_a_row_and_repeats():
    lm, prompts = tiny.lm(), tiny.tokens(2, 20, seed=3)
    free = lm.generate(prompts, max_new_tokens=NEW)
    late, first = int(free[0, 4]), [int(token) for token in free[:, 0]]
    for eos in (late, (late, first[1]), first):
        out = lm.generate(prompts, max_new_tokens=NEW, eos_token_id=eos)
        for row, expected in zip(out, free, strict=True):
            found = [i for i, token in enumerate(expected) if token in np.atleast_1d(eos)]
            end = found[0] + 1 if found else NEW
            np.testing.assert_array_equal(row[:end], expected[:end])
            assert (row[end:] == expected[end - 1]).all()
    np.testing.assert_array_equal(out, np.repeat(free[:, :1], NEW, 1))


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize(
    ("scaling", "semantics"),
    [(Yarn(2.0), "frozen"), (DynamicNTK(2.0), "frozen"), (DynamicNTK(2.0), "incremental")],
)
def test_a_stream_is_what_generate_writes(scaling, semantics, options):
    """In chunks of any size, token by token, across the edge of the window; it ends behind the first stop id."""
    lm, prompt = tiny.lm(scaling=scaling), tiny.tokens(1, 25, seed=6)[0]
    options |= {"max_new_tokens": 20, "semantics": semantics}
    whole = lm.generate([prompt], **options)[0].tolist()
    for chunk, sizes in ((1, [1] * 20), (8, [1, 8, 8, 3]), (19, [1, 19]), (50, [20])):
        chunks = list(lm.stream(prompt, chunk=chunk, **options))
        assert list(map(len, chunks)) == sizes and sum(chunks, []) == whole
    for stop in (
        whole[0],
        whole[8],
        whole[9],
    ):  # the last one of a chunk, and the first of the next
        chunks = list(lm.stream(prompt, eos_token_id=stop, chunk=8, **options))
        assert sum(chunks, []) == whole[: whole.index(stop) + 1] and all(chunks)


LOGITS = np.array([1.0, -0.5, 2.0, 0.3, 1.7, -2.0, 0.0, 1.2], np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (2.0, 0.75), (1.0, 0.5), (1.0, 1e-3)]
)
def test_samples_have_the_distribution_they_should(temperature: float, top_p: float):
    """softmax(logits / temperature), cut to the fewest tokens that reach top_p: 40,000 draws within 5 sigma."""
    n = 40000
    draw = jax.jit(sample_token)(
        jnp.tile(LOGITS, (n, 1)), jax.random.key(0), jnp.float32(temperature), jnp.float32(top_p)
    )
    p = np.exp(LOGITS / temperature) / np.exp(LOGITS / temperature).sum()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-6)) + 1]
    expected = np.zeros(8)
    expected[kept] = p[kept] / p[kept].sum()
    counts = np.bincount(draw, minlength=8)
    assert (counts[expected == 0] == 0).all()
    assert (abs(counts - n * expected) <= 5 * np.sqrt(n * expected * (1 - expected)) + 1e-9).all()


def test_sampling_through_the_door():
    lm, prompt = tiny.lm(), tiny.tokens(1, 20, seed=4)
    p = jax.nn.softmax(lm.logits(prompt)[0, -1] / 0.5)

    def sample(seed: int, **options) -> np.ndarray:
        return lm.generate(
            prompt.repeat(256, 0), max_new_tokens=2, temperature=0.5, seed=seed, **options
        )

    first = sample(0)
    counts = np.bincount(first[:, 0], minlength=tiny.VOCAB)
    assert (abs(counts - 256 * p) <= 5 * np.sqrt(256 * p * (1 - p)) + 1).all() and (
        counts > 0
    ).sum() > 3
    np.testing.assert_array_equal(first, sample(0))
    assert (first != sample(1)).any()
    assert (sample(0, top_p=1e-6)[:, 0] == p.argmax()).all()


def test_rows_of_different_lengths_get_noise_of_their_own():
    """Under frequencies by length every row is decoded alone; equal texts must not give equal samples."""
    lm, prompt = tiny.lm(scaling=DynamicNTK(2.0)), tiny.tokens(1, 20, seed=4)[0]
    rows = [prompt, prompt, prompt, prompt[1:]]
    out = lm.generate(rows, max_new_tokens=NEW, temperature=3.0, seed=5)
    assert len({tuple(row) for row in out}) == 4
    np.testing.assert_array_equal(
        out, lm.generate(rows, max_new_tokens=NEW, temperature=3.0, seed=5)
    )


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([[1, 2]], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ([[1, 2]], {"temperature": -1.0}, "temperature >= 0"),
        ([[1, 2]], {"temperature": float("nan")}, "temperature >= 0"),
        ([[1, 2]], {"top_p": 0.0}, "top_p <= 1"),
        ([[1, 2]], {"top_p": 1.5}, "top_p <= 1"),
        ([[1, 2]], {"semantics": "live"}, "'frozen' or 'incremental'"),
        ([[1, 2], []], {}, "not empty"),
        ([], {}, "at least one prompt"),
        ([[1, 97]], {}, "0..96"),
        ([[1, 2.5]], {}, "whole numbers"),
    ],
)
def test_what_cannot_be_generated_is_refused(tokens, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tiny.lm().generate(tokens, **{"max_new_tokens": 1, **options})


@pytest.mark.parametrize(
    "attention", [Causal(), SelfExtend(4, 8), LMInfinite(16, num_global=2)], ids=repr
)
@pytest.mark.parametrize(
    "scaling", [pytest.param(Yarn(2.0), marks=pytest.mark.check), DynamicNTK(2.0)], ids=method_name
)
def test_branches_equal_prompts_of_their_own(attention, scaling):
    """Each continuation against its whole text read at once; the prompts differ in length."""
    lm = tiny.lm(attention=attention, scaling=scaling)
    prompts = [tiny.tokens(1, 25, seed=1)[0], tiny.tokens(1, 30, seed=2)[0]]
    prefixes = [[tiny.tokens(1, 5, seed=10 * b + k)[0][:k] for k in range(3)] for b in range(2)]
    tokens, nats = lm.continuations(prompts, prefixes, max_new_tokens=7)
    assert tokens.shape == nats.shape == (2, 3, 7)
    for b, prompt in enumerate(prompts):
        longest = 30 if not scaling.depends_on_length else len(prompt)
        fixed = lm.with_method(Fixed(scaling, longest + 7))
        for k in range(3):
            ids = np.concatenate([prompt, tokens[b, k]])
            np.testing.assert_array_equal(tokens[b, k, :k], prefixes[b][k])
            np.testing.assert_allclose(
                nats[b, k], fixed.loss(ids[None])[0, len(prompt) - 1 :], atol=2e-5
            )
            follows(
                tokens[b, k, k:],
                np.asarray(fixed.logits(ids[None]))[0, len(prompt) - 1 + k : -1],
                least=2,
            )


def test_a_branch_stops_at_its_own_stop_ids_alone():
    lm, prompt = tiny.lm(), tiny.tokens(1, 20)[0]
    (free,), _ = lm.continuations([prompt], [[[]]], max_new_tokens=6)
    stop = int(free[0, 2])
    first = free[0].tolist().index(stop)
    tokens, nats = lm.continuations(
        [prompt, prompt], [[[], [stop, 5]], [[], []]], max_new_tokens=6, stop=[stop]
    )
    assert (
        tokens[0, 0].tolist() == [*free[0, :first], *[stop] * (6 - first)]
        and (nats[0, 0, first + 1 :] == 0).all()
    )
    assert (
        tokens[0, 1, :2].tolist() == [stop, 5] and (nats[0, 1, :3] > 0).all()
    )  # given ids do not end a continuation
    for wrong in ([], [[[]], [[], []]], [[], []]):
        with pytest.raises(ValueError, match="every prompt needs continuations"):
            lm.continuations([prompt, prompt], wrong, max_new_tokens=2)


def test_layers_apart_are_views_of_the_same_numbers():
    """Every layer a segment, in order, in the memory of the stack; what lies on several devices comes back as it is."""
    params = jax.tree.map(jnp.asarray, tiny.params())
    apart = layers_apart(params)
    stack = params["segments"]["0"]
    assert segment_sizes(apart) == (1,) * segment_sizes(params)[0] and len(apart["segments"]) > 1
    for n in range(len(apart["segments"])):
        for part, whole in zip(
            jax.tree.leaves(apart["segments"][str(n)]), jax.tree.leaves(stack), strict=True
        ):
            np.testing.assert_array_equal(part[0], whole[n])
    kernel = stack["mlp"]["gate_proj"]["kernel"]
    assert np.shares_memory(
        np.asarray(apart["segments"]["1"]["mlp"]["gate_proj"]["kernel"]), np.asarray(kernel)
    )
    spread = jax.device_put(params, jax.NamedSharding(jax.make_mesh((2,), ("x",)), jax.P()))
    assert layers_apart(spread) is spread
