"""Complete a prompt or chat, printing text as soon as no later token can change it."""

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.attention import Causal
from ctxext.data.documents import COMPRESSIONS, plain_text
from ctxext.model.lm import LM
from ctxext.plan.longest_text import check_length
from ctxext.terminal import printable_line, write_model_text
from ctxext.tokenization.chat import Chat, chat_of
from ctxext.tokenization.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Decoders write this for bytes that are not a character, or not yet one."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """The generated text; `ids` are its tokens without the stop token."""

    text: str
    ids: list[int]
    stop: str
    """ "eos" or "length"."""
    prompt_tokens: int
    seconds: float
    tokens_per_second: float | None
    """Speed of decoding, see `_speed`; None where too few tokens were written to tell."""

    @property
    def data(self) -> dict[str, Any]:
        """The completion as JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, eq=False)
class TextGenerator:
    """A model with its sampling options; prints what it generates, unless `quiet`."""

    lm: LM
    stop_ids: Sequence[int]
    _: dataclasses.KW_ONLY
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    parse_special: bool = False
    """Whether special tokens that are written out in a prompt are those tokens."""
    quiet: bool = False

    def complete(self, prompt: str) -> Completion:
        """Continue `prompt` up to a stop token. Raises ValueError as `LM.generate` does."""
        tokenizer = self.lm.tokenizer
        bos = tokenizer.special_tokens.get("bos_token")
        if bos is not None and prompt.startswith(bos):
            _note(f"the prompt begins with {bos}, taken for the token BOS; no second one is added")
        literals = [] if self.parse_special else self._literals(prompt)
        if literals:
            _note(f"{' '.join(literals)} in the prompt is text; --parse-special makes it the token")
        return self._generate(tokenizer.encode_prompt(prompt, special=self.parse_special))

    def _say_if_too_long(self, num_tokens: int) -> None:
        """Print a line about a prompt that is longer than the model can be expected to use."""
        lm = self.lm
        if lm.scaling.depends_on_length or lm.attention != Causal():
            return
        original = lm.config.max_position_embeddings
        window = lm.context.export_length(lm.scaling, original)
        total = num_tokens + self.max_new_tokens
        if total > window:
            extend = f"extend the context, as with --method yarn --factor {-(-total // original)}"
            if num_tokens > window:
                subject = f"the prompt has {num_tokens:,} tokens"
                advice = f"what follows is unreliable; shorten the prompt, or {extend}"
            else:
                subject = f"the prompt and {self.max_new_tokens:,} new tokens are {total:,}"
                advice = f"what is beyond it is unreliable; ask for fewer, or {extend}"
            _note(f"{subject}, and the context of the model is {window:,}: {advice}")

    def _literals(self, prompt: str) -> list[str]:
        """The special tokens that a prompt spells, besides the BOS that it begins with."""
        tokenizer = self.lm.tokenizer
        bos = tokenizer.special_tokens.get("bos_token", "")
        return tokenizer.special_literals(prompt.removeprefix(bos))

    def chat(
        self, questions: Iterable[str], system: str | None = None, chat: Chat | None = None
    ) -> Completion:
        """Answer each question with the whole conversation as context; returns the last answer.

        chat: how messages are written; None: by the checkpoint's own template. Raises ValueError
        for a missing or wrong chat template, and if there is no question.
        """
        chat = chat or chat_of(self.lm.tokenizer)
        messages = [] if system is None else [{"role": "system", "content": system}]
        answer = None
        for question in questions:
            messages.append({"role": "user", "content": question})
            answer = self._generate(chat.encode(messages), strip_leading=True)
            messages.append({"role": "assistant", "content": answer.text})
        if answer is None:
            raise ValueError("the chat has no question")
        return answer

    def _generate(self, prompt: Sequence[int], *, strip_leading: bool = False) -> Completion:
        """strip_leading: leave out white space before the first word."""
        check_length(
            self.lm.config,
            len(prompt) + self.max_new_tokens,
            dtype=self.lm.dtype,
            mesh=self.lm.mesh,
            is_written=True,
            option=f"--max-new-tokens {self.max_new_tokens}",
        )
        self._say_if_too_long(len(prompt))
        start = time.perf_counter()
        ids: list[int] = []
        ends: list[ChunkEnd] = []

        def chunks() -> Iterator[list[int]]:
            for chunk in self.lm.stream(
                prompt,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=self.seed,
                eos_token_id=self.stop_ids,
            ):
                ids.extend(chunk)
                ends.append(ChunkEnd(time.perf_counter(), len(ids)))
                yield [token for token in chunk if token not in self.stop_ids]

        texts: list[str] = []
        for text in decode_stream(self.lm.tokenizer, prompt, chunks()):
            if strip_leading and not texts:
                text = text.lstrip()
            if text:
                texts.append(text)
                self._print(text)
        self._print("\n")
        stopped = ids[-1] in self.stop_ids
        return Completion(
            text="".join(texts),
            ids=ids[:-1] if stopped else ids,
            stop="eos" if stopped else "length",
            prompt_tokens=len(prompt),
            seconds=time.perf_counter() - start,
            tokens_per_second=_speed(ends),
        )

    def _print(self, text: str) -> None:
        if not self.quiet:
            write_model_text(text)


