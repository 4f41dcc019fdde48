"""Scores of LongBench, LongBench v2, InfiniteBench and HELMET, from their definitions.

They agree with the authors' own scorers on every string (tests/golden/published_scores.json).
"""

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from ctxext.tasks.building.chinese_words import chinese_words
from ctxext.tasks.building.rouge import porter_stem, rouge_l, rouge_lsum

PublishedScore = Callable[[str, Sequence[str], Sequence[str]], float]
"""The score, 0 to 1, of a written text, given the references and the labels of all classes."""
CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚"
    "〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def plain_words(text: str) -> str:
    """Lower-case words with single spaces, without articles and punctuation (SQuAD's form)."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def best_f1(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """LongBench's and InfiniteBench's F1 of words, the best over references."""
    words = plain_words(text).split()
    return max(_f1(words, plain_words(reference).split()) for reference in references)


def best_character_f1(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """InfiniteBench's F1 of Chinese characters, the best over references."""
    characters = _plain_characters(text)
    return max(_f1(characters, _plain_characters(reference)) for reference in references)


def best_chinese_f1(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """LongBench's F1 of Chinese words without punctuation, the best over references."""
    words = _plain_chinese_words(text)
    return max(_f1(words, _plain_chinese_words(reference)) for reference in references)


def best_rouge_l(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """LongBench's ROUGE-L (`rouge.rouge_l`), the best over references."""
    return max(rouge_l(text, reference) for reference in references)


def best_chinese_rouge_l(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """The same of Chinese words, with a space between any two, as LongBench has it."""
    spaced = " ".join(chinese_words(text))
    return max(rouge_l(spaced, " ".join(chinese_words(ref))) for ref in references)


def best_rouge_lsum(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """InfiniteBench's ROUGE-Lsum (`rouge.rouge_lsum`), the best over references."""
    return max(rouge_lsum(text, reference) for reference in references)


def book_rouge_lsum(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """HELMET's ROUGE-Lsum of a book's summary, whose answer begins with `Answer:`."""
    return _best_stemmed_rouge_lsum(text, references, "Answer:")


def lawsuit_rouge_lsum(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """HELMET's ROUGE-Lsum of a lawsuit's summary, whose answer begins with `Summary:`."""
    return _best_stemmed_rouge_lsum(text, references, "Summary:")


def share_of_classes(text: str, references: Sequence[str], labels: Sequence[str]) -> float:
    """LongBench's 1 / (classes that a text names), if the right one is among them; the best.

    Names that are part of the right one do not count. As published, the class after such a one is
    not examined.
    """
    return max(_share_of_classes(text, reference, labels) for reference in references)


def share_of_numbers(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """LongBench's share of the written numbers that are the first one of a reference; the best."""
    numbers = re.findall(r"\d+", text)
    right = [re.findall(r"\d+", reference)[0] for reference in references]
    return max(numbers.count(number) for number in right) / len(numbers) if numbers else 0.0


def code_similarity(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """LongBench's likeness, in whole percent, of the first line that has no "`", "#" or "//".

    The ratio is `difflib.SequenceMatcher`'s, the best over references; 0 where either is empty.
    """
    lines = text.lstrip("\n").split("\n")
    code = [line for line in lines if not any(mark in line for mark in ("`", "#", "//"))]
    line = code[0] if code else ""
    return max(_percent_alike(line, reference) for reference in references)


def longbench_v2_choice(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """Whether "The correct answer is (X)" or "... is X", without asterisks, names the right X."""
    plain = text.replace("*", "")
    for pattern in (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])"):
        if match := re.search(pattern, plain):
            return float(match[1] in references)
    return 0.0


def first_number_is(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """InfiniteBench's passkey and number_string: the first digits are a reference, zeros too."""
    numbers = re.findall(r"[0-9]+", text)
    return float((numbers[0] if numbers else "") == references[0])


def word_is_written(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """InfiniteBench's kv_retrieval: a word between spaces and punctuation is the reference."""
    return float(references[0] in _split(text, "\n:\"'.,?!{}"))


def name_is_written(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """InfiniteBench's longdialogue_qa_eng: the same for a name in capitals, case ignored."""
    written = [word.upper() for word in _split(text, "\n:\"'.,?!{}")]
    return float(references[0] in written)


def last_word_is(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """InfiniteBench's code_run: the last word is the whole number of the reference."""
    words = _split(text, "\n.`'\":")
    try:
        return float(bool(words) and int(words[-1]) == int(references[0]))
    except ValueError:
        return 0.0


def first_decimal_is(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """InfiniteBench's math_find: the first number, of digits and a point, is the reference.

    Where the reference is a whole number, a number with a point is an error there and wrong here.
    """
    match = re.search(r"\d+\.\d+|\d+", text)
    if match is None:
        return 0.0
    if "." in references[0]:
        return float(float(match[0]) == float(references[0]))
    return float("." not in match[0] and int(match[0]) == int(references[0]))


def option_is_named(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """InfiniteBench's code_debug; references: the name of the function, and its letter."""
    name, letter = references
    plain = text.strip()
    if plain[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    for mark in ("\n", "`", "'", '"', "-", "*", "Option", "option"):
        plain = plain.replace(mark, " ")
    plain = re.sub(" +", " ", plain)
    phrases = ("answer is:", "is:", "answer:", "correct option is:")
    return float(bool(_after(plain, phrases).startswith((letter, name))))


def letter_is_chosen(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """InfiniteBench's longbook_choice_eng; references: the text of the option, and its letter."""
    plain = text.strip()
    if not plain:
        return 0.0
    if plain[0] in "ABCD":
        return float(plain[0] in references)
    if plain in references:
        return 1.0
    plain = re.sub(" +", " ", re.sub("[\n\"'.,?!{}]", " ", plain))
    phrases = ("answer is:", "answer:", "answer is", "option is")
    if any(phrase in plain for phrase in phrases):
        return float(_after(plain, phrases).startswith(tuple(references)))
    # As published, "AB" and the like, which "ABCD" contains, are letters too.
    letters = [word for word in plain.split() if word in "ABCD"]
    return float(bool(letters) and letters[0] in references)


def contains_words(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """HELMET's substring exact match: whether the plain words contain those of a reference."""
    plain = plain_words(text)
    return float(any(plain_words(reference) in plain for reference in references))


def label_is(text: str, references: Sequence[str], labels: Sequence[str] = ()) -> float:
    """HELMET's in-context learning: the plain words after `label:` are those of a reference."""
    written = plain_words(_line_after(text, "label:"))
    return float(written in map(plain_words, references))


PUBLISHED_SCORES: dict[str, PublishedScore] = {
    "longbench:f1": best_f1,
    "longbench:rouge-l": best_rouge_l,
    "longbench:chinese-f1": best_chinese_f1,
    "longbench:chinese-rouge-l": best_chinese_rouge_l,
    "longbench:classes": share_of_classes,
    "longbench:numbers": share_of_numbers,
    "longbench:code": code_similarity,
    "longbench-v2:choice": longbench_v2_choice,
    "infinitebench:number": first_number_is,
    "infinitebench:word": word_is_written,
    "infinitebench:name": name_is_written,
    "infinitebench:code-run": last_word_is,
    "infinitebench:math-find": first_decimal_is,
    "infinitebench:code-debug": option_is_named,
    "infinitebench:choice": letter_is_chosen,
    "infinitebench:characters": best_character_f1,
    "infinitebench:rouge-lsum": best_rouge_lsum,
    "helmet:contains": contains_words,
    "helmet:label": label_is,
    "helmet:book-rouge-lsum": book_rouge_lsum,
    "helmet:lawsuit-rouge-lsum": lawsuit_rouge_lsum,
}


def _f1(written: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    shared = (Counter(written) & Counter(right)).total()
    return 2 * shared / (len(written) + len(right)) if shared else 0.0


def _best_stemmed_rouge_lsum(text: str, references: Sequence[str], prefix: str) -> float:
    """The best over references, of stems of words, and of the text and its line after `prefix`."""
    stem = porter_stem()
    return max(
        rouge_lsum(written, reference, stem=stem)
        for written in (text, _line_after(text, prefix))
        for reference in references
    )


def _line_after(text: str, prefix: str) -> str:
    """The rest of the line after the first `prefix`, in any case; without one, the first line.

    As HELMET has it, a second `prefix` at its beginning is left out too.
    """
    found = re.search(f"{re.escape(prefix)}(.*)", text, flags=re.IGNORECASE)
    line = found[1] if found else text.split("\n")[0]
    return re.sub(f"^{re.escape(prefix)}", "", line.strip(), flags=re.IGNORECASE).strip()


def _plain_characters(text: str) -> str:
    marks = {*string.punctuation, *CHINESE_PUNCTUATION}
    return "".join("".join(c for c in text.lower() if c not in marks).split())


def _plain_chinese_words(text: str) -> list[str]:
    plain = [_plain_characters(word) for word in chinese_words(text)]
    return [word for word in plain if word]


def _share_of_classes(text: str, reference: str, labels: Sequence[str]) -> float:
    named = [label for label in labels if label in text]
    i = 0
    while i < len(named):
        if named[i] in reference and named[i] != reference:
            named.remove(named[i])
        i += 1
    return 1 / len(named) if reference in named else 0.0


def _percent_alike(text: str, reference: str) -> float:
    if text == reference:
        return 1.0
    if not text or not reference:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, text, reference).ratio()) / 100


def _split(text: str, marks: str) -> list[str]:
    return text.strip().translate({ord(mark): " " for mark in marks}).split()


def _after(text: str, phrases: Sequence[str]) -> str:
    """The text after the first of `phrases` that occurs in it, and one character more."""
    for phrase in phrases:
        _, found, rest = text.partition(phrase)
        if found:
            return rest[1:]
    return ""
