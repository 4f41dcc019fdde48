"""Compare the output of one reader with ours.

transformers multiplies positions and frequencies in float32, and GGUF stores frequencies in it; we
do neither. So logits are compared with ours under the reader's own frequencies and rounding (which
must agree to float32), and once more under our exact angles, where the difference is the reader's
rounding and is only reported.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ctxext.attention.tables import Tables
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, bind
from ctxext.model.lm import LM
from ctxext.parallel.distributed import gather
from ctxext.parallel.mesh import Mesh
from ctxext.prove.reader_output import ReaderInput, ReaderOutput, text_lengths
from ctxext.prove.token_texts import CONVERSATION
from ctxext.rope import Rope, RopeBase, RopeScaling, rope_at
from ctxext.tokenization.chat import chat_of
from ctxext.tokenization.tokenizer import Tokenizer

FREQUENCY_TOLERANCE = 2e-6
"""Relative; two float32 powers differ by a unit or two in the last place."""
TABLE_TOLERANCE = 2e-6
LOGIT_TOLERANCE = 2e-5
"""For values up to 1, and in proportion above."""


@dataclasses.dataclass(frozen=True)
class AsRead(RopeScaling):
    """The very frequencies that another reader holds."""

    inv_freq: tuple[float, ...]
    attention_factor: float

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(np.asarray(self.inv_freq), self.attention_factor)


def compare(
    ours: LM, output: ReaderOutput, inputs: list[ReaderInput], texts: Sequence[str]
) -> dict[str, Any]:
    """The differences of a reader's output from our own, and whether it is "equal".

    The second input is our own greedy continuation; `texts` are those of `token_ids`. Raises
    ValueError for values that are not finite.
    """
    first, continuation = inputs
    length = int(first.positions[-1]) + 1
    as_read = ours
    if output.rounded and output.inv_freq is not None and output.attention_factor is not None:
        frequencies = AsRead(tuple(output.inv_freq.tolist()), output.attention_factor)
        as_read = dataclasses.replace(ours, scaling=frequencies, angles=output.angles)
    logits = _logits(as_read, first)
    largest = max(1.0, float(np.abs(logits).max()))
    tolerance = max(LOGIT_TOLERANCE * largest, output.coarse * float(logits.std()))
    tolerances: dict[str, float] = {"logits": tolerance, "greedy": tolerance}
    result: dict[str, Any] = {
        "reader": output.name,
        "version": output.version,
        "angles": output.angles,
    }
    if output.ropes is not None:
        result |= _rope_differences(ours, text_lengths(first), output.ropes)
        tolerances |= {"inv_freq": FREQUENCY_TOLERANCE, "attention_factor": FREQUENCY_TOLERANCE}
    positions = first.positions[first.compared]
    rotation = as_read.rotation(length)
    indices = jax.numpy.asarray(positions, jax.numpy.int32)
    cos, sin = rotation.tables(indices)
    sliding = None
    if rotation.sliding is not None:
        of_windows = rotation.sliding.tables(indices)
        sliding = Tables(of_windows[0][None], of_windows[1][None])
    if output.tables is not None:
        result["tables"] = _larger_errors(output.tables, (cos, sin)).tolist()
        tolerances["tables"] = TABLE_TOLERANCE
    if output.rotated is not None:
        rotated = _queries_keys(
            ours.params,
            first.tokens[None, first.compared],
            Tables(cos[None], sin[None], sliding=sliding),
            config=ours.config,
            mesh=ours.mesh,
        )
        flat = [gather(x)[0].reshape(len(positions), -1) for x in rotated]
        theirs = [x.reshape(len(positions), -1) for x in output.rotated]
        result["rotated"] = _larger_errors(theirs, flat).tolist()
        largest_value = max(1.0, *(float(np.abs(x).max()) for x in flat))
        tolerances["rotated"] = LOGIT_TOLERANCE * largest_value
    result["logits"] = errors(output.logits[0], logits).tolist()
    if output.rounded:
        result["logits_exact_angles"] = errors(output.logits[0], _logits(ours, first)).tolist()
    result["token_ids_equal"] = _token_ids_equal(ours.tokenizer, output, texts)
    result["vocabulary_equal"] = _vocabulary_equal(ours.tokenizer, output)
    result["special_ids_equal"] = _special_ids_equal(ours.tokenizer, output)
    result["chat_ids_equal"] = _chat_ids_equal(ours.tokenizer, output)
    result["greedy"] = _greedy_error(output.logits[1], continuation)
    within = all(np.max(result[name]) <= limit for name, limit in tolerances.items())
    same_ids = all(
        result[name] is not False
        for name in ("token_ids_equal", "vocabulary_equal", "special_ids_equal", "chat_ids_equal")
    )
    return result | {"equal": bool(within and same_ids)}


def _rope_differences(
    ours: LM, lengths: list[int], ropes: list[tuple[np.ndarray, float]]
) -> dict[str, Any]:
    """The largest differences at any length, and the lengths at which there are any."""
    frequencies = []
    factors = []
    for length, (inv_freq, attention_factor) in zip(lengths, ropes, strict=True):
        rope = rope_at(ours.scaling, ours.config.rope_base(), length)
        # Below a millionth of a radian per token nothing turns.
        relative = np.abs(inv_freq - rope.inv_freq) / np.maximum(rope.inv_freq, 1e-6)
        frequencies.append(float(relative.max()))
        factors.append(abs(attention_factor - rope.attention_factor))
    wrong = np.maximum(frequencies, factors) > FREQUENCY_TOLERANCE
    return {
        "inv_freq": max(frequencies),
        "attention_factor": max(factors),
        "text_lengths": lengths,
        "text_lengths_that_differ": np.asarray(lengths)[wrong].tolist(),
    }


def _token_ids_equal(
    tokenizer: Tokenizer, output: ReaderOutput, texts: Sequence[str]
) -> bool | None:
    if output.token_ids is None:
        return None
    encode = tokenizer.encode_as_model if output.reads_model else tokenizer.encode_as_readers
    return output.token_ids == [encode(text) for text in texts]


def _vocabulary_equal(tokenizer: Tokenizer, output: ReaderOutput) -> bool | None:
    if output.vocabulary is None:
        return None
    return output.vocabulary == tokenizer.vocabulary


def _special_ids_equal(tokenizer: Tokenizer, output: ReaderOutput) -> bool | None:
    if output.special_ids is None:
        return None
    ours = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    return all(ours[name] == token_id for name, token_id in output.special_ids.items())


def _chat_ids_equal(tokenizer: Tokenizer, output: ReaderOutput) -> bool | None:
    """Whether a chat is rendered and encoded alike, apart from a BOS that its template lacks."""
    if output.chat_ids is None:
        return None
    if tokenizer.chat_template is None:
        return False
    text = chat_of(tokenizer).text(CONVERSATION)
    return output.chat_ids == tokenizer.encode(text, special=True)


def _greedy_error(logits: np.ndarray, continuation: ReaderInput) -> float:
    """The most by which our next token is below the reader's likeliest; 0 if it is always that."""
    next_tokens = continuation.tokens[continuation.compared + 1]
    chosen = logits[np.arange(len(next_tokens)), next_tokens]
    return float((logits.max(-1) - chosen).max())


