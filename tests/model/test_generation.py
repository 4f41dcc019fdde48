"""Cached decoding against recomputing, the semantics for scalings by length, and sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Causal
from ctxext.interop import hf
from ctxext.interop.hf_weights import lazy_tensors
from ctxext.methods import S2AttnAsReleased, method_name
from ctxext.methods.lm_infinite import LMInfinite
from ctxext.methods.long_rope import LongRope
from ctxext.methods.ntk import DynamicNTK
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.generation import SEMANTICS, Semantics, forced, sample_token
from ctxext.model.segments import layers_apart, segment_sizes
from ctxext.model.shared_beginning import shared_beginning
from ctxext.rope import RopeScaling, Unscaled
from support import tiny
from support.attention_by_definition import AtLength
from support.every_method import BY_LENGTH, EVERY_ATTENTION, sparingly
from support.reference_llama import ReferenceLlama

NEW = 12
LEADING = LongRope(4.0, (1.0,) * 8, tuple(np.linspace(1, 4, 8).tolist()), leading_positions=9)
SWITCHING = LongRope(4.0, (1.0,) * 8, tuple(np.linspace(1, 4, 8).tolist()))
"""Plain up to the window, and scaled beyond it, as the files of LongRoPE are."""


@dataclasses.dataclass(frozen=True)
class Fixed(RopeScaling):
    """The frequencies of `scaling` at one length, whatever length is asked for."""

    scaling: RopeScaling
    length: int

    def rope(self, base, seq_len):
        return self.scaling.rope(base, self.length)


def assert_greedy(tokens: np.ndarray, logits: np.ndarray, min_steps: int) -> None:
    """Check that `tokens` are the best of `logits`, up to the first step that is too close.

    That is one whose best two logits are within 1e-4; it must not come before `min_steps`.
    """
    ordered = np.sort(logits, -1)
    is_clear = np.append(ordered[:, -1] - ordered[:, -2] > 1e-4, False)
    steps = int(np.argmin(is_clear))
    assert steps >= min_steps
    np.testing.assert_array_equal(tokens[:steps], logits.argmax(-1)[:steps])


@pytest.mark.parametrize(
    "attention", [Causal(), pytest.param(SelfExtend(4, 8), marks=pytest.mark.check)], ids=repr
)
def test_cached_decoding_equals_recomputing(attention):
    """Across the end of the window (25 tokens and 12 new ones) and beyond it (40), `frozen`."""
    distinct = set()
    for scaling in (Unscaled(), Yarn(2.0), DynamicNTK(2.0), LEADING):
        lm = tiny.lm(attention=attention, scaling=scaling)
        for length in (25, 40):
            prompts = tiny.tokens(2, length, seed=length)
            new = lm.generate(prompts, max_new_tokens=NEW, semantics="frozen")
            assert new.shape == (2, NEW)
            assert new.dtype == np.int32
            full_text = np.concatenate([prompts, new], 1)
            logits = lm.with_method(Fixed(scaling, length)).logits(full_text)
            for row in range(2):
                assert_greedy(new[row], np.asarray(logits)[row, length - 1 : -1], NEW // 2)
            distinct.add(tuple(new[0]))
    assert len(distinct) >= 5, "methods and prompts make no difference"


@pytest.mark.check
@pytest.mark.parametrize(
    "attention",
    [x for x in EVERY_ATTENTION if all(piece.mask.causal for piece in x.pieces(64))],
    ids=method_name,
)
def test_every_attention_method_writes_as_it_reads(attention):
    prompts = tiny.tokens(2, 40)
    lm = tiny.lm(attention=attention)
    new = lm.generate(prompts, max_new_tokens=NEW, semantics="frozen")
    full_text = np.concatenate([prompts, new], 1)
    logits = lm.with_method(AtLength(attention, 40)).logits(full_text)
    for row in range(2):
        assert_greedy(new[row], np.asarray(logits)[row, 39:-1], NEW // 2)


def test_a_method_that_shows_later_tokens_cannot_write():
    lm = tiny.lm(attention=S2AttnAsReleased(32, 8), kernel="dense")
    with pytest.raises(ValueError, match="S2AttnAsReleased shows tokens that come later"):
        lm.generate(tiny.tokens(1, 32), max_new_tokens=2)


def test_leading_positions_reach_the_model():
    """Prefill and decoding use plain frequencies up to position 30, and scaled ones after it."""
    unscaled = tiny.lm()
    scaled = tiny.lm(scaling=dataclasses.replace(LEADING, leading_positions=30))
    tokens = tiny.tokens(1, 48)
    unscaled_logits = np.asarray(unscaled.logits(tokens))
    scaled_logits = np.asarray(scaled.logits(tokens))
    np.testing.assert_allclose(scaled_logits[:, :30], unscaled_logits[:, :30], atol=1e-5)
    assert abs(scaled_logits[:, 30:] - unscaled_logits[:, 30:]).max() > 1e-2
    none = dataclasses.replace(LEADING, leading_positions=0)
    assert abs(np.asarray(tiny.lm(scaling=none).logits(tokens)) - scaled_logits).max() > 1e-2
    new = tiny.lm(scaling=LEADING).generate(tokens, max_new_tokens=NEW, semantics="incremental")
    assert new.shape == (1, NEW)


@pytest.mark.parametrize("scaling", sparingly(BY_LENGTH), ids=method_name)
def test_own_semantics_of_every_scaling_that_follows_the_length(scaling):
    """Across the end of the window (20 + 24 tokens) and beyond it, step by step in float64 numpy.

    All keys are rotated by the frequencies of the length so far with `incremental`, and by those of
    the prompt's length with `frozen`.
    """
    base = tiny.CONFIG.rope_base()
    lm = tiny.lm(scaling=scaling)
    differ = False
    for length in (20, 36):
        prompts = tiny.tokens(2, length, seed=1)
        generated = {
            semantics: lm.generate(prompts, max_new_tokens=24, semantics=semantics)
            for semantics in ("frozen", "incremental")
        }
        for semantics, new in generated.items():
            for prompt, out in zip(prompts, new, strict=True):
                reference = ReferenceLlama(tiny.CONFIG, tiny.params())
                lengths = [
                    length + (step if semantics == "incremental" else 0) for step in range(24)
                ]
                ropes = [scaling.rope(base, seq_len) for seq_len in lengths]
                logits = [reference.feed(prompt, ropes[0])[-1]]
                for step in range(1, 24):
                    logits.append(reference.feed(out[step - 1 : step], ropes[step])[0])
                assert_greedy(out, np.array(logits), 10)
        differ |= (generated["frozen"] != generated["incremental"]).any()
    assert differ, "the two semantics give the same tokens"


def test_semantics_are_one_where_frequencies_do_not_follow_the_length():
    lm = tiny.lm(scaling=Yarn(2.0))
    prompts = tiny.tokens(2, 25)
    first, *others = (lm.generate(prompts, max_new_tokens=NEW, semantics=s) for s in SEMANTICS)
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(
    ("scaling", "semantics"),
    [
        pytest.param(SWITCHING, "frozen", id="long-rope-frozen"),
        # Each of the other semantics once; the other pairs are for `make slow`.
        pytest.param(
            DynamicNTK(2.0), "incremental", id="dynamic-ntk-incremental", marks=pytest.mark.slow
        ),
        pytest.param(
            SWITCHING, "transformers", id="long-rope-transformers", marks=pytest.mark.slow
        ),
        *(
            pytest.param(
                scaling, semantics, id=f"{method_name(scaling)}-{semantics}", marks=pytest.mark.slow
            )
            for scaling, semantics in (
                (SWITCHING, "incremental"),
                (DynamicNTK(2.0), "frozen"),
                (DynamicNTK(2.0), "transformers"),
            )
        ),
    ],
)
def test_a_text_does_not_depend_on_how_many_tokens_may_follow(scaling, semantics: Semantics):
    """Across the end of the window: a smaller budget gives the beginning of the same text."""
    lm = tiny.lm(scaling=scaling, semantics=semantics)
    prompt = tiny.tokens(1, 25, seed=3)
    texts = [lm.generate(prompt, max_new_tokens=new)[0].tolist() for new in (3, 12, 33, 70)]
    assert len(set(texts[-1])) > 10
    for text in texts:
        assert text == texts[-1][: len(text)]
    (tokens,), _ = lm.continuations(prompt, [[[], texts[-1][:2]]], max_new_tokens=12)
    assert tokens.tolist() == [texts[1], texts[1]]


@pytest.mark.parametrize(
    ("rope_type", "length"),
    [
        ("dynamic", 25),
        ("longrope", 25),
        pytest.param("dynamic", 40, marks=pytest.mark.slow),
        pytest.param("longrope", 40, marks=pytest.mark.slow),
    ],
)
def test_the_semantics_of_transformers_are_its_own(rope_type: str, length: int):
    """Greedy tokens with its cache, from inside the window (25 tokens of 32) and beyond it (40)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    scaling = {"dynamic": DynamicNTK(2.0), "longrope": SWITCHING}[rope_type]
    settings = hf.config_json(tiny.CONFIG, scaling, seq_len=128, dtype="float32")
    assert settings["rope_scaling"]["rope_type"] == rope_type
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    tensors = lazy_tensors(tiny.CONFIG, tiny.params())
    state = {name: torch.tensor(np.array(tensor.read())) for name, tensor in tensors.items()}
    model.load_state_dict(state)
    prompt = tiny.tokens(1, length, seed=8)
    with torch.no_grad():
        expected = model.generate(
            torch.tensor(prompt),
            do_sample=False,
            min_new_tokens=40,
            max_new_tokens=40,
            pad_token_id=0,
        )[0, length:].tolist()
    lm = tiny.lm(scaling=scaling, angles="float32")
    texts = {s: lm.generate(prompt, max_new_tokens=40, semantics=s)[0].tolist() for s in SEMANTICS}
    assert texts["transformers"] == expected
    # Beyond the window LongRoPE no longer changes, and all semantics are one.
    changes = rope_type == "dynamic" or length < tiny.CONFIG.max_position_embeddings
    assert (texts["incremental"] != expected) == changes


