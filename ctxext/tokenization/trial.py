"""A trial of a stranger's regular expressions, in a process with limits on time and memory.

An expression can take years for a text. The library of expressions gives up after some steps, for
each place where a match may begin, which is long enough for a text of ordinary length to take
hours, and nothing in this process could stop it.
"""

import functools
import json
import resource
import subprocess
import sys

CPU_SECONDS = 5
"""The texts take milliseconds."""
MAX_MEMORY = 4 << 30
TEXTS = (
    "The quick brown fox; jumps over 12345 lazy dogs.\n\n\tdef f(x):\n    return x ** 2  # no\r\n",
    "naïve café, über, ß, 日本語 and 中文, emoji 🙂🚀 -- it's [[they'll]] 3.14159 https://a.b/c?d=e",
    *(f"{character * 400};" for character in "aZ0 .-_=\n\té日▁"),
    "a b" * 200,
    "ab1 " * 200,
)
"""What ordinary texts have, some of it many times."""


@functools.cache
def check_expressions(rules: str) -> None:
    """Encode texts with the rules of a tokenizer.json, `rules` being those of `bounds.structure`.

    Raises ValueError, in one line, if that fails or takes more than 5 s or too much memory.
    """
    from ctxext.child_python import python_command  # not in the process, which is this file alone

    request = {"rules": rules, "cpu_seconds": CPU_SECONDS, "max_memory": MAX_MEMORY}
    # This file is run on its own: it starts in a fraction of a second.
    command = python_command(__file__)
    try:
        process = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=60
        )
        status = process.returncode
    except subprocess.TimeoutExpired:
        status = -1
    if status == 0:
        return
    if status < 0:
        reason = f"they take more than {CPU_SECONDS} s, or too much memory, for a short text"
    else:
        lines = process.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:200] if lines else "no reason given"
    raise ValueError(
        f"tokenizer.json has regular expressions that were tried and stopped: {reason}; use the "
        "tokenizer the model was trained with"
    )


def _main() -> None:
    request = json.load(sys.stdin)
    import tokenizers

    limit = request["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    if sys.platform == "linux":  # elsewhere the limit on time has to suffice
        resource.setrlimit(resource.RLIMIT_AS, (request["max_memory"],) * 2)
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    data = {"version": "1.0", "added_tokens": [], "model": model, **json.loads(request["rules"])}
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
        for text in TEXTS:
            tokenizer.encode(text)
    except BaseException as error:  # the library raises bare Exception, and what is not even one
        sys.exit(" ".join(str(error).split())[:200])


if __name__ == "__main__":
    _main()
