"""A model with the interface of lm-evaluation-harness.

Encoding, truncation and windows are those of its Hugging Face backend.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxext.evals.base import batches
from ctxext.model.lm import LM
from ctxext.model.padding import bucket
from ctxext.plan.longest_text import check_length
from ctxext.progress_bar import CountedWork

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import (
        handle_stop_sequences,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise ValueError(
        "lm-evaluation-harness is not installed: pip install 'ctxext[lm-eval]'"
    ) from None

FIRST_CHECK = 32
"""Tokens generated before the first check for stop strings; each later one doubles them."""
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
NEUTRAL = {"num_beams": (1,), "repetition_penalty": (1,), "top_k": (None, 0)}


@dataclass(frozen=True)
class Decoding:
    """A task's `generation_kwargs`. Raises ValueError for those that would be ignored here."""

    until: tuple[str, ...]
    max_gen_toks: int
    temperature: float
    top_p: float

    @classmethod
    def of(
        cls, generation_kwargs: dict[str, Any], max_gen_toks: int, eos: str | None
    ) -> "Decoding":
        """With the harness's own defaults: greedy unless `do_sample` or a temperature is set.

        The end of text is a stop string too.
        """
        options: dict[str, Any] = {**normalize_gen_kwargs(generation_kwargs, max_gen_toks)}
        sample = options["do_sample"]
        for name in options.keys() - KNOWN:
            if options[name] not in NEUTRAL.get(name, ()) and not (name == "top_k" and not sample):
                raise ValueError(
                    f"generation_kwargs: {name} is not supported here; known: "
                    f"{', '.join(sorted(KNOWN))}"
                )
        temperature = float(options.get("temperature", 0.0)) if sample else 0.0
        if sample and not temperature > 0:
            raise ValueError("generation_kwargs: do_sample needs a temperature above 0")
        until = handle_stop_sequences(options["until"], eos)
        return cls(
            tuple(filter(None, until)),
            options["max_gen_toks"],
            temperature,
            float(options.get("top_p", 1.0)),
        )