@pytest.mark.parametrize("scaling", [Unscaled(), DynamicNTK(2.0)], ids=repr)
def test_rows_do_not_influence_each_other(scaling: RopeScaling):
    """Three rows of different lengths, padded to four, equal three calls, also by length."""
    lm = tiny.lm(scaling=scaling)
    prompts = [tiny.tokens(1, length, seed=length)[0] for length in (5, 20, 30)]
    together = lm.generate(prompts, max_new_tokens=NEW)
    alone = [lm.generate([prompt], max_new_tokens=NEW)[0] for prompt in prompts]
    np.testing.assert_array_equal(together, alone)


def test_a_stop_id_ends_a_row_and_repeats():
    lm = tiny.lm()
    prompts = tiny.tokens(2, 20, seed=3)
    free = lm.generate(prompts, max_new_tokens=NEW)
    late = int(free[0, 4])
    first = [int(token) for token in free[:, 0]]
    for eos in (late, (late, first[1]), first):
        out = lm.generate(prompts, max_new_tokens=NEW, eos_token_id=eos)
        for row, expected in zip(out, free, strict=True):
            stops = [i for i, token in enumerate(expected) if token in np.atleast_1d(eos)]
            end = stops[0] + 1 if stops else NEW
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
def test_a_stream_yields_the_tokens_of_generate(scaling, semantics, options):
    """In chunks of any size, across the end of the window; it ends after the first stop id."""
    lm = tiny.lm(scaling=scaling)
    prompt = tiny.tokens(1, 25, seed=6)[0]
    options |= {"max_new_tokens": 20, "semantics": semantics}
    expected = lm.generate([prompt], **options)[0].tolist()
    for chunk, sizes in ((1, [1] * 20), (8, [1, 8, 8, 3]), (19, [1, 19]), (50, [20])):
        chunks = list(lm.stream(prompt, chunk=chunk, **options))
        assert list(map(len, chunks)) == sizes
        assert sum(chunks, []) == expected
    # Also the last token of a chunk, and the first one of the next.
    for stop in (expected[0], expected[8], expected[9]):
        chunks = list(lm.stream(prompt, eos_token_id=stop, chunk=8, **options))
        assert sum(chunks, []) == expected[: expected.index(stop) + 1]
        assert all(chunks)


