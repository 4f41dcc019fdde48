"""A model as lm-evaluation-harness asks one; encoding, truncation and windows are those of its Hugging Face backend."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxext.evals.base import batches
from ctxext.model.lm import LM
from ctxext.model.padding import bucket

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import (
        handle_stop_sequences,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError:
    raise ValueError(
        "lm-evaluation-harness is not installed: pip install 'ctxext[lm-eval]'"
    ) from None

FIRST = 32  # tokens written before one looks for stop strings; each later look comes after as many as there are
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
    def of(cls, given: dict[str, Any], max_gen_toks: int, eos: str | None) -> "Decoding":
        """With the harness's own defaults: greedy unless `do_sample` or a temperature; the end of text stops too."""
        options: dict[str, Any] = {**normalize_gen_kwargs(given, max_gen_toks)}
        sample = options["do_sample"]
        for name in options.keys() - KNOWN:
            if options[name] not in NEUTRAL.get(name, ()) and not (name == "top_k" and not sample):
                raise ValueError(
                    f"generation_kwargs: {name} is not supported here; known: {', '.join(sorted(KNOWN))}"
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
    """log p of continuations and of whole texts, and greedy or sampled text, for `lm_eval.simple_evaluate`.

    `max_length`, tokens: by default the window of pre-training, also for a model that was extended since, so that base
    and extension see the same prompts; what is longer loses its beginning, or is read in windows (rolling). About
    `batch_tokens` tokens go through the model together. `seed`: of sampled text.
    """

    def __init__(
        self,
        lm: LM,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_tokens: int = 16_384,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.max_length = max_length or lm.config.max_position_embeddings
        self._lm, self._tokenizer = lm, lm.tokenizer
        self._max_gen_toks, self._batch_tokens, self._seed = max_gen_toks, batch_tokens, seed
        bos, eos = (
            None if i is None else lm.tokenizer.id_to_token(i)
            for i in (lm.tokenizer.bos_id, lm.tokenizer.eos_id)
        )
        self._bos, self._eos = bos, eos
        stops = np.atleast_1d(
            [] if lm.config.eos_token_id is None else lm.config.eos_token_id
        ).tolist()
        self._stops = sorted({int(i) for i in [*stops, lm.tokenizer.eos_id] if i is not None})

    @property
    def eot_token_id(self) -> int:
        """The end of text. Raises ValueError if the tokenizer has none."""
        if self._tokenizer.eos_id is None:
            raise ValueError(
                "this tokenizer has no end-of-sequence token; name its eos_token in tokenizer_config.json"
            )
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the beginning of sequence, or else the end of text."""
        return self.eot_token_id if self._tokenizer.bos_id is None else self._tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Ids behind a beginning-of-sequence id if the tokenizer adds one, never two; none for False."""
        if add_special_tokens is None and self._bos and string.startswith(self._bos):
            return self._tokenizer.encode(string.removeprefix(self._bos), bos=True)
        return self._tokenizer.encode(
            string, bos=self._tokenizer.adds_bos and add_special_tokens is not False
        )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, nats; every token once, in windows of `max_length` that do not overlap if they can."""
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
        """(log p of the continuation, nats; whether greedy decoding would write it) of (key, context, continuation)."""
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
        with tqdm(
            total=len(rows), desc="Running loglikelihood requests", disable=disable_tqdm
        ) as bar:
            for batch in self._batches([len(row) - 1 for row in rows], bucket):
                longest = max(len(rows[i]) for i in batch)
                scores = self._lm.scores(
                    np.stack([np.pad(rows[i], (0, longest - len(rows[i]))) for i in batch])
                )
                for i, row in zip(batch, scores, strict=True):
                    end, (key, _, continuation) = len(rows[i]) - 1, requests[i]
                    nats, behind = row[end - len(continuation) : end].T
                    answers[i] = -float(nats.sum(dtype=np.float64)), bool((behind == 0).all())
                    if key is not None:
                        self.cache_hook.add_partial("loglikelihood", key, answers[i])
                bar.update(len(batch))
        return [answers[i] for i in range(len(rows))]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written after each context, up to and without the first stop string or the end of text."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        texts: dict[int, str] = {}
        with tqdm(
            total=len(requests), desc="Running generate_until requests", disable=disable_tqdm
        ) as bar:
            for number, group in enumerate(groups.values()):
                how = Decoding.of(requests[group[0]].args[1], self._max_gen_toks, self._eos)
                prompts = [self._prompt(requests[i].args[0], how) for i in group]
                for at, text in self._write(prompts, how, number):
                    texts[group[at]] = text
                    self.cache_hook.add_partial("generate_until", requests[group[at]].args, text)
                    bar.update()
        return [texts[i] for i in range(len(requests))]

    def _prompt(self, context: str, how: Decoding) -> list[int]:
        """The last tokens of a context that leave room for the answer."""
        room = self.max_length - how.max_gen_toks
        if room < 1:
            raise ValueError(
                f"max_gen_toks {how.max_gen_toks} leaves no room for a prompt in a window of "
                f"{self.max_length} tokens; give a larger --max-length"
            )
        tokens = self.tok_encode(context)[-room:]
        return tokens or [self.prefix_token_id]

    def _write(
        self, prompts: Sequence[list[int]], how: Decoding, number: int
    ) -> Iterator[tuple[int, str]]:
        """(index, text) of every prompt as it is finished.

        The second look comes after twice as many tokens, and so on: at most twice of what was needed is written.
        """
        new: list[list[int]] = [[] for _ in prompts]
        unfinished, written = list(range(len(prompts))), 0
        while unfinished:
            step = min(max(FIRST, written), how.max_gen_toks - written)
            if (
                self._lm.scaling.depends_on_length
            ):  # frequencies are those of the length that is announced
                step = how.max_gen_toks
            waiting = [prompts[i] + new[i] for i in unfinished]
            for part, batch in enumerate(
                self._batches([len(row) + step for row in waiting], _octave)
            ):
                seed = np.random.SeedSequence((self._seed, number, written, part)).generate_state(
                    1
                )[0]
                out = self._lm.generate(
                    [waiting[i] for i in batch],
                    max_new_tokens=step,
                    temperature=how.temperature,
                    top_p=how.top_p,
                    seed=int(seed),
                    eos_token_id=self._stops or None,
                )
                for i, ids in zip(batch, out.tolist(), strict=True):
                    new[unfinished[i]] += ids
            written += step
            left = []
            for i in unfinished:
                ids = list(itertools.takewhile(lambda token: token not in self._stops, new[i]))
                text = self._tokenizer.decode(ids)
                if (
                    len(ids) < len(new[i])
                    or written >= how.max_gen_toks
                    or any(stop in text for stop in how.until)
                ):
                    yield i, postprocess_generated_text(text, list(how.until), None)
                else:
                    left.append(i)
            unfinished = left

    def _batches(self, lengths: Sequence[int], padded: Callable[[int], int]) -> Iterator[list[int]]:
        """Indices of rows that go together, the longest first: of one `padded` length, so that few are compiled.

        Of exactly one length where the frequencies follow it: a row's must not depend on its neighbours.
        """

        def size(i: int) -> int:
            return lengths[i] if self._lm.scaling.depends_on_length else padded(lengths[i])

        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        for length, group in itertools.groupby(order, size):
            yield from batches(list(group), max(1, self._batch_tokens // length))


def _octave(length: int) -> int:
    return 1 << (length - 1).bit_length()