class HarnessLM(TemplateLM):
    """Log-likelihoods, and greedy or sampled text, for `lm_eval.simple_evaluate`.

    `max_length` in tokens: by default the window of pre-training, also for a model that was
    extended since, so that base and extension see the same prompts. Longer contexts lose their
    beginning; longer texts are read in windows (rolling). About `batch_tokens` tokens go through
    the model together. `seed`: for sampled text. `name`: of the model, for its progress.
    """

    def __init__(
        self,
        lm: LM,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_tokens: int = 16_384,
        seed: int = 0,
        name: str = "harness",
    ) -> None:
        super().__init__()
        self.max_length = max_length or lm.config.max_position_embeddings
        self._lm = lm
        self._tokenizer = lm.tokenizer
        self._max_gen_toks = max_gen_toks
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._name = name
        eos_id = lm.tokenizer.eos_id
        self._eos = None if eos_id is None else lm.tokenizer.id_to_token(eos_id)

    @property
    def eot_token_id(self) -> int:
        """The end of text. Raises ValueError if the tokenizer has none."""
        if self._tokenizer.eos_id is None:
            raise ValueError(
                "this tokenizer has no end-of-sequence token; name its eos_token in "
                "tokenizer_config.json"
            )
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without context: beginning of sequence, or else end of text."""
        return self.eot_token_id if self._tokenizer.bos_id is None else self._tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Ids of a text, after one beginning-of-sequence id if the tokenizer adds it.

        Never after two; after none if `add_special_tokens` is False.
        """
        if add_special_tokens is None:
            return self._tokenizer.encode_prompt(string)
        return self._tokenizer.encode(string, bos=self._tokenizer.adds_bos and add_special_tokens)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in nats.

        Every token counts once, in windows of `max_length` tokens that overlap as little as
        possible.
        """
        texts = [request.args[0] for request in requests]
        windows = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    self.tok_encode(text), self.prefix_token_id, self.max_length, 1
                )
            ]
            for text in texts
        ]
        answers = iter(
            self._loglikelihood_tokens(list(itertools.chain(*windows)), disable_tqdm=disable_tqdm)
        )
        totals = [sum(next(answers)[0] for _ in own) for own in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding would write it) of each continuation.

        A request is (key, context, continuation), the latter two as token ids.
        """
        for _, _, continuation in requests:
            if not 1 <= len(continuation) <= self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens cannot be scored in a window of "
                    f"{self.max_length}; give a larger --max-length, or check the task"
                )
        rows = [
            np.array(context + rest, np.int32)[-self.max_length - 1 :]
            for _, context, rest in requests
        ]
        answers: dict[int, tuple[float, bool]] = {}
        with self._progress("log-likelihoods", len(rows), disable_tqdm) as done:
            for batch in self._batches([len(row) - 1 for row in rows], bucket):
                longest = max(len(rows[i]) for i in batch)
                scores = self._lm.scores(
                    np.stack([np.pad(rows[i], (0, longest - len(rows[i]))) for i in batch])
                )
                for i, row in zip(batch, scores, strict=True):
                    key, _, continuation = requests[i]
                    end = len(rows[i]) - 1
                    nll, margin = row[end - len(continuation) : end].T
                    answers[i] = -float(nll.sum(dtype=np.float64)), bool((margin == 0).all())
                    if key is not None:
                        self.cache_hook.add_partial("loglikelihood", key, answers[i])
                done.advance(len(batch))
        return [answers[i] for i in range(len(rows))]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to the first stop string or end of text, exclusive.

        Raises ValueError, before any is written, for one whose keys and values no memory holds.
        """
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        decodings = [
            Decoding.of(requests[group[0]].args[1], self._max_gen_toks, self._eos)
            for group in groups.values()
        ]
        prompts = [
            [self._prompt(requests[i].args[0], decoding) for i in group]
            for group, decoding in zip(groups.values(), decodings, strict=True)
        ]
        lengths = [
            len(prompt) + decoding.max_gen_toks
            for own, decoding in zip(prompts, decodings, strict=True)
            for prompt in own
        ]
        check_length(
            self._lm.config,
            max(lengths, default=0),
            dtype=self._lm.dtype,
            mesh=self._lm.mesh,
            is_written=True,  # of all layers; a text that is scored is held a layer at a time
            option="--max-length",
        )
        texts: dict[int, str] = {}
        with self._progress("answers", len(requests), disable_tqdm) as done:
            for number, group in enumerate(groups.values()):
                for index, text in self._generate(prompts[number], decodings[number], number):
                    texts[group[index]] = text
                    self.cache_hook.add_partial("generate_until", requests[group[index]].args, text)
                    done.advance()
        return [texts[i] for i in range(len(requests))]

    def _progress(self, kind: str, total: int, disable: bool) -> CountedWork:
        return CountedWork(f"{self._name}, {kind}", total, "requests", enabled=not disable)

    def _prompt(self, context: str, decoding: Decoding) -> list[int]:
        """The last tokens of a context that leave space for the answer."""
        longest = self.max_length - decoding.max_gen_toks
        if longest < 1:
            raise ValueError(
                f"max_gen_toks {decoding.max_gen_toks} leaves no space for a prompt in a window of "
                f"{self.max_length} tokens; give a larger --max-length"
            )
        tokens = self.tok_encode(context)[-longest:]
        return tokens or [self.prefix_token_id]

    def _generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, number: int
    ) -> Iterator[tuple[int, str]]:
        """(index, text) of every prompt as it is finished.

        Stop strings are looked for after 32 tokens, then after twice as many, and so on, so that at
        most twice as many tokens are generated as are needed.
        """
        new: list[list[int]] = [[] for _ in prompts]
        unfinished = list(range(len(prompts)))
        written = 0
        while unfinished:
            step = min(max(FIRST_CHECK, written), decoding.max_gen_toks - written)
            if self._lm.depends_on_length:
                # Reading again what was written would give it the frequencies of a longer prompt.
                step = decoding.max_gen_toks
            waiting = [prompts[i] + new[i] for i in unfinished]
            for part, batch in enumerate(
                self._batches([len(row) + step for row in waiting], _octave)
            ):
                entropy = np.random.SeedSequence((self._seed, number, written, part))
                seed = entropy.generate_state(1)[0]
                out = self._lm.generate(
                    [waiting[i] for i in batch],
                    max_new_tokens=step,
                    temperature=decoding.temperature,
                    top_p=decoding.top_p,
                    seed=int(seed),
                    eos_token_id=self._lm.stop_ids or None,
                )
                for i, ids in zip(batch, out.tolist(), strict=True):
                    new[unfinished[i]] += ids
            written += step
            left = []
            for i in unfinished:
                ids = list(
                    itertools.takewhile(lambda token: token not in self._lm.stop_ids, new[i])
                )
                text = self._tokenizer.decode(ids)
                if (
                    len(ids) < len(new[i])
                    or written >= decoding.max_gen_toks
                    or any(stop in text for stop in decoding.until)
                ):
                    yield i, postprocess_generated_text(text, list(decoding.until), None)
                else:
                    left.append(i)
            unfinished = left

    def _batches(self, lengths: Sequence[int], padded: Callable[[int], int]) -> Iterator[list[int]]:
        """Indices of rows in batches, the longest first.

        A batch has one `padded` length, so that few are compiled; exactly one length where the
        frequencies follow it, because those of a row must not depend on its neighbours.
        """

        def size(i: int) -> int:
            return lengths[i] if self._lm.depends_on_length else padded(lengths[i])

        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        for length, group in itertools.groupby(order, size):
            yield from batches(list(group), max(1, self._batch_tokens // length))


def _octave(length: int) -> int:
    return 1 << (length - 1).bit_length()
