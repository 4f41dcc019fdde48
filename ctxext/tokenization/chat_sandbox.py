"""Rendering chat templates, which are programs by strangers.

A template comes with a checkpoint from the internet and is written in Jinja, a language that can
loop forever, fill the memory, and, without a sandbox, call into Python and from there into the
system. So each is rendered by jinja2's sandbox, and that in a child process with limits on time,
memory and length of text: a template that breaks out of one bound still meets the others, and
whatever it does ends with its process.
"""

import datetime
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

CPU_SECONDS = 5
"""A template takes milliseconds."""
MAX_CHARACTERS = 1_000_000
MAX_MEMORY = 1 << 30
"""Bytes. Both limits exceed what templates need; what their variables need is added."""
CHARACTERS_PER_SECOND = 100_000
"""Of variables: a second more for so many of them."""
ADVICE = "give another one with --chat-template FILE"


def render(template: str, variables: dict[str, Any]) -> str:
    """Render a chat template with `variables`, which are JSON; transformers' helpers are defined.

    Raises ValueError, in one line, for a template that is wrong, raises an error, reaches for
    Python's internals, runs for longer than 5 s, or needs more than 1 GiB or a million characters.
    """
    (outcome,) = render_each(template, [variables])
    if outcome.reason:
        raise ValueError(outcome.reason)
    return outcome.text


class Rendered(NamedTuple):
    """A text, or the reason why there is none."""

    text: str
    reason: str


def render_each(
    template: str,
    each: Sequence[dict[str, Any]],
    *,
    with_date: bool = True,
    advice: str = ADVICE,
) -> list[Rendered]:
    """Render a chat template once for each set of variables, all of them in one process.

    with_date: whether a template may ask for the date (`strftime_now`). advice: the end of every
    reason. Raises ValueError for a
    template that takes too long or needs too much memory; every other mistake is the reason of its
    own text.
    """
    from ctxext.child_python import python_command

    sizes = [len(json.dumps(variables)) for variables in each]
    request = {
        "template": template,
        "each": list(each),
        "with_date": with_date,
        "cpu_seconds": CPU_SECONDS + sum(sizes) // CHARACTERS_PER_SECOND,
        "max_characters": [MAX_CHARACTERS + 4 * size for size in sizes],
        "max_memory": MAX_MEMORY + 64 * sum(sizes),
    }
    # This file is run on its own, without the rest of the package: it starts in a tenth of a
    # second.
    command = python_command(__file__)
    try:
        process = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=20 * request["cpu_seconds"],
        )
    except subprocess.TimeoutExpired:
        process = subprocess.CompletedProcess(command, -signal.SIGKILL, b"", b"")
    if process.returncode < 0:
        raise ValueError(
            f"the chat template was stopped: it ran longer than {request['cpu_seconds']} s, or "
            f"needed too much memory; {advice}"
        )
    if process.returncode > 0:
        lines = process.stderr.decode(errors="replace").strip().splitlines()
        outcomes = [("", lines[-1] if lines else "no reason given")] * len(each)
    else:
        outcomes = json.loads(process.stdout)
    return [
        Rendered(
            text, f"the chat template cannot be rendered: {reason}; {advice}" if reason else ""
        )
        for text, reason in outcomes
    ]


def _main() -> None:
    """Render the request on stdin to stdout; the exit message is the reason of a failure."""
    try:
        print(json.dumps(_render_each(**json.load(sys.stdin))))
    except MemoryError:
        sys.exit("it needs too much memory")


def _limit_resources(cpu_seconds: int, max_memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    if sys.platform == "linux":  # elsewhere the limit on time has to suffice
        resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))


def _render_each(
    template: str,
    each: list[dict[str, Any]],
    with_date: bool,
    cpu_seconds: int,
    max_characters: list[int],
    max_memory: int,
) -> list[tuple[str, str]]:
    """(text, reason why there is none) for each set of variables."""
    environment = _sandboxed_environment(with_date=with_date)
    _limit_resources(cpu_seconds, max_memory)
    compiled = None
    outcomes = []
    for variables, most in zip(each, max_characters, strict=True):
        try:
            compiled = compiled or environment.from_string(template)
            outcomes.append((_render(compiled, variables, most), ""))
        except MemoryError:
            outcomes.append(("", "it needs too much memory"))
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            outcomes.append(("", reason[:300]))
    return outcomes


def _render(template: Any, variables: dict[str, Any], max_characters: int) -> str:
    parts = []
    length = 0
    for part in template.generate(variables):
        parts.append(part)
        length += len(part)
        if length > max_characters:
            raise ValueError(f"it writes more than {max_characters:,} characters")
    text = "".join(parts)
    text.encode()  # half a surrogate pair is no text
    return text


def _sandboxed_environment(*, with_date: bool) -> Any:
    """Jinja as transformers sets it up for chat templates, with the strictest of its sandboxes."""
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """{% generation %} marks an assistant's text for training; rendering ignores it."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        """Refuses a forbidden attribute at once; jinja2 itself waits until its value is used."""

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise jinja2.exceptions.SecurityError(
                f"it reaches for {attribute!r} of a {type(obj).__name__}"
            )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        # The class itself would be a way out of the sandbox.
        "dict": lambda *pairs, **items: dict(*pairs, **items),
    }
    if with_date:
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    _main()