LOGITS = np.array([1.0, -0.5, 2.0, 0.3, 1.7, -2.0, 0.0, 1.2], np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (2.0, 0.75), (1.0, 0.5), (1.0, 1e-3)]
)
def test_samples_have_the_distribution_they_should(temperature: float, top_p: float):
    """40,000 draws agree with softmax(logits / temperature), cut to the nucleus, within 5 sigma."""
    n = 40000
    draw = jax.jit(sample_token)(
        jnp.tile(LOGITS, (n, 1)), jax.random.key(0), jnp.float32(temperature), jnp.float32(top_p)
    )
    p = np.exp(LOGITS / temperature) / np.exp(LOGITS / temperature).sum()
    order = np.argsort(-p)
    nucleus = order[: int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-6)) + 1]
    expected = np.zeros(8)
    expected[nucleus] = p[nucleus] / p[nucleus].sum()
    counts = np.bincount(draw, minlength=8)
    assert (counts[expected == 0] == 0).all()
    assert (abs(counts - n * expected) <= 5 * np.sqrt(n * expected * (1 - expected)) + 1e-9).all()


def test_generate_samples_from_the_model():
    lm = tiny.lm()
    prompt = tiny.tokens(1, 20, seed=4)
    p = jax.nn.softmax(lm.logits(prompt)[0, -1] / 0.5)

    def sample(seed: int, **options) -> np.ndarray:
        return lm.generate(
            prompt.repeat(256, 0), max_new_tokens=2, temperature=0.5, seed=seed, **options
        )

    first = sample(0)
    counts = np.bincount(first[:, 0], minlength=tiny.VOCAB)
    assert (abs(counts - 256 * p) <= 5 * np.sqrt(256 * p * (1 - p)) + 1).all()
    assert (counts > 0).sum() > 3
    np.testing.assert_array_equal(first, sample(0))
    assert (first != sample(1)).any()
    assert (sample(0, top_p=1e-6)[:, 0] == p.argmax()).all()