def _logits(lm: LM, reader_input: ReaderInput) -> np.ndarray:
    tokens, positions = reader_input.tokens[None], reader_input.positions[None]
    return np.asarray(lm.logits(tokens, positions=positions)[0, reader_input.compared])


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _queries_keys(
    params: Params, tokens: Any, tables: Tables, *, config: LlamaConfig, mesh: Mesh
) -> list[Any]:
    """Rotated queries and keys [batch, tokens, heads, head_dim] of the first layer."""
    model = bind(config, mesh.reshard_embedding(params))
    layer = jax.tree.map(lambda leaf: leaf[0], model.segments["0"])
    x = layer.input_layernorm(model.embed_tokens(tokens, "float32"))
    q, k, _ = layer.self_attn.queries_keys_values(x, None)
    rotated = config.layers.rotation(model.kinds[0])
    return [rotated(q, tables), rotated(k, tables)]


def _larger_errors(pair: Any, other: Any) -> np.ndarray:
    return np.maximum(*(errors(a, b) for a, b in zip(pair, other, strict=True)))


def errors(a: Any, b: Any) -> np.ndarray:
    """The largest difference in each row.

    Raises ValueError for NaN, which would pass every comparison.
    """
    largest = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(-1)
    if not np.isfinite(largest).all():
        raise ValueError(
            "a reader of the export gave values that are not finite; its weights or scaling are "
            "broken"
        )
    return largest
