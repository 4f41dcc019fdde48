"""Chat templates are programs of strangers: jinja2's sandbox renders each in a process of its own, with limits."""

import datetime
import json
import resource
import signal
import subprocess
import sys
from typing import Any

CPU = 5  # seconds; a template takes milliseconds
CHARACTERS, MEMORY = (
    1_000_000,
    1 << 30,
)  # more than templates need; what their variables need comes on top


def render(template: str, variables: dict[str, Any]) -> str:
    """The text that a chat template makes of `variables`, which are JSON; transformers' helpers are there.

    Raises ValueError, in one line, for a template that is wrong, raises, reaches for Python's insides, runs for longer
    than 5 s, or needs more than 1 GiB or a million characters.
    """
    size = len(json.dumps(variables))
    limits = {"cpu": CPU, "characters": CHARACTERS + 4 * size, "memory": MEMORY + 64 * size}
    asked = json.dumps({"template": template, "variables": variables, **limits}).encode()
    try:
        # Run as a file, without the rest of this package: that starts in a tenth of a second.
        done = subprocess.run(
            [sys.executable, "-P", __file__], input=asked, capture_output=True, timeout=20 * CPU
        )
    except subprocess.TimeoutExpired as late:
        done = subprocess.CompletedProcess(late.cmd, -signal.SIGKILL, b"", b"")
    if done.returncode < 0:
        raise ValueError(
            f"the chat template was stopped: it may run for {CPU} s; --chat-template FILE gives another"
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise ValueError(
            f"the chat template cannot be rendered: {said[-1]}; --chat-template FILE gives another"
        )
    return done.stdout.decode()


def _main() -> None:
    try:
        sys.stdout.buffer.write(_render(**json.load(sys.stdin)).encode())
    except MemoryError:
        sys.exit("it needs too much memory")
    except Exception as error:  # whatever a template may do
        sys.exit(f"{' '.join(str(error).split()) or type(error).__name__}"[:300])


def _render(
    template: str, variables: dict[str, Any], cpu: int, characters: int, memory: int
) -> str:
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """{% generation %} marks what an assistant said, for training; here it changes nothing."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(
                parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line
            )

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        def unsafe_undefined(
            self, obj: Any, attribute: str
        ) -> Any:  # jinja2 itself waits until it is used
            raise jinja2.exceptions.SecurityError(
                f"it reaches for {attribute!r} of a {type(obj).__name__}"
            )

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
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
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": fail,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "dict": lambda *pairs, **items: dict(
            *pairs, **items
        ),  # the class itself would be a way out
    }
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    if sys.platform == "linux":  # elsewhere the limit on time has to do
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    parts, length = [], 0
    for part in environment.from_string(template).generate(variables):
        parts.append(part)
        length += len(part)
        if length > characters:
            raise ValueError(f"it writes more than {characters:,} characters")
    return "".join(parts)


if __name__ == "__main__":
    _main()
