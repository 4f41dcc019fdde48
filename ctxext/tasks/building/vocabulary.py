"""Names and values of synthetic records: short lists of plain words, coined words, numbers, identifiers."""

import uuid
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

Kind = Literal["words", "coined", "number", "uuid"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# No adjective ends with another, no noun begins with another: then no pair of words contains another pair.
ADJECTIVES = """
amber ancient bitter blunt bold brave brief bright broad calm careful cheap clever cold crooked curly damp dark deep
distant dry dull eager early empty faint fancy fast fierce firm flat fresh frosty gentle giant glad golden grand gray
green happy harsh heavy hollow honest huge humble icy idle jolly keen kind large lazy light little lively lonely loud
lucky mellow mild modest narrow neat noble odd pale patient plain polite proud pure quick quiet rapid rare rich rough
round rusty salty sandy secret sharp shiny shy silent silver simple sleepy slow small smooth soft sour steep
""".split()
NOUNS = """
acorn anchor apple arrow badger basket beacon bell birch blanket bottle bridge bucket button candle canyon carpet castle
cedar chair cherry circle cliff clock cloud comet copper coral cottage cradle cricket crown daisy desert drum eagle
engine falcon feather fence fiddle flute forest fountain garden glacier hammer harbor hazel helmet heron island jacket
jewel kettle kite ladder lantern lemon library lion lizard magnet maple marble meadow mirror mountain needle ocean olive
orchard otter oyster paddle palace pebble pencil piano pigeon pillow planet pony puzzle rabbit raven ribbon river robin
rocket saddle sailor shovel spider spoon stable thistle violin
""".split()
COINED = ("bdfgklmnprstvz", "aeiou") * 2 + ("bdfgklmnprstvz",)


def distinct(rng: np.random.Generator, kind: Kind) -> Iterator[str]:
    """Ever new names of a kind, all equally likely: amber-falcon; zubad; a number of seven digits; a version-4 UUID.

    Coined words have five letters each, so that none is found inside another. Raises ValueError when there are no more.
    """
    seen: set[str] = set()
    match kind:
        case "words":
            for pair in rng.permutation(len(ADJECTIVES) * len(NOUNS)).tolist():
                yield f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}"
        case "coined":
            shape = [len(letters) for letters in COINED]
            for number in rng.permutation(np.prod(shape)):
                yield "".join(
                    COINED[i][letter] for i, letter in enumerate(np.unravel_index(number, shape))
                )
        case "number":
            while len(seen) < 9 * 10**6:
                new = str(rng.integers(10**6, 10**7))
                if new not in seen:
                    seen.add(new)
                    yield new
        case "uuid":
            while True:
                yield str(uuid.UUID(bytes=rng.bytes(16), version=4))
    raise ValueError(
        f"all there is of the kind {kind!r} is used: choose another kind, or a shorter text"
    )
