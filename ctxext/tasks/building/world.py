"""A small closed world: people, places and things, what happens to them, and questions on it (as arXiv 1502.05698)."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["place", "object", "before", "relation", "count"]

PEOPLE = ("Mara", "Tomas", "Ines", "Viktor")
PLACES = (
    "orchard",
    "cellar",
    "windmill",
    "chapel",
    "harbour",
    "attic",
    "bakery",
    "vineyard",
    "barn",
    "courtyard",
)
THINGS = ("lantern", "ledger", "kettle", "violin", "compass")
NUMBERS = ("zero", "one", "two", "three")
MOVE = ("{} walked to the {}.", "{} went over to the {}.", "{} hurried to the {}.")
TAKE = ("{} picked up the {}.", "{} took the {}.")
DROP = ("{} put down the {}.", "{} left the {} behind.")
OPPOSITE = {"north": "south", "east": "west"}
TRIES = 1000


Verb = Literal["move", "take", "drop"]
VERBS: dict[Kind, tuple[Verb, ...]] = {
    "place": ("move",),
    "object": ("move", "take", "drop"),
    "before": ("move", "take", "drop"),
    "count": ("take", "drop"),
}


class Event(NamedTuple):
    """Somebody goes to a place, or takes or drops a thing."""

    verb: Verb
    person: str
    what: str


class Story(NamedTuple):
    """Facts in order; a question whose end asks for a word, and that word; all words of its kind; needed facts."""

    facts: tuple[str, ...]
    question: str
    answer: str
    labels: tuple[str, ...]
    support: tuple[int, ...]


Asked = tuple[str, str, tuple[int, ...]]
"""A question, its answer and the numbers of the facts that it needs."""


def tell(rng: np.random.Generator, kind: Kind, num_facts: int) -> Story:
    """A story of `num_facts` sentences and a question of `kind`.

    place: where a person is (one fact decides); object: where a thing is (two: who has it, where that person went);
    before: where it was before that (three); relation: what lies in some direction (one, said this way or the other
    way round); count: how many things a person carries (all that this person took and dropped). Raises ValueError if
    `num_facts` is too small or too large for the kind.
    """
    if kind == "relation":
        return _map(rng, num_facts)
    most = min(
        num_facts, len(NUMBERS) - 1
    )  # every number is asked for as often; one fact leaves no choice
    number = NUMBERS[int(rng.integers(most + 1)) if most > 1 else 1]
    for _ in range(TRIES if num_facts > 0 else 0):
        events = _events(rng, num_facts, VERBS[kind])
        if asked := [a for a in ASK[kind](events) if kind != "count" or a[1] == number]:
            question, answer, support = asked[int(rng.integers(len(asked)))]
            labels = NUMBERS if kind == "count" else PLACES
            return Story(
                tuple(_sentence(rng, event) for event in events), question, answer, labels, support
            )
    raise ValueError(f"facts: {num_facts} facts are too few for a question of the kind {kind!r}")


def _map(rng: np.random.Generator, num_facts: int) -> Story:
    """Places along a path that goes north and east only, so that no place has two neighbours in one direction."""
    if not 1 <= num_facts < len(PLACES):
        raise ValueError(
            f"facts: a map of {len(PLACES)} places has 1 to {len(PLACES) - 1} facts, not {num_facts}"
        )
    path = [PLACES[i] for i in rng.permutation(len(PLACES))[: num_facts + 1]]
    steps = []
    for start, end in zip(path[:-1], path[1:], strict=True):
        way = str(rng.choice(list(OPPOSITE)))
        steps.append([(end, way, start), (start, OPPOSITE[way], end)])
    order = rng.permutation(num_facts)
    said = [steps[i][int(rng.integers(2))] for i in order]
    asked = int(rng.integers(num_facts))
    answer, way, place = steps[order[asked]][int(rng.integers(2))]
    facts = tuple(
        f"Next to the {place}, to the {way}, is the {other}." for other, way, place in said
    )
    question = f"What is next to the {place}, to the {way}? It is the"
    return Story(facts, question, answer, PLACES, (asked,))


def _events(rng: np.random.Generator, count: int, verbs: Sequence[Verb]) -> list[Event]:
    """Random events that can happen: who takes a thing is where it is, and who drops it has it."""
    where: dict[str, str] = {}
    holder: dict[str, str] = {}
    spot: dict[str, str] = {}
    events: list[Event] = []
    placed = "move" in verbs
    for _ in range(count):
        can: dict[Verb, list[tuple[str, str]]] = {
            "move": [(p, x) for p in PEOPLE for x in PLACES if where.get(p) != x],
            "take": [
                (p, o)
                for p in PEOPLE
                for o in THINGS
                if o not in holder
                and (not placed or (p in where and spot.get(o, where[p]) == where[p]))
            ],
            "drop": [(p, o) for o, p in holder.items()],
        }
        possible: list[Verb] = [verb for verb in verbs if can[verb]]
        verb = possible[int(rng.integers(len(possible)))]
        person, what = can[verb][int(rng.integers(len(can[verb])))]
        events.append(Event(verb, person, what))
        if verb == "move":
            where[person] = what
        elif verb == "take":
            holder[what] = person
        else:
            del holder[what]
        spot |= {o: where[p] for o, p in holder.items() if placed}
    return events


def _sentence(rng: np.random.Generator, event: Event) -> str:
    forms = {"move": MOVE, "take": TAKE, "drop": DROP}[event.verb]
    return forms[int(rng.integers(len(forms)))].format(event.person, event.what)


def _ask_place(events: Sequence[Event]) -> list[Asked]:
    last = {event.person: i for i, event in enumerate(events)}
    return [
        (f"Where is {person} now? {person} is in the", events[i].what, (i,))
        for person, i in last.items()
    ]


class _Thing(NamedTuple):
    """Where a thing has been, the facts that say where it is, and those of its last journey: from, taken, to."""

    places: tuple[str, ...]
    here: tuple[int, int]
    trip: tuple[int, int, int] | None = None


def _things(events: Sequence[Event]) -> dict[str, _Thing]:
    moved: dict[str, int] = {}
    held: dict[str, tuple[str, int]] = {}
    things: dict[str, _Thing] = {}
    for i, (verb, person, what) in enumerate(events):
        if verb == "move":
            for thing, (by, taken) in held.items():
                if by == person:
                    trip = (moved[person], taken, i)
                    things[thing] = _Thing((*things[thing].places, what), (taken, i), trip)
            moved[person] = i
            continue
        if verb == "take":
            held[what] = (person, i)
            known = things.get(what, _Thing((events[moved[person]].what,), (0, 0)))
        else:
            del held[what]
            known = things[what]
        things[what] = known._replace(here=(moved[person], i))
    return things


def _ask_object(events: Sequence[Event]) -> list[Asked]:
    return [
        (f"Where is the {name} now? The {name} is in the", thing.places[-1], thing.here)
        for name, thing in _things(events).items()
    ]


def _ask_before(events: Sequence[Event]) -> list[Asked]:
    return [
        (
            f"Where was the {name} before it was in the {thing.places[-1]}? Before that, it was in the",
            thing.places[-2],
            tuple(sorted(thing.trip)),
        )
        for name, thing in _things(events).items()
        if thing.trip and thing.places.count(thing.places[-1]) == 1
    ]


def _ask_count(events: Sequence[Event]) -> list[Asked]:
    out = []
    for person in sorted({event.person for event in events}):
        support = tuple(i for i, event in enumerate(events) if event.person == person)
        has = sum(1 if events[i].verb == "take" else -1 for i in support)
        if has < len(NUMBERS):
            out.append(
                (
                    f"How many things does {person} carry now? The number of things is",
                    NUMBERS[has],
                    support,
                )
            )
    return out


ASK: dict[Kind, Callable[[Sequence[Event]], list[Asked]]] = {
    "place": _ask_place,
    "object": _ask_object,
    "before": _ask_before,
    "count": _ask_count,
}
