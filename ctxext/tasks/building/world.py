"""A small closed world of people, places and things, with questions (arXiv 1502.05698)."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

QuestionKind = Literal["place", "object", "before", "relation", "count"]

PEOPLE = ("Mara", "Tomas", "Ines", "Viktor")
PLACES = tuple(
    "orchard cellar windmill chapel harbour attic bakery vineyard barn courtyard".split()
)
THINGS = ("lantern", "ledger", "kettle", "violin", "compass")
NUMBERS = ("zero", "one", "two", "three")
MOVE = ("{} walked to the {}.", "{} went over to the {}.", "{} hurried to the {}.")
TAKE = ("{} picked up the {}.", "{} took the {}.")
DROP = ("{} put down the {}.", "{} left the {} behind.")
OPPOSITE = {"north": "south", "east": "west"}
MAX_TRIES = 1000

Verb = Literal["move", "take", "drop"]
VERBS: dict[QuestionKind, tuple[Verb, ...]] = {
    "place": ("move",),
    "object": ("move", "take", "drop"),
    "before": ("move", "take", "drop"),
    "count": ("take", "drop"),
}


class Event(NamedTuple):
    """A person goes to a place, or takes or drops a thing."""

    verb: Verb
    person: str
    target: str


class Story(NamedTuple):
    """Facts in order, a question and the word that completes it.

    labels: all words of the answer's kind; support: indices of the facts that decide the answer.
    """

    facts: tuple[str, ...]
    question: str
    answer: str
    labels: tuple[str, ...]
    support: tuple[int, ...]


class StoryQuestion(NamedTuple):
    """A question that the events of a story answer, and the indices of the facts it needs."""

    text: str
    answer: str
    support: tuple[int, ...]


def tell(rng: np.random.Generator, kind: QuestionKind, num_facts: int) -> Story:
    """A story of `num_facts` sentences and a question of `kind`.

    place: where a person is (one fact decides); object: where a thing is (two: who has it, where
    that person went); before: where it was before that (three); relation: what is next to a place
    in some direction (one, stated from either side); count: how many things a person carries (all
    that this person took and dropped). Raises ValueError if `num_facts` is too small or too large
    for the kind.
    """
    if kind == "relation":
        return _map(rng, num_facts)
    # For "count" every number is asked for equally often; with a single fact there is no choice.
    most = min(num_facts, len(NUMBERS) - 1)
    number = NUMBERS[int(rng.integers(most + 1)) if most > 1 else 1]
    for _ in range(MAX_TRIES if num_facts > 0 else 0):
        events = _events(rng, num_facts, VERBS[kind])
        questions = QUESTIONS[kind](events)
        if kind == "count":
            questions = [question for question in questions if question.answer == number]
        if questions:
            question = questions[int(rng.integers(len(questions)))]
            facts = tuple(_sentence(rng, event) for event in events)
            labels = NUMBERS if kind == "count" else PLACES
            return Story(facts, question.text, question.answer, labels, question.support)
    raise ValueError(f"facts: {num_facts} facts are too few for a question of the kind {kind!r}")


def _map(rng: np.random.Generator, num_facts: int) -> Story:
    """A path that goes north and east only: no place has two neighbours in one direction."""
    if not 1 <= num_facts < len(PLACES):
        raise ValueError(
            f"facts: a map of {len(PLACES)} places has 1 to {len(PLACES) - 1} facts, "
            f"not {num_facts}"
        )
    path = [PLACES[i] for i in rng.permutation(len(PLACES))[: num_facts + 1]]
    steps = []  # of each, both statements: (neighbour, direction, place)
    for start, end in zip(path[:-1], path[1:], strict=True):
        direction = str(rng.choice(list(OPPOSITE)))
        steps.append([(end, direction, start), (start, OPPOSITE[direction], end)])
    order = rng.permutation(num_facts)
    statements = [steps[i][int(rng.integers(2))] for i in order]
    target = int(rng.integers(num_facts))
    answer, direction, place = steps[order[target]][int(rng.integers(2))]
    facts = tuple(
        f"Next to the {from_place}, to the {towards}, is the {neighbour}."
        for neighbour, towards, from_place in statements
    )
    question = f"What is next to the {place}, to the {direction}? It is the"
    return Story(facts, question, answer, PLACES, (target,))


def _events(rng: np.random.Generator, count: int, verbs: Sequence[Verb]) -> list[Event]:
    """Random possible events: who takes a thing is where it is, and who drops it has it."""
    place_of: dict[str, str] = {}
    holder_of: dict[str, str] = {}
    spot_of: dict[str, str] = {}
    events: list[Event] = []
    has_places = "move" in verbs

    def can_take(person: str, thing: str) -> bool:
        if thing in holder_of:
            return False
        if not has_places:
            return True
        if person not in place_of:
            return False
        return spot_of.get(thing, place_of[person]) == place_of[person]

    for _ in range(count):
        options: dict[Verb, list[tuple[str, str]]] = {
            "move": [(p, place) for p in PEOPLE for place in PLACES if place_of.get(p) != place],
            "take": [(p, thing) for p in PEOPLE for thing in THINGS if can_take(p, thing)],
            "drop": [(person, thing) for thing, person in holder_of.items()],
        }
        possible: list[Verb] = [verb for verb in verbs if options[verb]]
        verb = possible[int(rng.integers(len(possible)))]
        person, target = options[verb][int(rng.integers(len(options[verb])))]
        events.append(Event(verb, person, target))
        if verb == "move":
            place_of[person] = target
        elif verb == "take":
            holder_of[target] = person
        else:
            del holder_of[target]
        if has_places:
            spot_of |= {thing: place_of[p] for thing, p in holder_of.items()}
    return events


def _sentence(rng: np.random.Generator, event: Event) -> str:
    templates = {"move": MOVE, "take": TAKE, "drop": DROP}[event.verb]
    return templates[int(rng.integers(len(templates)))].format(event.person, event.target)


def _ask_place(events: Sequence[Event]) -> list[StoryQuestion]:
    last = {event.person: i for i, event in enumerate(events)}
    return [
        StoryQuestion(f"Where is {person} now? {person} is in the", events[i].target, (i,))
        for person, i in last.items()
    ]


class _Thing(NamedTuple):
    """Where a thing has been.

    places: in order; here: the facts that decide where it is; trip: the facts of its last journey
    (where its carrier came from, that it was taken, where it went).
    """

    places: tuple[str, ...]
    here: tuple[int, int]
    trip: tuple[int, int, int] | None = None


def _things(events: Sequence[Event]) -> dict[str, _Thing]:
    moved: dict[str, int] = {}  # a person's last move
    held: dict[str, tuple[str, int]] = {}  # who has a thing, and when it was taken
    things: dict[str, _Thing] = {}
    for i, (verb, person, target) in enumerate(events):
        if verb == "move":
            for thing, (holder, taken) in held.items():
                if holder == person:
                    trip = (moved[person], taken, i)
                    places = (*things[thing].places, target)
                    things[thing] = _Thing(places, (taken, i), trip)
            moved[person] = i
            continue
        if verb == "take":
            held[target] = (person, i)
            thing_before = things.get(target, _Thing((events[moved[person]].target,), (0, 0)))
        else:
            del held[target]
            thing_before = things[target]
        things[target] = thing_before._replace(here=(moved[person], i))
    return things


def _ask_object(events: Sequence[Event]) -> list[StoryQuestion]:
    return [
        StoryQuestion(
            f"Where is the {name} now? The {name} is in the", thing.places[-1], thing.here
        )
        for name, thing in _things(events).items()
    ]


def _ask_before(events: Sequence[Event]) -> list[StoryQuestion]:
    questions = []
    for name, thing in _things(events).items():
        if thing.trip is None or thing.places.count(thing.places[-1]) > 1:
            continue
        before, here = thing.places[-2:]
        text = f"Where was the {name} before it was in the {here}? Before that, it was in the"
        questions.append(StoryQuestion(text, before, tuple(sorted(thing.trip))))
    return questions


def _ask_count(events: Sequence[Event]) -> list[StoryQuestion]:
    questions = []
    for person in sorted({event.person for event in events}):
        support = tuple(i for i, event in enumerate(events) if event.person == person)
        count = sum(1 if events[i].verb == "take" else -1 for i in support)
        if count < len(NUMBERS):
            text = f"How many things does {person} carry now? The number of things is"
            questions.append(StoryQuestion(text, NUMBERS[count], support))
    return questions


QUESTIONS: dict[QuestionKind, Callable[[Sequence[Event]], list[StoryQuestion]]] = {
    "place": _ask_place,
    "object": _ask_object,
    "before": _ask_before,
    "count": _ask_count,
}
