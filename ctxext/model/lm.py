"""LM, a model ready to use: a checkpoint, a tokenizer and a method."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctxext import progress
from ctxext.attention import KERNELS, Attention, Causal, Kernel
from ctxext.attention.cache import caches_rotated
from ctxext.attention.length import check_generation, rotation_for
from ctxext.model.config import LlamaConfig, merge_ids
from ctxext.model.context import DeclaredContext, described
from ctxext.model.decoder import COMPUTE_DTYPES, Params, bind
from ctxext.model.generation import (
    SEMANTICS,
    GenerationOptions,
    Sampling,
    Semantics,
    decode_states,
    forced,
    make_request,
    num_padding,
)
from ctxext.model.lora import materialize_merged, merge_layers
from ctxext.model.loss import token_losses, token_scores
from ctxext.model.padding import bucket, pad
from ctxext.model.quantized import has_quantized
from ctxext.model.reading import chunk_tokens, read_in_parts
from ctxext.model.setup import ModelSetup
from ctxext.model.shared_beginning import shared_beginning
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
)
from ctxext.tokenization.tokenizer import Tokenizer


class Decoded(NamedTuple):
    """Continuations so far: of `tokens` and `nll` [B, K, N], the first `count` are written."""

    count: int
    tokens: np.ndarray
    nll: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class LM:
    """A checkpoint with a tokenizer and a method, which gives logits and losses and generates.

    `params` of a run on a quantized base hold it quantized, with the adapters next to it; `merged`
    makes a plain float model of it. Lengths and batch sizes are padded to buckets inside, so that
    few programs are compiled. Positions count from 0 in every row. angles: "exact", or "float32" to
    repeat the rounding of transformers. semantics: how new tokens are written where the method
    follows the length, see `generation.SEMANTICS`. declared_context: what the checkpoint declares
    as it is, by default what `scaling` makes of the window of pre-training. Raises ValueError for
    an unknown dtype, kernel, `angles` or `semantics`.
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
    semantics: Semantics = "incremental"
    mesh: Mesh = ONE_DEVICE
    generation_config: Mapping[str, Any] | None = None
    """The contents of the checkpoint's generation_config.json, None if it has none."""
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What the checkpoint says of the model for people, such as a license, by its name."""
    declared_context: DeclaredContext | None = None
    """The context that the checkpoint declares; by default what `scaling` makes of the window."""

    def __post_init__(self) -> None:
        known = {
            "dtype": COMPUTE_DTYPES,
            "kernel": KERNELS,
            "angles": ANGLES,
            "semantics": SEMANTICS,
        }
        for name, choices in known.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"{name} {value!r} is not known; choose one of {', '.join(choices)}"
                )
        self.config.check_scaling(self.scaling)

    def __repr__(self) -> str:
        """Short: family, size, window and how it is run, without parameters."""
        method = [] if self.scaling == Unscaled() else [described(self.scaling)]
        method += [] if self.attention == Causal() else [type(self.attention).__name__]
        config = self.config
        size = f"{config.num_parameters:,} parameters"
        window = f"window {config.max_position_embeddings:,}"
        return f"LM({', '.join([config.family, size, window, *method, self.dtype])})"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: of config.json, generation_config.json and the tokenizer."""
        return merge_ids(
            self.config.eos_token_id,
            (self.generation_config or {}).get("eos_token_id"),
            self.tokenizer.eos_id,
        )

    @property
    def stop_ids_in_transformers(self) -> tuple[int, ...]:
        """The ids that end an answer there: of generation_config.json, or else of config.json."""
        if self.generation_config is None:
            return merge_ids(self.config.eos_token_id)
        return merge_ids(self.generation_config.get("eos_token_id"))

    @property
    def context(self) -> DeclaredContext:
        """The context that the checkpoint declares, whatever method the model runs with."""
        if self.declared_context is not None:
            return self.declared_context
        return DeclaredContext.of(self.config.max_position_embeddings, self.scaling)

    @property
    def base_scaling(self) -> RopeScaling:
        """The frequencies of the base as it is, which records call "none"."""
        return self.context.base

    def with_method(self, *methods: RopeScaling | Attention, allow_shorter: bool = False) -> "LM":
        """The same weights under other methods.

        `Unscaled` keeps the frequencies of the checkpoint as it is; plain RoPE is `Plain`. Raises
        ValueError for a method that is neither a RopeScaling nor an Attention and, unless
        `allow_shorter`, for a factor that gives less context than the checkpoint declares.
        """
        changes: dict[str, Any] = {"declared_context": self.context}
        for method in methods:
            if isinstance(method, RopeScaling):
                if not allow_shorter:
                    self.context.check(method)
                changes["scaling"] = self.context.resolve(method)
            elif isinstance(method, Attention):
                changes["attention"] = method
            else:
                raise ValueError(
                    f"{method!r} changes training only; give a RopeScaling or an Attention"
                )
        return dataclasses.replace(self, **changes)

    @property
    def is_quantized(self) -> bool:
        """Whether kernels are held in few bits, with the adapters trained on them unmerged."""
        return has_quantized(self.params)

    def merged(self) -> "LM":
        """The same model in float32: quantized kernels dequantized, adapters merged into them.

        It takes the memory of the whole float32 model. A model that is not quantized is returned
        as it is.
        """
        if not self.is_quantized:
            return self
        return dataclasses.replace(self, params=materialize_merged(merge_layers(self.params)))

    def rotation(self, seq_len: int) -> Rotation | Float32Rotation:
        """The method's frequencies for a context of `seq_len` tokens."""
        base = self.config.rope_base()
        return rotation_for(self.scaling, self.attention, base, seq_len, self.angles)

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies or the attention follow the length of the text."""
        return self.scaling.depends_on_length or self.attention.depends_on_length

    def padded(self, lengths: Sequence[int]) -> tuple[int, int]:
        """(rows, tokens) that rows of these lengths are padded to when the model runs them."""
        return self._padded_rows(len(lengths)), self._padded_length(max(lengths))

    def logits(self, tokens: Any, *, positions: Any = None, segment_ids: Any = None) -> jax.Array:
        """Float32 [B, T, V] for tokens [B, T]; logits[t] predicts token t + 1.

        Raises ValueError for tokens that are not [B, T] ids of the vocabulary.
        """
        tokens = self._checked(tokens)
        B, T = tokens.shape
        if positions is None:
            positions = np.arange(T)
        positions = np.broadcast_to(positions, (B, T)).astype(np.int32)
        rotation = self.rotation(int(positions.max()) + 1)

        def to_devices(x: np.ndarray) -> jax.Array:
            return self.mesh.rows(pad(x, self._padded_rows(B), self._padded_length(T)))

        if segment_ids is not None:
            segment_ids = to_devices(np.broadcast_to(segment_ids, (B, T)))
        logits = _logits(
            self.params,
            to_devices(tokens),
            to_devices(positions),
            segment_ids,
            rotation,
            setup=self._setup,
        )[:B, :T]
        return logits if logits.is_fully_addressable else jnp.asarray(gather(logits))

    def loss(self, tokens: Any) -> np.ndarray:
        """Float32 [B, T-1], nats: -log p(token t + 1 | tokens up to t).

        Raises ValueError as `logits` does, and for fewer than two tokens.
        """
        return self._next_token_values(tokens, token_losses)

    def scores(self, tokens: Any) -> np.ndarray:
        """Float32 [B, T-1, 2]: the loss, and the best logit minus that of token t + 1.

        The difference is 0 where greedy decoding picks token t + 1. Raises ValueError as `loss`.
        """
        return self._next_token_values(tokens, token_scores)

    def generate(
        self,
        tokens: Any,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        eos_token_id: int | Sequence[int] | None = None,
        semantics: Semantics | None = None,
    ) -> np.ndarray:
        """New tokens only, int32 [B, max_new_tokens]; rows may differ in length.

        After a stop id a row repeats it. A smaller `max_new_tokens` gives the beginning of the same
        text. `semantics`: in place of the model's own. Raises ValueError for an empty prompt or ids
        outside the vocabulary.
        """
        prompts = [self._checked(np.asarray(row)[None])[0] for row in tokens]
        if not prompts:
            raise ValueError("generate needs at least one prompt")
        sampling = Sampling(temperature, top_p, seed)
        options = GenerationOptions(max_new_tokens, sampling, _stop_ids(eos_token_id), semantics)
        if not self._must_be_decoded_separately(prompts):
            (decoded,) = self._decode(prompts, options)
            return decoded.tokens[:, 0]
        # Each row samples with its own seed, so that equal rows do not get equal noise.
        seeds = np.random.SeedSequence(seed).generate_state(len(prompts))
        rows = []
        for prompt, row_seed in zip(prompts, seeds, strict=True):
            sampling = Sampling(temperature, top_p, int(row_seed))
            (decoded,) = self._decode([prompt], dataclasses.replace(options, sampling=sampling))
            rows.append(decoded.tokens[:, 0])
        return np.concatenate(rows)

    def stream(
        self,
        tokens: Any,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        eos_token_id: int | Sequence[int] | None = None,
        semantics: Semantics | None = None,
        chunk: int = 4,
    ) -> Iterator[list[int]]:
        """Yield what `generate` writes after the one prompt `tokens`: one token, then `chunk` each.

        Ends after a stop id. Raises ValueError as `generate` does, when the first token is asked
        for.
        """
        prompt = self._checked(np.asarray(tokens)[None])[0]
        sampling = Sampling(temperature, top_p, seed)
        options = GenerationOptions(max_new_tokens, sampling, _stop_ids(eos_token_id), semantics)
        yielded = 0
        for decoded in self._decode([prompt], options, chunk=chunk):
            yield decoded.tokens[0, 0, yielded : decoded.count].tolist()
            yielded = decoded.count

    def continuations(
        self,
        prompts: Any,
        prefixes: Sequence[Sequence[Any]],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, -log p) of K continuations of each prompt, both [B, K, max_new_tokens].

        Continuation k of prompt b begins with the ids prefixes[b][k], which may be empty, and
        continues greedily; a prompt is read once for all of its continuations. A continuation that
        writes one of the ids `stop` repeats it. Tokens are int32, -log p is float32, nats. Raises
        ValueError as `generate` does, and unless all prompts have equally many continuations.
        """
        prompts = [self._checked(np.asarray(row)[None])[0] for row in prompts]
        counts = {len(row) for row in prefixes}
        if len(prefixes) != len(prompts) or len(counts) != 1 or 0 in counts:
            raise ValueError("every prompt needs continuations, and all the same number of them")
        if self._must_be_decoded_separately(prompts):
            rows = []
            for number, (prompt, row) in enumerate(zip(prompts, prefixes, strict=True)):
                with progress.as_part(number, len(prompts)):
                    rows.append(
                        self.continuations(
                            [prompt], [row], max_new_tokens=max_new_tokens, stop=stop
                        )
                    )
            tokens, nll = zip(*rows, strict=True)
            return np.concatenate(tokens), np.concatenate(nll)
        for row in prefixes:
            for ids in row:
                if len(ids):
                    self._checked(np.asarray(ids)[None])
        forced_tokens = forced(prefixes, max_new_tokens)
        options = GenerationOptions(max_new_tokens, stop_ids=tuple(stop))
        (decoded,) = self._decode(prompts, options, forced_tokens=forced_tokens)
        return decoded.tokens, decoded.nll

    def _must_be_decoded_separately(self, prompts: Sequence[np.ndarray]) -> bool:
        """True where a row's frequencies would depend on the length of its neighbours."""
        return self.depends_on_length and len(set(map(len, prompts))) > 1

    def _decoding_rotations(
        self, length: int, steps: int, semantics: Semantics
    ) -> tuple[Semantics, Any]:
        """The semantics that decoding follows, and its frequencies, see `DecodeRequest`.

        `length`: of the longest prompt, tokens. Raises ValueError for attention that transformers
        does not have, with its semantics.
        """
        if not self.depends_on_length or semantics == "frozen":
            return "frozen", self.rotation(length)
        rotated = caches_rotated(self.attention, re_rotated=False)
        if semantics == "transformers" and (self.attention.depends_on_length or not rotated):
            raise ValueError(
                f"transformers has no {type(self.attention).__name__} attention; choose the "
                "semantics incremental or frozen"
            )
        rotations = [self.rotation(length + step) for step in range(steps)]
        rotations += rotations[-1:] * num_padding(steps)
        return semantics, jax.tree.map(lambda *x: np.stack(x), *rotations)

    def _decode(
        self,
        prompts: list[np.ndarray],
        options: GenerationOptions,
        *,
        forced_tokens: np.ndarray | None = None,
        chunk: int | None = None,
    ) -> Iterator[Decoded]:
        """Yield after one token and after each `chunk` more; only the end if `chunk` is None.

        forced_tokens: [B, K, N], -1 where the model chooses; by default one free continuation each.
        """
        check_generation(self.attention)
        count = len(prompts)
        longest = max(map(len, prompts))
        steps = options.max_new_tokens
        if forced_tokens is None:
            forced_tokens = np.full((count, 1, steps), -1, np.int32)
        semantics, rotations = self._decoding_rotations(
            longest, steps, options.semantics or self.semantics
        )
        # Rows are padded with copies of the last one, which stop when it does.
        copies = self._padded_rows(count) - count
        forced_tokens = np.concatenate([forced_tokens, np.repeat(forced_tokens[-1:], copies, 0)])
        tokens, request = make_request(
            prompts + [prompts[-1]] * copies,
            forced_tokens,
            rotations,
            options.stop_ids,
            options.sampling,
            size=bucket(longest),
            mesh=self.mesh,
        )
        states = decode_states(
            self.params,
            tokens,
            request,
            self._setup,
            longest=longest,
            steps=steps,
            chunk=chunk,
            sample=options.sampling.temperature > 0,
            semantics=semantics,
            shared=shared_beginning(forced_tokens),
        )
        for state in states:
            yield Decoded(
                int(state.step),
                gather(state.tokens)[:count, :, :steps],
                gather(state.nll)[:count, :, :steps],
            )

    def _next_token_values(self, tokens: Any, measure: Callable[..., jax.Array]) -> np.ndarray:
        """`measure` of each token's prediction of the next, [B, T-1, ...]."""
        tokens = self._checked(tokens)
        B, T = tokens.shape
        if T < 2:
            raise ValueError("a loss needs at least two tokens")
        rows, size = self._padded_rows(B), self._padded_length(T - 1)
        inputs = self.mesh.rows(pad(tokens[:, :-1], rows, size))
        targets = self.mesh.rows(pad(tokens[:, 1:], rows, size))
        rotation = self.rotation(T)
        setup = self._setup
        if chunk := chunk_tokens(setup, rows, size):
            values = read_in_parts(
                self.params,
                inputs,
                targets,
                rotation,
                longest=T - 1,
                chunk=chunk,
                measure=measure,
                setup=setup,
            )
            return values[:B, : T - 1]
        values = _next_token_values(
            self.params, inputs, targets, rotation, measure=measure, setup=setup
        )
        return gather(values)[:B, : T - 1]

    @property
    def _setup(self) -> ModelSetup:
        return ModelSetup(self.config, self.attention, self.kernel, self.dtype, self.mesh)

    def _padded_rows(self, count: int) -> int:
        """The padded number of rows: a power of two times what the mesh divides them among."""
        shards = self.mesh.row_shards
        return shards << (-(-count // shards) - 1).bit_length()

    def _padded_length(self, length: int) -> int:
        """The padded length: its bucket, and for a ring two equal chunks for every device."""
        chunks = 2 * self.mesh.build().shape["seq"]
        return -(-bucket(length) // chunks) * chunks

    def _checked(self, tokens: Any) -> np.ndarray:
        """The tokens as int32 [B, T]; raises ValueError if they are not token ids."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or not tokens.size:
            raise ValueError(
                f"tokens must be [batch, length] and not empty, got shape {tokens.shape}"
            )
        if tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens must be whole numbers, got {tokens.dtype}")
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise ValueError(
                f"token ids must be in 0..{self.config.vocab_size - 1}, got "
                f"{tokens.min()}..{tokens.max()}; is this the model's tokenizer?"
            )
        return tokens.astype(np.int32)


def _stop_ids(eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]:
    return () if eos_token_id is None else tuple(np.atleast_1d(eos_token_id).tolist())


@functools.partial(jax.jit, static_argnames="setup")
def _logits(
    params: Params,
    tokens: Any,
    positions: Any,
    segment_ids: Any,
    rotation: Any,
    *,
    setup: ModelSetup,
) -> jax.Array:
    mesh = setup.mesh
    model = bind(setup.config, mesh.reshard_embedding(params))
    tokens = ring_order(tokens, mesh)
    positions = ring_order(positions, mesh)
    segment_ids = None if segment_ids is None else ring_order(segment_ids, mesh)
    attend = make_sharded_attention(
        mesh,
        setup.attention,
        setup.kernel,
        rotation,
        positions,
        segment_ids,
        layers=setup.config.layers,
    )
    hidden, _ = model.hidden(tokens, attend, dtype=setup.dtype)
    return model.logits(token_order(hidden, mesh))


@functools.partial(jax.jit, static_argnames=("setup", "measure"))
def _next_token_values(
    params: Params,
    tokens: Any,
    targets: Any,
    rotation: Any,
    *,
    measure: Callable[..., jax.Array],
    setup: ModelSetup,
) -> jax.Array:
    mesh = setup.mesh
    model = bind(setup.config, mesh.reshard_embedding(params))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    tokens, positions, targets = (ring_order(x, mesh) for x in (tokens, positions, targets))
    attend = make_sharded_attention(
        mesh, setup.attention, setup.kernel, rotation, positions, layers=setup.config.layers
    )
    hidden, _ = model.hidden(tokens, attend, dtype=setup.dtype)
    return token_order(measure(hidden, model.output_kernel(), targets, mesh), mesh)
