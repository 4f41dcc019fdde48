"""Facts about people and what follows from them for those who know the world.

A fact and its consequence share no content word, and no fact implies the consequence of another.
"""

from typing import NamedTuple


class Implication(NamedTuple):
    """Two predicates of a person: the fact in the text and the consequence in the question."""

    fact: str
    consequence: str


IMPLICATIONS = (
    Implication("climbed Kilimanjaro twice", "has been to Tanzania"),
    Implication("sketched the columns of the Parthenon", "has travelled to Greece"),
    Implication("sees Alcatraz from the kitchen window", "lives in California"),
    Implication("passed a winter repairing gondolas", "has worked in Venice"),
    Implication("watched the sun go down behind Uluru", "has been to Australia"),
    Implication("rode the metro past the Kremlin to school", "grew up in Moscow"),
    Implication("paid for every lunch in rupees", "has spent time in India"),
    Implication("grows tulips on a polder below the dike", "is at home in the Netherlands"),
    Implication("piped the guests in before the haggis was cut", "comes from Scotland"),
    Implication("cheered for Boca Juniors at every match", "has been to Buenos Aires"),
    Implication("picks up the receiver with moshi moshi", "speaks Japanese"),
    Implication("felt ill at the mere sight of a syringe", "dreads being vaccinated"),
    Implication("sneezes as soon as a kitten is near", "is allergic to cats"),
    Implication("checks blood sugar before each meal", "has diabetes"),
    Implication("sends back any bread with gluten in it", "suffers from coeliac disease"),
    Implication("cannot tell a ripe strawberry from its leaves", "is colour-blind"),
    Implication("follows every conversation by watching lips", "is almost deaf"),
    Implication("blew out ninety candles on Sunday", "is of a great age"),
    Implication("rocks two cradles half the night", "has become the parent of twins"),
    Implication("threw a bouquet over one shoulder", "got married"),
    Implication("wrote prescriptions until midnight", "works as a doctor"),
    Implication("banged a gavel until the room fell silent", "works as a judge"),
    Implication("marked forty essays over the weekend", "works as a teacher"),
    Implication("drew the floor plan of the new town hall", "works as an architect"),
    Implication("kneads dough well before sunrise", "earns a living as a baker"),
    Implication("came down the ladder with a face full of soot", "sweeps chimneys"),
    Implication("shears the flock each spring", "keeps sheep"),
    Implication("scrapes wax off wooden frames in a veil", "keeps bees"),
    Implication("racked the merlot into oak barrels", "makes wine"),
    Implication("replaced a burnt resistor with a soldering iron", "mends electronics"),
    Implication("tuned the timpani before the overture", "plays percussion"),
    Implication("sacrificed a bishop and both rooks", "plays chess"),
    Implication("lost at Wimbledon in five sets", "plays tennis"),
    Implication("treasures a yellow jersey from Alpe d'Huez", "has raced on a bicycle"),
    Implication("holds a record in butterfly and backstroke", "swims very fast"),
    Implication("knows every line of Hamlet by heart", "acts on the stage"),
    Implication("brushed the clay off a trilobite", "collects fossils"),
    Implication("puts old stamps under a magnifying glass", "has philately as a hobby"),
    Implication("photographed the rings of Saturn from the balcony", "owns a telescope"),
    Implication("tied a black belt around the white jacket", "has mastered a martial art"),
)

NAMES = tuple(
    """
    Alina Bastian Cosima Dagmar Edwin Frieda Gustav Hedwig Ingmar Jolanda Konrad Ludmila Marius
    Nadine Osmund Philippa Quentin Rosalind Sigrid Tobias Ursula Valentin Winifred Xaver Yolanda
    Zacharias
    """.split()
)

SENTENCES = (
    "{name} {fact}.",
    "Everybody knows that {name} {fact}.",
    "The one who {fact} is {name}.",
)
QUESTION = "The person who {consequence} is called"

FUNCTION_WORDS = frozenset(
    """
    a an and any as at be been before behind being below both by called cannot comes did does down
    each every everybody for from full had half has have in into is it its knows not of off on one
    or out over past person that the this to under until up was were who with
    """.split()
)
"""Words without content, and those of the templates."""
