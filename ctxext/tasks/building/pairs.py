"""What somebody did, and what follows from it for those who know the world: pairs that share no content word.

Each pair stands for a hop of its own, so that no fact answers the question of another.
"""

from typing import NamedTuple


class Pair(NamedTuple):
    """Predicates that complete a name: what the text says, and what is asked."""

    fact: str
    asked: str


PAIRS = (
    Pair("climbed Kilimanjaro twice", "has been to Tanzania"),
    Pair("sketched the columns of the Parthenon", "has travelled to Greece"),
    Pair("sees Alcatraz from the kitchen window", "lives in California"),
    Pair("passed a winter repairing gondolas", "has worked in Venice"),
    Pair("watched the sun go down behind Uluru", "has been to Australia"),
    Pair("rode the metro past the Kremlin to school", "grew up in Moscow"),
    Pair("paid for every lunch in rupees", "has spent time in India"),
    Pair("grows tulips on a polder below the dike", "is at home in the Netherlands"),
    Pair("piped the guests in before the haggis was cut", "comes from Scotland"),
    Pair("cheered for Boca Juniors at every match", "has been to Buenos Aires"),
    Pair("picks up the receiver with moshi moshi", "speaks Japanese"),
    Pair("felt ill at the mere sight of a syringe", "dreads being vaccinated"),
    Pair("sneezes as soon as a kitten is near", "is allergic to cats"),
    Pair("checks blood sugar before each meal", "has diabetes"),
    Pair("sends back any bread with gluten in it", "suffers from coeliac disease"),
    Pair("cannot tell a ripe strawberry from its leaves", "is colour-blind"),
    Pair("follows every conversation by watching lips", "is almost deaf"),
    Pair("blew out ninety candles on Sunday", "is of a great age"),
    Pair("rocks two cradles half the night", "has become the parent of twins"),
    Pair("threw a bouquet over one shoulder", "got married"),
    Pair("wrote prescriptions until midnight", "works as a doctor"),
    Pair("banged a gavel until the room fell silent", "works as a judge"),
    Pair("marked forty essays over the weekend", "works as a teacher"),
    Pair("drew the floor plan of the new town hall", "works as an architect"),
    Pair("kneads dough well before sunrise", "earns a living as a baker"),
    Pair("came down the ladder with a face full of soot", "sweeps chimneys"),
    Pair("shears the flock each spring", "keeps sheep"),
    Pair("scrapes wax off wooden frames in a veil", "keeps bees"),
    Pair("racked the merlot into oak barrels", "makes wine"),
    Pair("replaced a burnt resistor with a soldering iron", "mends electronics"),
    Pair("tuned the timpani before the overture", "plays percussion"),
    Pair("sacrificed a bishop and both rooks", "plays chess"),
    Pair("lost at Wimbledon in five sets", "plays tennis"),
    Pair("treasures a yellow jersey from Alpe d'Huez", "has raced on a bicycle"),
    Pair("holds a record in butterfly and backstroke", "swims very fast"),
    Pair("knows every line of Hamlet by heart", "acts on the stage"),
    Pair("brushed the clay off a trilobite", "collects fossils"),
    Pair("puts old stamps under a magnifying glass", "has philately as a hobby"),
    Pair("photographed the rings of Saturn from the balcony", "owns a telescope"),
    Pair("tied a black belt around the white jacket", "has mastered a martial art"),
)

NAMES = (
    "Alina",
    "Bastian",
    "Cosima",
    "Dagmar",
    "Edwin",
    "Frieda",
    "Gustav",
    "Hedwig",
    "Ingmar",
    "Jolanda",
    "Konrad",
    "Ludmila",
    "Marius",
    "Nadine",
    "Osmund",
    "Philippa",
    "Quentin",
    "Rosalind",
    "Sigrid",
    "Tobias",
    "Ursula",
    "Valentin",
    "Winifred",
    "Xaver",
    "Yolanda",
    "Zacharias",
)

NEEDLES = ("{name} {fact}.", "Everybody knows that {name} {fact}.", "The one who {fact} is {name}.")
QUESTION = "The person who {asked} is called"

FUNCTION_WORDS = frozenset(
    "a an and any as at be been before behind being below both by called cannot comes did does down each every "
    "everybody for from full had half has have in into is it its knows not of off on one or out over past person that "
    "the this to under until up was were who with".split()
)
"""Words that say nothing of the matter, and those of the templates."""