class ChunkEnd(NamedTuple):
    """When a chunk was there, and how many tokens were there with it."""

    time: float
    num_tokens: int


def _speed(ends: Sequence[ChunkEnd]) -> float | None:
    """Tokens per second of decoding; None where too few chunks were written to tell.

    The first chunk ends the prefill and the second one may compile, so that neither is counted.
    """
    if len(ends) < 3:
        return None
    first, last = ends[1], ends[-1]
    return (last.num_tokens - first.num_tokens) / (last.time - first.time)


def _note(text: str) -> None:
    print(f"ctxext: {text}", file=sys.stderr)


def stop_note(lm: LM) -> str:
    """A sentence about the tokens that end an answer; empty if transformers stops at the same."""
    others = lm.stop_ids_in_transformers
    if others == lm.stop_ids:
        return ""
    vocabulary = lm.tokenizer.vocabulary

    def named(ids: Sequence[int]) -> str:
        return ", ".join(f"{vocabulary.get(token, 'no token')} ({token})" for token in ids)

    only = f"at {named(others)} only" if others else "at none"
    return printable_line(f"stops at {named(lm.stop_ids)}; transformers would stop {only}")


def decode_stream(
    tokenizer: Tokenizer, prompt: Sequence[int], chunks: Iterable[Sequence[int]]
) -> Iterator[str]:
    """The text of chunks of ids after `prompt`, in parts that no later id changes.

    Joined, the parts are what the decoded whole has after the decoded prompt, leading space
    included, without a character that the last id leaves unfinished.
    """
    context = list(prompt)
    new: list[int] = []
    printed = tokenizer.decode(context)
    for chunk in chunks:
        new = [*new, *chunk]
        text = tokenizer.decode(context + new)
        complete = text.rstrip(REPLACEMENT)
        if len(complete) > len(printed):
            yield complete[len(printed) :]
            printed = complete
        new_text = tokenizer.decode(new) if complete == text else ""
        if new_text:  # what came before `new` no longer changes how later ids decode
            context = new
            new = []
            printed = new_text


def read_prompt(text: str | None, file: str | None) -> str:
    """The text itself, or the content of a file, "-" for standard input.

    Raises ValueError if neither is given, or it is not text.
    """
    if text is not None:
        return check_unicode(text, "the prompt")
    if file is None:
        raise ValueError(
            "give --prompt TEXT or --prompt-file FILE (- for a pipe); in a terminal, --chat asks "
            "for one"
        )
    if file != "-":
        return read_text(Path(file), "--prompt-file")
    content, reason = plain_text(sys.stdin.buffer.read())
    if reason:
        raise ValueError(f"standard input: {reason}")
    return content


def read_text(path: Path, option: str) -> str:
    """The text of a file that an option names. Raises ValueError if it cannot be read."""
    try:
        content, reason = plain_text(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be read ({error.strerror})") from None
    if reason:
        is_compressed = path.suffix.lower() in COMPRESSIONS
        advice = ": decompress it first" if is_compressed else ""
        raise ValueError(f"{option} {path}: {reason}; {option} reads plain text in UTF-8{advice}")
    return content


def check_unicode(text: str, name: str) -> str:
    """The text itself. Raises ValueError if it has bytes that are not UTF-8.

    Python represents such bytes of a command line by halves of surrogate pairs.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not UTF-8 text (character {error.start})") from None
    return text


def typed_lines() -> Iterator[str]:
    """Lines typed in a terminal, up to the end of input (Ctrl-D); empty ones are skipped."""
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if line.strip():
            yield line
