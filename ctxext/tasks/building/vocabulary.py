"""Keys and values of synthetic needles: pairs of plain words, coined words, numbers, UUIDs."""

import uuid
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

Kind = Literal["words", "coined", "number", "uuid"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# No adjective ends with another and no noun begins with another, so that no pair of words contains
# another pair.
ADJECTIVES = """
amber ancient bitter blunt bold brave brief bright broad calm careful cheap clever cold crooked
curly damp dark deep distant dry dull eager early empty faint fancy fast fierce firm flat fresh
frosty gentle giant glad golden grand gray green happy harsh heavy hollow honest huge humble icy
idle jolly keen kind large lazy light little lively lonely loud lucky mellow mild modest narrow neat
noble odd pale patient plain polite proud pure quick quiet rapid rare rich rough round rusty salty
sandy secret sharp shiny shy silent silver simple sleepy slow small smooth soft sour steep
""".split()
NOUNS = """
acorn anchor apple arrow badger basket beacon bell birch blanket bottle bridge bucket button candle
canyon carpet castle cedar chair cherry circle cliff clock cloud comet copper coral cottage cradle
cricket crown daisy desert drum eagle engine falcon feather fence fiddle flute forest fountain
garden glacier hammer harbor hazel helmet heron island jacket jewel kettle kite ladder lantern lemon
library lion lizard magnet maple marble meadow mirror mountain needle ocean olive orchard otter
oyster paddle palace pebble pencil piano pigeon pillow planet pony puzzle rabbit raven ribbon river
robin rocket saddle sailor shovel spider spoon stable thistle violin
""".split()
PLACES = tuple(
    """
    airport aquarium arcade bandstand bathhouse brewery cafeteria cathedral cinema courthouse depot
    dockyard embassy ferry foundry gallery greenhouse hostel hospital icehouse inn jetty kennel
    laundry lighthouse loft market monastery museum nursery observatory pavilion pharmacy pier
    prison quarry refinery school stadium theatre tollgate tunnel university viaduct warehouse
    workshop
    """.split()
)
COINED = ("bdfgklmnprstvz", "aeiou") * 2 + ("bdfgklmnprstvz",)


def distinct(rng: np.random.Generator, kind: Kind) -> Iterator[str]:
    """Different strings of a kind, all equally likely.

    words: amber-falcon; coined: zubad, five letters each, so that none occurs inside another;
    number: seven digits; uuid: version 4. Raises ValueError when there are no more.
    """
    seen: set[str] = set()
    match kind:
        case "words":
            for pair in rng.permutation(len(ADJECTIVES) * len(NOUNS)).tolist():
                yield f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}"
        case "coined":
            shape = [len(alphabet) for alphabet in COINED]
            for number in rng.permutation(np.prod(shape)):
                letters = np.unravel_index(number, shape)
                yield "".join(COINED[i][letter] for i, letter in enumerate(letters))
        case "number":
            while len(seen) < 9 * 10**6:
                number = str(rng.integers(10**6, 10**7))
                if number not in seen:
                    seen.add(number)
                    yield number
        case "uuid":
            while True:
                yield str(uuid.UUID(bytes=rng.bytes(16), version=4))
    raise ValueError(
        f"all strings of the kind {kind!r} are used up: choose another kind, or a shorter text"
    )
