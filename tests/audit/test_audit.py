"""What `ctxext audit` finds, against what the authors' code was seen to do, and brute force.

The golden cases say which keys released code lets a query see, whether it sees the future, and
which keys it counts twice.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from ctxext import methods as m
from ctxext.attention import Attention, Band, Causal, Mask, Piece
from ctxext.attention.layers import LayerKind
from ctxext.attention.maps import Shifted
from ctxext.audit import Audit, Subject, audit, findings
from ctxext.audit.agreement import compare_cache, wrong_block
from ctxext.audit.distances import pairs
from ctxext.audit.gradients import leaks, queries_with_gradients
from ctxext.audit.receptive_field import receptive_field
from ctxext.audit.visibility import EXACT, Row, Visibility, audited_queries
from ctxext.rope import RopeBase, RopeScaling, Unscaled

GOLDEN = Path(__file__).parents[1] / "golden"
LLAMA2 = RopeBase(128, 10000.0, 4096)


def subject(
    attention: Attention,
    seq_len: int,
    *,
    window: int = 16,
    layers: int | tuple[LayerKind, ...] = 1,
    scaling: RopeScaling = Unscaled(),
) -> Subject:
    if isinstance(layers, int):
        layers = (LayerKind(),) * layers
    base = RopeBase(8, 1e4, window)
    return Subject(attention, scaling, base, seq_len, layers, (4, 2))


def golden(file: str, method: str) -> list[dict[str, Any]]:
    cases = json.loads((GOLDEN / file).read_text())["cases"]
    return [case for case in cases if case["method"] == method]


def rows_of(looked_at: Subject, view: int = 0) -> list[Row]:
    """What every query sees, in the first kind of layer."""
    views = looked_at.views(looked_at.kinds[0])
    queries = np.arange(looked_at.seq_len)
    visibility = Visibility.of(views[view], looked_at.seq_len, queries)
    return [visibility.row(query) for query in range(looked_at.seq_len)]


def keys_of(row: Row) -> list[int]:
    found = {key for runs in row.pieces for first, last in runs for key in range(first, last + 1)}
    return sorted(found)


def found_by_masks(looked_at: Subject) -> list[str]:
    """The kinds of findings that take no model: everything but gradients, kernels and the cache."""
    queries = audited_queries(looked_at.seq_len, looked_at.window)
    found: list[findings.Finding] = []
    for kind in looked_at.kinds:
        (base,) = dataclasses.replace(looked_at, attention=Causal()).views(kind)
        of_base = Visibility.of(base, looked_at.seq_len, queries)
        for view in looked_at.views(kind):
            found += findings.of_view(Visibility.of(view, looked_at.seq_len, queries), [], of_base)
    wrong = wrong_block(looked_at, EXACT)
    found += findings.of_block(wrong)
    if wrong is None:
        found += findings.blind_spots(looked_at, receptive_field(looked_at).reached)
    return [finding.kind for finding in found]


@dataclasses.dataclass(frozen=True)
class StringPrefill(Attention):
    """STRING as its released prefill: the key at distance S is in both parts."""

    shifted_offset: int
    local_value: int

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        near = Piece(Band(0, self.shifted_offset + 1))
        shift = Shifted(self.local_value - self.shifted_offset)
        return near, Piece(Band(self.shifted_offset), shift)


@dataclasses.dataclass(frozen=True)
class Late(Mask):
    """A band that also shows the token `ahead` later, to jax only if `hidden`."""

    causal: ClassVar[bool] = False
    ahead: int
    hidden: bool = False

    def visible(self, query: Any, key: Any) -> Any:
        seen = (query >= key) & (query - key < 8)
        if self.hidden and isinstance(key, np.ndarray):
            return seen
        return seen | (key - query == self.ahead)

    def block(self, query: range, key: range) -> tuple[bool, bool]:
        return True, False


@dataclasses.dataclass(frozen=True)
class Nearly(Mask):
    """A causal mask; what it says of blocks, and who sees itself, is up to the fields."""

    says: tuple[bool, bool] = (True, False)
    itself: bool = True

    def visible(self, query: Any, key: Any) -> Any:
        return (query >= key) & ((query != key) | (key == 0) | self.itself)

    def block(self, query: range, key: range) -> tuple[bool, bool]:
        return self.says


@dataclasses.dataclass(frozen=True)
class Pieces(Attention):
    """A method of these pieces."""

    parts: tuple[Piece, ...]

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        return self.parts


def test_s2_attn_is_seen_as_the_authors_code_sees_it():
    compared = 0
    for case in golden("attention3.json", "s2_attn"):
        p = case["params"]
        T, size = p["T"], p["group_size"]
        released = case["id"].endswith("noflash")
        if released and size % 2:
            continue  # its outputs are one token off, which no mask says
        compared += 1
        method = m.S2AttnAsReleased(T, size) if released else m.S2Attn(size)
        looked_at = subject(method, T)
        for view, name in enumerate(("heads_0_to_half_visible", "heads_half_to_end_visible")):
            assert [keys_of(row) for row in rows_of(looked_at, view)] == case[name], case["id"]
        assert ("future" in found_by_masks(looked_at)) == case["sees_future"], case["id"]
    assert compared == 9


def test_streaming_llm_is_seen_as_the_authors_code_sees_it():
    cases = [c for c in golden("attention2.json", "streaming_llm") if "visible_keys" in c]
    for case in cases:
        p = case["params"]
        method = m.StreamingLLM(p["recent_size"], p["start_size"])
        looked_at = subject(method, p["T"], layers=8)
        assert [keys_of(row) for row in rows_of(looked_at)] == case["visible_keys"]
        assert found_by_masks(looked_at) == ([] if p["start_size"] else ["no sink"])
    assert len(cases) == 4


def test_keys_that_the_prefill_of_string_counts_twice():
    cases = golden("attention3.json", "string")
    for case in cases:
        p = case["params"]
        S, W, T = p["shifted_offset"], p["local_value"], p["T"]
        twice = case["keys_counted_twice_last_row"]
        released = subject(StringPrefill(S, W), T, window=T)
        assert found_by_masks(released) == (["twice"] if twice else [])
        last = rows_of(released)[-1]
        assert last.twice == [(key, key) for key in twice]
        far = case["far_distance_last_row"]
        assert last.distances[1] == ((min(far), max(far)) if far else None)
        assert found_by_masks(subject(m.String(S, W), T, window=T)) == []
    assert cases


def test_an_audit_finds_the_leak_of_s2_attn_as_released():
    result = audit(subject(m.S2AttnAsReleased(16, 4), 16, layers=8))
    finding, of_cache = result.findings
    assert (finding.kind, of_cache.kind) == ("future", "cache"), "no cache has later tokens"
    assert "In heads 2-3: Queries see the future: query 0 sees keys 14-15" in finding.sentence
    assert "by the keys and values of token 14" in finding.sentence
    by_name = results(result)
    assert by_name["blocked"] == by_name["ring"] == "refused"


def results(result: Audit) -> dict[str, str]:
    return {each.name: each.result for each in [*result.kernels, result.cache]}


def test_a_window_without_sinks_is_blind():
    looked_at = subject(m.LMInfinite(8, 0), 64, window=32, layers=3)
    assert found_by_masks(looked_at) == ["no sink", "blind spot"]
    field = receptive_field(looked_at)
    assert field.by_layer == [8, 15, 22], "7 more in each layer"
    assert np.flatnonzero(field.reached).tolist() == list(range(42, 64))
    assert found_by_masks(subject(m.LMInfinite(8, 0), 64, layers=9)) == ["no sink"]
    assert found_by_masks(subject(m.LMInfinite(8, 1), 64, layers=9)) == []
    # A model that was pre-trained with such windows does not rest on the first token.
    windows = (LayerKind(8),) * 3
    assert found_by_masks(subject(Causal(), 64, layers=windows)) == []


EXAMPLES = [
    m.example(method, RopeBase(8, 1e4, 1024), factor=4.0)
    for name, method in m.all_methods().items()
    if m.seam(method) == "attention" and name != "s2-attn-as-released"
]


@pytest.mark.parametrize("attention", EXAMPLES, ids=m.method_name)
def test_no_mask_of_a_method_is_wrong(attention: Attention):
    assert found_by_masks(subject(attention, 1536, window=1024, layers=8)) == []


IN_CHECK = ("alibi", "dca", "s2-attn", "ssmax", "streaming-llm")


@pytest.mark.parametrize(
    "attention",
    [
        pytest.param(
            attention,
            marks=pytest.mark.check if m.method_name(attention) in IN_CHECK else pytest.mark.slow,
        )
        for attention in EXAMPLES
    ],
    ids=m.method_name,
)
def test_an_audit_finds_nothing_wrong_with_a_method(attention: Attention):
    result = audit(subject(attention, 8192, window=1024, layers=32))
    assert result.findings == []
    assert results(result)["cache"] == "same"


def test_an_audit_finds_nothing_wrong_with_self_extend_and_yarn():
    looked_at = subject(m.SelfExtend(2, 16), 256, window=64, scaling=m.Yarn(4.0), layers=2)
    result = audit(looked_at)
    assert result.findings == []
    by_name = results(result)
    assert by_name["blocked"] == by_name["ring"] == by_name["cache"] == "same"
    assert by_name["splash"] == by_name["cudnn"] == "not run"
    assert result.exact and result.gradients == 256


@pytest.mark.parametrize("ahead", [1, 5])
def test_gradients_find_every_later_token_that_an_output_depends_on(ahead: int):
    looked_at = subject(Pieces((Piece(Late(ahead)),)), 24)
    (view,) = looked_at.views(LayerKind())
    found = leaks(looked_at, view, range(24))
    assert [(leak.query, leak.key) for leak in found] == [(q, q + ahead) for q in range(24 - ahead)]
    assert all(leak.by == "keys and values" and leak.sign == 1 for leak in found)


def test_a_leak_that_no_mask_shows_is_found_by_gradients():
    looked_at = subject(Pieces((Piece(Late(3, hidden=True)),)), 24, layers=4)
    assert found_by_masks(looked_at) == ["no sink"]
    (view,) = looked_at.views(LayerKind())
    seen = Visibility.of(view, 24, np.arange(24))
    (finding, *_) = findings.of_view(seen, leaks(looked_at, view, [4, 5]), seen)
    assert finding.sentence == (
        "The output of query 4 depends on the keys and values of the later token 7, although no "
        "mask shows it; 2 queries do so."
    )


def test_the_gradients_are_those_of_the_softmax():
    """A query that sees later tokens only is found too, and one that sees itself is not."""
    looked_at = subject(Causal(), 12)
    (view,) = looked_at.views(LayerKind())
    assert leaks(looked_at, view, range(12)) == []
    assert jnp.asarray(queries_with_gradients(np.arange(5000), 5000))[-1] == 4999


def test_block_tests_that_contradict_their_masks_are_found():
    for says in ((False, False), (True, True)):
        attention = Pieces((Piece(Nearly(says)),))
        assert found_by_masks(subject(attention, 40)) == ["block"]
    assert found_by_masks(subject(Pieces((Piece(Nearly()),)), 40)) == []


def test_tokens_that_do_not_see_themselves_or_nothing_are_found():
    attention = Pieces((Piece(Nearly(itself=False)),))
    assert found_by_masks(subject(attention, 40)) == ["itself"]
    assert "nothing" in found_by_masks(subject(Pieces((Piece(Band(1)),)), 40))


def test_a_text_of_one_token_is_decoded_as_it_is_read():
    assert compare_cache(subject(Causal(), 1)).result == "same"


def test_earlier_keys_at_negative_distances_are_found():
    parts = Piece(Band(0, 4)), Piece(Band(4), Shifted(-9))
    assert found_by_masks(subject(Pieces(parts), 40)) == ["negative distance"]


@pytest.mark.parametrize("attention", [Causal(), m.SelfExtend(3, 8), m.LMInfinite(7, 2)], ids=str)
def test_receptive_fields_are_boolean_products(attention: Attention):
    T = 150
    kinds = (LayerKind(), LayerKind(9), LayerKind(), LayerKind(5))
    looked_at = subject(attention, T, layers=kinds)
    reached = np.eye(T, dtype=bool)[-1]
    by_layer = []
    for kind in reversed(kinds):
        index = np.arange(T)
        for view in looked_at.views(kind):
            for seen in view.visible(index, index):
                reached = reached | (reached.astype(int) @ seen.astype(int) > 0)
        by_layer.append(int(reached.sum()))
    field = receptive_field(looked_at)
    assert field.by_layer == by_layer
    np.testing.assert_array_equal(field.reached, reached)


def test_angles_of_llama2():
    """Pairs 46 to 63 make no whole turn in 4,096 tokens, as in the tests of `ctxext rope`."""

    def angles(scaling: RopeScaling, reach: float, *, whole: bool = True) -> list[str]:
        looked_at = Subject(Causal(), scaling, LLAMA2, 8192, (LayerKind(),), (32, 32))
        return [pair.angles for pair in pairs(looked_at, reach, kind=LayerKind(), whole=whole)]

    assert angles(Unscaled(), 4095) == ["seen"] * 64
    assert angles(Unscaled(), 4094.5, whole=False) == ["interpolated"] * 64
    assert angles(Unscaled(), 4096) == ["interpolated"] * 46 + ["extrapolated"] * 18
    assert angles(m.Linear(2.0), 8191) == ["interpolated"] * 64
    assert angles(m.Linear(2.0), 8192) == ["interpolated"] * 46 + ["extrapolated"] * 18
    assert angles(m.PRope(1.0, 0.5), 8191) == ["interpolated"] * 32 + ["seen"] * 32


def test_weights_that_share_a_distance_are_counted():
    last = rows_of(subject(m.SelfExtend(4, 8), 64))[-1]
    assert last.pieces == [[(56, 63)], [(0, 55)]]
    assert last.keys == [8, 56]
    assert last.largest_share[1] == 4
    assert last.distances == [(0, 7), (8, 21)]


def test_a_sample_of_a_long_text_has_both_ends_and_is_the_same_every_time():
    queries = audited_queries(100_000, 4096)
    assert len(queries) < 1000
    assert {0, 63, 4095, 4096, 8192, 99_999} <= set(queries.tolist())
    np.testing.assert_array_equal(queries, audited_queries(100_000, 4096))
    np.testing.assert_array_equal(audited_queries(EXACT, 4096), np.arange(EXACT))
