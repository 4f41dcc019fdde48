"""Command lines in tests, written as one types them."""


def argv(line: str, **values: object) -> list[str]:
    """Split a command line at its spaces; `{name}` becomes one argument, even with spaces in it.

    >>> argv("generate {base} --prompt {text}", base="hf", text="a b")
    ['generate', 'hf', '--prompt', 'a b']
    """
    return [word.format(**values) for word in line.split()]
