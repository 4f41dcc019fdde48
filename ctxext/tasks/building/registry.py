"""A registry of invented people: passages about them, and questions that one passage answers."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ctxext.tasks.building.vocabulary import distinct

FIRST_NAMES = tuple(
    """
    Agda Bertil Corin Dorte Emeric Fenna Gorm Hilde Isak Jorun Kester Liva Milo Nessa Odile Perrin
    Quirin Ragna Sunniva Tarik Ulla Vidar Wenzel Yrsa
    """.split()
)


class Relation(NamedTuple):
    """A sentence about a person, a question for it, the stem of its answer, and all values."""

    sentence: str
    question: str
    values: tuple[str, ...]


RELATIONS = {
    "town": Relation(
        "{name} was born in {value}.",
        "In which town was {name} born?",
        tuple(
            """
            Aldmoor Brenwick Calloway Dunfirth Elmsgate Farholt Grenby Hexford Irondale Jarrowby
            Kelsea Lowmere Marstow Norbeck Oakhythe Penlow Quarley Rothwick Stanmere Thornaby
            Ulverby Wexholme Yarnfield Zeldon
            """.split()
        ),
    ),
    "trade": Relation(
        "{name} earned a living as a {value}.",
        "What was the trade of {name}?",
        tuple(
            """
            baker barber blacksmith bookbinder butcher carpenter clockmaker cobbler cooper dyer
            farrier fisher gardener glazier hatter joiner mason miller potter printer roofer saddler
            tailor weaver
            """.split()
        ),
    ),
    "instrument": Relation(
        "On Sundays, {name} played the {value}.",
        "Which instrument did {name} play?",
        tuple(
            """
            accordion banjo bassoon bugle cello clarinet cornet cymbals dulcimer flute guitar harp
            mandolin oboe organ piccolo recorder sitar spinet trombone trumpet tuba viola zither
            """.split()
        ),
    ),
    "animal": Relation(
        "In the yard, {name} kept a {value}.",
        "Which animal did {name} keep?",
        tuple(
            """
            badger beaver camel donkey ferret goat goose hare hedgehog heron jackdaw lynx magpie
            marten mule parrot peacock pelican quail raccoon stork tortoise turkey weasel
            """.split()
        ),
    ),
}


class Person(NamedTuple):
    """A name that no other person of a text has, and a value for each of `RELATIONS`."""

    name: str
    values: dict[str, str]

    def passage(self, rng: np.random.Generator) -> str:
        """The sentences about the person in random order, under the name."""
        sentences = [
            RELATIONS[relation].sentence.format(name=self.name, value=value)
            for relation, value in self.values.items()
        ]
        return f"{self.name}\n" + " ".join(sentences[i] for i in rng.permutation(len(sentences)))

    def question(self, relation: str) -> str:
        return RELATIONS[relation].question.format(name=self.name)


def people(rng: np.random.Generator) -> Iterator[Person]:
    """Endless different people; each shares a first or a last name with the one before.

    So to find a passage is to read a whole name. Values are drawn independently and uniformly.
    """
    surnames = (name.capitalize() for name in distinct(rng, "coined"))
    first = str(rng.choice(FIRST_NAMES))
    last = next(surnames)
    shares_first = True
    while True:
        values = {name: str(rng.choice(relation.values)) for name, relation in RELATIONS.items()}
        yield Person(f"{first} {last}", values)
        if shares_first:
            last = next(surnames)
        else:
            others = [name for name in FIRST_NAMES if name != first]
            first = str(rng.choice(others))
        shares_first = not shares_first
