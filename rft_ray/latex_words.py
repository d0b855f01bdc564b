"""The words that answers hold: joints, units, functions and symbols, each in one spelling.

A unit's canonical name is a singular English word with an exponent: "sq. cm" and "cm^2" are both
"centimeter^2". Conversions are left out: 100 cm is not accepted for 1 m.
"""

import re


def names(text: str) -> frozenset[str]:
    """A set of words, from a text of them."""
    return frozenset(text.split())


FUNCTION_WORDS = names(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh log ln lg exp sqrt gcd lcm "
    "max min frac dfrac det floor ceil binom cbrt arg"
)
SYMBOL_WORDS = {"pi": "pi", "infty": "infty", "infinity": "infty", "inf": "infty"}
JOINTS = {
    "and": "and", "or": "or", ", and": "and", ", or": "or", "&": "and", "и": "and", "et": "and",
}  # fmt: skip

UNIT_NAMES = {
    "centimeter": "cm centimeter centimeters centimetre centimetres",
    "millimeter": "mm millimeter millimeters millimetre millimetres",
    "kilometer": "km kilometer kilometers kilometre kilometres",
    "meter": "m meter meters metre metres",
    "inch": "in in. inch inches",
    "foot": "ft ft. foot feet",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "gram": "g gram grams",
    "kilogram": "kg kilogram kilograms",
    "pound": "lb lbs lb. lbs. pound pounds",
    "ounce": "oz ounce ounces",
    "liter": "l liter liters litre litres",
    "milliliter": "ml milliliter milliliters millilitre millilitres",
    "second": "s sec secs sec. second seconds",
    "minute": "min mins min. minute minutes",
    "hour": "h hr hrs hr. hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "dollar": "dollar dollars usd $",
    "cent": "cent cents \u00a2",
    "euro": "euro euros eur",
    "pound sterling": "pounds-sterling",
    "degree": "degree degrees deg \u00b0",
    "radian": "rad radian radians",
    "mile/hour": "mph",
    "kilometer/hour": "km/h kph",
    "meter/second": "m/s",
    "unit": "unit units",
    "ordinal": "st nd rd th",
}
UNITS = {spelling: name for name, spellings in UNIT_NAMES.items() for spelling in spellings.split()}
# A mark, not a measure: left out on one side, the answer is still the same answer.
FREE_UNITS = frozenset(
    ("dollar", "euro", "pound sterling", "degree", "unit", "unit^2", "unit^3", "ordinal")
)
NO_SOLUTION = frozenset(("no solution", "no solutions", "empty set"))
ALL_REALS = frozenset(("all real numbers", "all reals", "real numbers"))
PERCENT = names("percent percents percentage pct % percent. pct.")
HALVES = {half: f"{half[0]}.m." for half in ("am", "a.m.", "a.m", "pm", "p.m.", "p.m")}
SHORT_WORDS = names("yes no odd per none one two six ten red and or all not")
NUMERALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: value for value, word in enumerate(NUMERALS.split())}
NUMBER_WORDS |= {
    f"{ten}{joint}{word}" if one else ten: 10 * tens + one
    for tens, ten in enumerate(TENS.split(), 2)
    for one, word in enumerate(NUMERALS.split()[:10])
    for joint in " -"
}
NUMBER_WORDS |= {"one hundred": 100, "a hundred": 100, "hundred": 100}
POWERS = {"square": 2, "sq": 2, "sq.": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
SHORT_UNITS = names("cm mm km ft kg lb lbs oz ml hr hrs mph usd deg mi yd")
LONG_WORD = 4


def is_word(run: str) -> bool:
    """Whether letters side by side are read as a word, not as a product of variables."""
    lower = run.lower()
    return (
        len(run) >= LONG_WORD
        or lower in SHORT_WORDS
        or lower in HALVES
        or lower in PERCENT
        or run in SHORT_UNITS
    )


def word_token(content: str) -> tuple[str, str]:
    """The kind and the text of a token for words: "and" -> operator, "p.m." -> half, or a word."""
    lower = " ".join(content.lower().split()).strip(",;: ")
    bare = lower.rstrip(".")
    if lower in JOINTS:
        return "operator", JOINTS[lower]
    if lower in PERCENT or bare in PERCENT:
        return "operator", "%"
    if lower in HALVES:
        return "half", HALVES[lower]
    if bare in ("degree", "degrees"):
        return "command", "circ"
    return "word", " ".join(content.split())


def canonical_unit(phrase: str, power: int = 1) -> str:
    """One spelling of a unit: ("square centimeters", 1) and ("cm", 2) -> "centimeter^2".

    A phrase that is no known unit is its own canonical form, in lower case.
    """
    lower = " ".join(phrase.lower().split()).strip("., ")
    if lower == "pounds sterling":
        return lower
    kept = []
    for word in re.sub(r"\s+per\s+", " / ", lower).split():
        if word in POWERS:
            power *= POWERS[word]
        else:
            kept.append(UNITS.get(word) or UNITS.get(word.rstrip(".")) or _singular(word))
    name = " ".join(kept).replace(" / ", "/").strip()
    return f"{name}^{power}" if name and power != 1 else name


def _singular(word: str) -> str:
    """cups -> cup, glass -> glass."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word
