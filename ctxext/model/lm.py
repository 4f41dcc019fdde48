"""The Python door: a checkpoint, a tokenizer and a method, with `logits`, `loss` and `generate`."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.attention import KERNELS, Attention, Causal, Kernel
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import DTYPES, Params, bind
from ctxext.model.generation import GREEDY, Sampling, Semantics, ask, states
from ctxext.model.loss import token_losses, token_scores
from ctxext.model.padding import bucket as bucket
from ctxext.model.padding import pad
from ctxext.parallel.attention import make_sharded_attention, ring_order, token_order
from ctxext.parallel.distributed import gather
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.rope import (
    ANGLES,
    Angles,
    Float32Rotation,
    RopeScaling,
    Rotation,
    Unscaled,
    rotation_at,
)
from ctxext.tokenization.tokenizer import Tokenizer

STATIC = ("config", "attention", "kernel", "dtype", "mesh")


@functools.partial(jax.jit, static_argnames=STATIC)
def _logits(
    params: Params,
    tokens: Any,
    positions: Any,
    segment_ids: Any,
    rotation: Any,
    *,
    config: LlamaConfig,
    attention: Attention,
    kernel: Kernel,
    dtype: str,
    mesh: Mesh,
) -> jax.Array:
    model = bind(config, mesh.reshard_embedding(params))
    tokens, positions = ring_order(tokens, mesh), ring_order(positions, mesh)
    segment_ids = None if segment_ids is None else ring_order(segment_ids, mesh)
    attend = make_sharded_attention(mesh, attention, kernel, rotation, positions, segment_ids)
    return model.logits(token_order(model.hidden(tokens, attend, dtype=dtype)[0], mesh))


@functools.partial(jax.jit, static_argnames=(*STATIC, "measure"))
def _losses(
    params: Params,
    tokens: Any,
    targets: Any,
    rotation: Any,
    *,
    measure: Callable[..., jax.Array],
    config: LlamaConfig,
    attention: Attention,
    kernel: Kernel,
    dtype: str,
    mesh: Mesh,
) -> jax.Array:
    model = bind(config, mesh.reshard_embedding(params))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    tokens, positions, targets = (ring_order(x, mesh) for x in (tokens, positions, targets))
    attend = make_sharded_attention(mesh, attention, kernel, rotation, positions)
    hidden, _ = model.hidden(tokens, attend, dtype=dtype)
    return token_order(measure(hidden, model.output_kernel(), targets, mesh), mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class LM:
    """A model that one can ask. Lengths and batch sizes are padded to buckets inside, so few programs are compiled.

    `angles`: "exact", or "float32" to repeat transformers' rounding. Positions count from 0 in every row.
    """

    config: LlamaConfig
    params: Params
    tokenizer: Tokenizer
    _: dataclasses.KW_ONLY
    scaling: RopeScaling = Unscaled()
    attention: Attention = Causal()
    dtype: str = "float32"
    kernel: Kernel = "blocked"
    angles: Angles = "exact"
    mesh: Mesh = ONE_DEVICE

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("kernel", KERNELS), ("angles", ANGLES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is not known; choose one of {', '.join(known)}"
                )

    def with_method(self, *methods: RopeScaling | Attention) -> "LM":
        """The same weights under other methods. Raises ValueError for what is neither frequencies nor attention."""
        changes: dict[str, Any] = {}
        for method in methods:
            if isinstance(method, RopeScaling):
                changes["scaling"] = method
            elif isinstance(method, Attention):
                changes["attention"] = method
            else:
                raise ValueError(
                    f"{method!r} changes training only; give a RopeScaling or an Attention"
                )
        return dataclasses.replace(self, **changes)

    def rotation(self, seq_len: int) -> Rotation | Float32Rotation:
        """The method's frequencies for a context of `seq_len` tokens."""
        return rotation_at(self.scaling, self.config.rope_base(), seq_len, self.angles)

    def _static(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "attention": self.attention,
            "kernel": self.kernel,
            "dtype": self.dtype,
            "mesh": self.mesh,
        }

    def _rows(self, count: int) -> int:
        """The padded number of rows: a power of two times what the mesh shares them out over."""
        shards = self.mesh.row_shards
        return shards << (-(-count // shards) - 1).bit_length()

    def _length(self, length: int) -> int:
        """The padded length: its bucket, and for a ring two equal chunks for every device."""
        chunks = 2 * self.mesh.build().shape["seq"]
        return -(-bucket(length) // chunks) * chunks

    def padded(self, lengths: Sequence[int]) -> tuple[int, int]:
        """(rows, tokens): what rows of these lengths are padded to when they go through the model together."""
        return self._rows(len(lengths)), self._length(max(lengths))

    def logits(self, tokens: Any, *, positions: Any = None, segment_ids: Any = None) -> jax.Array:
        """Float32 [B, T, V] for tokens [B, T]; logits[t] predicts token t + 1."""
        tokens = self._checked(tokens)
        B, T = tokens.shape
        positions = np.broadcast_to(
            np.arange(T) if positions is None else positions, (B, T)
        ).astype(np.int32)
        rotation = self.rotation(int(positions.max()) + 1)
        rows, size = self._rows(B), self._length(T)
        inputs = [
            tokens,
            positions,
            *([] if segment_ids is None else [np.broadcast_to(segment_ids, (B, T))]),
        ]
        arrays = [self.mesh.rows(pad(x, rows, size)) for x in inputs] + [None] * (
            segment_ids is None
        )
        logits = _logits(self.params, *arrays, rotation, **self._static())[:B, :T]
        return logits if logits.is_fully_addressable else jnp.asarray(gather(logits))

    def loss(self, tokens: Any) -> np.ndarray:
        """Float32 [B, T-1], nats: -log p(token t + 1 | tokens up to t)."""
        return self._next(tokens, token_losses)

    def scores(self, tokens: Any) -> np.ndarray:
        """Float32 [B, T-1, 2]: the loss, and how far the best logit lies above token t + 1's (0: greedy takes it)."""
        return self._next(tokens, token_scores)

    def _next(self, tokens: Any, measure: Callable[..., jax.Array]) -> np.ndarray:
        tokens = self._checked(tokens)
        B, T = tokens.shape
        if T < 2:
            raise ValueError("a loss needs at least two tokens")
        rows, size = self._rows(B), self._length(T - 1)
        inputs, targets = (
            self.mesh.rows(pad(x, rows, size)) for x in (tokens[:, :-1], tokens[:, 1:])
        )
        found = _losses(
            self.params, inputs, targets, self.rotation(T), measure=measure, **self._static()
        )
        return gather(found)[:B, : T - 1]

    def generate(
        self,
        tokens: Any,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        eos_token_id: int | Sequence[int] | None = None,
        semantics: Semantics = "frozen",
    ) -> np.ndarray:
        """New tokens only, int32 [B, max_new_tokens]; rows may differ in length. After a stop id a row repeats it.

        `semantics` matters for length-dependent scalings alone, see `ctxext.model.generation`. Raises ValueError for an
        empty prompt or ids outside the vocabulary.
        """
        prompts = [self._checked(np.asarray(row)[None])[0] for row in tokens]
        if not prompts:
            raise ValueError("generate needs at least one prompt")
        if self.scaling.depends_on_length and len({len(row) for row in prompts}) > 1:
            # A row's frequencies must not depend on its neighbours; its noise must differ from theirs.
            seeds = np.random.SeedSequence(seed).generate_state(len(prompts))
            rows = [
                self.generate(
                    [row],
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    seed=int(seed),
                    eos_token_id=eos_token_id,
                    semantics=semantics,
                )
                for row, seed in zip(prompts, seeds, strict=True)
            ]
            return np.concatenate(rows)
        sampling = Sampling(temperature, top_p, seed)
        ((_, new, _),) = self._write(
            prompts, max_new_tokens, max_new_tokens, sampling, eos_token_id, semantics
        )
        return new[:, 0]

    def stream(
        self,
        tokens: Any,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        eos_token_id: int | Sequence[int] | None = None,
        semantics: Semantics = "frozen",
        chunk: int = 4,
    ) -> Iterator[list[int]]:
        """What `generate` writes behind the one prompt `tokens`, as it comes: one token, then `chunk` at a time.

        Ends behind a stop id. Raises ValueError as `generate` does, when the first token is asked for.
        """
        prompts, said = [self._checked(np.asarray(tokens)[None])[0]], 0
        sampling = Sampling(temperature, top_p, seed)
        for count, new, _ in self._write(
            prompts, max_new_tokens, chunk, sampling, eos_token_id, semantics
        ):
            yield new[0, 0, said:count].tolist()
            said = count

    def continuations(
        self,
        prompts: Any,
        prefixes: Sequence[Sequence[Any]],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [B, K, max_new_tokens] of K continuations of each prompt, and -log p of each, nats, float32.

        Continuation k of prompt b begins with the ids prefixes[b][k], which may be none, and goes on greedily; a prompt is read
        once for all of its continuations. A continuation that writes one of the ids `stop` repeats it. Raises ValueError as
        `generate` does, and for rows that have not equally many continuations.
        """
        prompts = [self._checked(np.asarray(row)[None])[0] for row in prompts]
        counts = {len(row) for row in prefixes}
        if len(prefixes) != len(prompts) or len(counts) != 1 or 0 in counts:
            raise ValueError("every prompt needs continuations, and all equally many")
        given = np.full((len(prompts), *counts, max_new_tokens), -1, np.int32)
        for row, continuations in zip(given, prefixes, strict=True):
            for continuation, ids in zip(row, continuations, strict=True):
                if len(ids):
                    continuation[: len(ids)] = self._checked(np.asarray(ids)[None])[0]
        if self.scaling.depends_on_length and len(set(map(len, prompts))) > 1:
            rows = [
                self.continuations([p], [b], max_new_tokens=max_new_tokens, stop=stop)
                for p, b in zip(prompts, prefixes, strict=True)
            ]
            return np.concatenate([tokens for tokens, _ in rows]), np.concatenate(
                [nats for _, nats in rows]
            )
        rotation = self.rotation(max(map(len, prompts)) + max_new_tokens)
        ((_, tokens, nats),) = self._decode(prompts, given, max_new_tokens, rotation, stop)
        return tokens, nats

    def _write(
        self,
        prompts: list[np.ndarray],
        steps: int,
        chunk: int,
        sampling: Sampling,
        eos_token_id: int | Sequence[int] | None,
        semantics: Semantics,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        if semantics not in ("frozen", "incremental"):
            raise ValueError(f"semantics must be 'frozen' or 'incremental', got {semantics!r}")
        if steps < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {steps}")
        longest = max(map(len, prompts))
        incremental = semantics == "incremental" and self.scaling.depends_on_length
        if incremental:
            rotations = [self.rotation(longest + step) for step in range(steps)]
            rotation = jax.tree.map(lambda *x: jnp.stack(x), *rotations)
        else:
            rotation = self.rotation(longest + steps)
        free = np.full((len(prompts), 1, steps), -1, np.int32)
        stop = () if eos_token_id is None else np.atleast_1d(eos_token_id)
        return self._decode(prompts, free, chunk, rotation, stop, sampling, incremental)

    def _decode(
        self,
        prompts: list[np.ndarray],
        given: np.ndarray,
        chunk: int,
        rotation: Any,
        stop: Any,
        sampling: Sampling = GREEDY,
        incremental: bool = False,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(how many, tokens [B, K, N], nats [B, K, N]) after one token and each `chunk` more; once if that is all."""
        count, steps = len(prompts), given.shape[-1]
        more = self._rows(count) - count  # copies, which stop when the original does
        prompts, given = (
            prompts + [prompts[-1]] * more,
            np.concatenate([given, np.repeat(given[-1:], more, 0)]),
        )
        padded, asked = ask(
            prompts,
            given,
            rotation,
            stop,
            sampling,
            size=bucket(max(map(len, prompts))),
            mesh=self.mesh,
        )
        options = {**self._static(), "sample": sampling.temperature > 0, "incremental": incremental}
        for state in states(self.params, padded, asked, steps, chunk, options):
            yield (
                int(state.step),
                gather(state.tokens)[:count, :, :steps],
                gather(state.nats)[:count, :, :steps],
            )

    def _checked(self, tokens: Any) -> np.ndarray:
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or not tokens.size:
            raise ValueError(
                f"tokens must be [batch, length] and not empty, got shape {tokens.shape}"
            )
        if tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens must be whole numbers, got {tokens.dtype}")
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise ValueError(
                f"token ids must lie in 0..{self.config.vocab_size - 1}, got "
                f"{tokens.min()}..{tokens.max()}; is this the model's tokenizer?"
            )
        return tokens.astype(np.int32)