def test_rows_decoded_separately_sample_independently():
    """With frequencies by length rows are decoded alone; equal prompts still sample differently."""
    lm = tiny.lm(scaling=DynamicNTK(2.0))
    prompt = tiny.tokens(1, 20, seed=4)[0]
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
        ([[1, 2]], {"semantics": "live"}, "semantics 'live' is not known"),
        ([[1, 2], []], {}, "not empty"),
        ([], {}, "at least one prompt"),
        ([[1, 97]], {}, "0..96"),
        ([[1, 2.5]], {}, "whole numbers"),
    ],
)
def test_invalid_requests_are_refused(tokens, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tiny.lm().generate(tokens, **{"max_new_tokens": 1, **options})


@pytest.mark.parametrize(
    ("attention", "scaling"),
    [
        (Causal(), DynamicNTK(2.0)),
        (SelfExtend(4, 8), DynamicNTK(2.0)),
        pytest.param(LMInfinite(16, num_global=2), Yarn(2.0), marks=pytest.mark.check),
        # The other pairs of the same attentions and scalings.
        pytest.param(LMInfinite(16, num_global=2), DynamicNTK(2.0), marks=pytest.mark.slow),
        pytest.param(Causal(), Yarn(2.0), marks=pytest.mark.slow),
        pytest.param(SelfExtend(4, 8), Yarn(2.0), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_continuations_equal_separate_prompts(attention, scaling):
    """Each continuation against its whole text read at once; the prompts differ in length."""
    lm = tiny.lm(attention=attention, scaling=scaling, semantics="frozen")
    prefixes = [[tiny.tokens(1, 5, seed=10 * b + k)[0][:k] for k in range(3)] for b in range(2)]
    assert_continued(lm, prefixes)


@pytest.mark.parametrize(
    ("attention", "scaling"),
    [
        (Causal(), Yarn(2.0)),
        pytest.param(SelfExtend(4, 8), Yarn(2.0), marks=pytest.mark.slow),
        pytest.param(Causal(), DynamicNTK(2.0), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_what_continuations_share_is_written_once(attention, scaling):
    """Two questions with three answers each: the first tokens of a question take one step each."""
    lm = tiny.lm(attention=attention, scaling=scaling, semantics="frozen")
    ids = tiny.tokens(1, 40, seed=3)[0]
    prefixes = [
        [np.concatenate([question, answer]) for question in questions for answer in answers]
        for questions, answers in [
            ((ids[:3], ids[3:7]), (ids[7:7], ids[8:10], ids[10:11])),
            ((ids[20:23], ids[23:26]), (ids[26:28], ids[28:29], ids[29:29])),
        ]
    ]
    shared = shared_beginning(forced(prefixes, 7))
    assert shared is not None
    assert shared.tokens.shape == (2, 2, 3)
    assert_continued(lm, prefixes)


def assert_continued(lm, prefixes):
    """That every continuation of two prompts is what its whole text gives when read at once."""
    prompts = [tiny.tokens(1, 25, seed=1)[0], tiny.tokens(1, 30, seed=2)[0]]
    tokens, nll = lm.continuations(prompts, prefixes, max_new_tokens=7)
    assert tokens.shape == nll.shape == (2, len(prefixes[0]), 7)
    for b, prompt in enumerate(prompts):
        longest = 30 if not lm.scaling.depends_on_length else len(prompt)
        fixed = lm.with_method(Fixed(lm.scaling, longest))
        for k, prefix in enumerate(prefixes[b]):
            ids = np.concatenate([prompt, tokens[b, k]])
            np.testing.assert_array_equal(tokens[b, k, : len(prefix)], prefix)
            np.testing.assert_allclose(
                nll[b, k], fixed.loss(ids[None])[0, len(prompt) - 1 :], atol=2e-5
            )
            logits = np.asarray(fixed.logits(ids[None]))[0, len(prompt) - 1 + len(prefix) : -1]
            assert_greedy(tokens[b, k, len(prefix) :], logits, min(2, len(logits)))


def test_a_continuation_stops_only_at_stop_ids_that_it_chose():
    lm = tiny.lm()
    prompt = tiny.tokens(1, 20)[0]
    (free,), _ = lm.continuations([prompt], [[[]]], max_new_tokens=6)
    stop = int(free[0, 2])
    first = free[0].tolist().index(stop)
    tokens, nll = lm.continuations(
        [prompt, prompt], [[[], [stop, 5]], [[], []]], max_new_tokens=6, stop=[stop]
    )
    assert tokens[0, 0].tolist() == [*free[0, :first], *[stop] * (6 - first)]
    assert (nll[0, 0, first + 1 :] == 0).all()
    # Ids of a prefix do not end a continuation.
    assert tokens[0, 1, :2].tolist() == [stop, 5]
    assert (nll[0, 1, :3] > 0).all()
    for wrong in ([], [[[]], [[], []]], [[], []]):
        with pytest.raises(ValueError, match="every prompt needs continuations"):
            lm.continuations([prompt, prompt], wrong, max_new_tokens=2)


def test_layers_apart_are_views_of_the_same_numbers():
    """Every layer is a segment, in the memory of the stack; arrays on several devices stay."""
    params = jax.tree.map(jnp.asarray, tiny.params())
    apart = layers_apart(params)
    stack = params["segments"]["0"]
    assert segment_sizes(apart) == (1,) * segment_sizes(params)[0]
    assert len(apart["segments"]) > 1
    for n in range(len(apart["segments"])):
        for layer, stacked in zip(
            jax.tree.leaves(apart["segments"][str(n)]), jax.tree.leaves(stack), strict=True
        ):
            np.testing.assert_array_equal(layer[0], stacked[n])
    kernel = stack["mlp"]["gate_proj"]["kernel"]
    assert np.shares_memory(
        np.asarray(apart["segments"]["1"]["mlp"]["gate_proj"]["kernel"]), np.asarray(kernel)
    )
    spread = jax.device_put(params, jax.NamedSharding(jax.make_mesh((2,), ("x",)), jax.P()))
    assert layers_apart(spread) is spread
