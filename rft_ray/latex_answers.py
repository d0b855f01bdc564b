r"""The text of a final answer -> a tree: lists, intervals, relations, units, times and words.

`parse_answer` is the only way from text to a tree. It never evaluates anything. An answer that is
prose, or holds what the parser does not know, is a LatexError and never a guess.
"""

import re
from fractions import Fraction

from rft_ray.latex_parser import ExpressionParser, is_set
from rft_ray.latex_tokens import clean, tokenize
from rft_ray.latex_tree import (
    EXPRESSIONS,
    Answer,
    Apply,
    Joined,
    LatexError,
    Listing,
    Number,
    Product,
    Quantity,
    Ratio,
    Relation,
    Symbol,
    Words,
    as_expression,
)
from rft_ray.latex_words import ALL_REALS, FREE_UNITS, NO_SOLUTION, NUMBER_WORDS, canonical_unit

MAX_ITEMS = 200
INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
# 1A_{16}: digits beyond 9 are letters, which the parser would take for variables.
LETTER_DIGITS = re.compile(r"\(?([0-9A-Z]*[A-Z][0-9A-Z]*)\)?_\{?([0-9]{1,2})\}?")
ARTICLE = re.compile(r"\A(?:an?|the) (?=[a-z]{2})", re.IGNORECASE)
CHOICE = re.compile(r"\(?([A-Za-z])[).]?")
RELATIONS = {op: op for op in ("=", "<", ">", "<=", ">=", "!=", "in", "approx")} | {"equiv": "="}
JOINTS = frozenset((",", ";", "and", "or"))
MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
JOINED = frozenset(("cup", "cap", "setminus"))
SETS_IN_WORDS = dict.fromkeys(NO_SOLUTION, Symbol("emptyset"))
SETS_IN_WORDS |= dict.fromkeys(ALL_REALS, Symbol("set R"))
DATE = re.compile(r"[0-9]{4}([-/])[0-9]{1,2}\1[0-9]{1,2}|[0-9]{1,2}([-/])[0-9]{1,2}\2[0-9]{4}")
# Not a product of variables: whose order matters where they are points, people or choices.
CAPITALS = re.compile(r"[A-Z]{2,}")


def parse_answer(text: str) -> Answer:
    r"""The tree of one answer: "x=\frac12" -> Relation((Symbol("x"), Number(1/2)), ("=",)).

    Raises LatexError where the text cannot be read as an answer, or is beyond the limits.
    """
    text = clean(text)
    if INTEGER.fullmatch(text):
        return Number(Fraction(int(text)))
    if based := LETTER_DIGITS.fullmatch(text):
        return _in_base(based[1], int(based[2]))
    if DATE.fullmatch(text) or CAPITALS.fullmatch(text):
        return Words(text.lower())
    tokens = tokenize(text)
    if not tokens:
        raise LatexError("empty")
    return AnswerParser(tokens).answer()


class AnswerParser(ExpressionParser):
    """Answers on top of expressions."""

    in_set = False

    def answer(self) -> Answer:
        """The whole of the tokens, as one answer."""
        found = self.listing()
        if self.at < len(self.tokens):
            raise LatexError(f"unexpected {self.next.text!r}")
        return found

    def listing(self) -> Answer:
        items, joints = [self.relation()], set()
        while self.next.text in JOINTS and self.next.kind == "operator":
            joints.add(self.next.text)
            self.at += 1
            if self.next.text in ("and", "or") and self.next.kind == "operator":
                joints.add(self.next.text)
                self.at += 1
            items.append(self.relation())
            if len(items) > MAX_ITEMS:
                raise LatexError(f"more than {MAX_ITEMS} items")
        if len(items) == 1:
            return items[0]
        joint = next((joint for joint in ("or", "and") if joint in joints), ",")
        return Listing(tuple(items), joint)

    def items(self) -> list[Answer]:
        return self.items_after(self.relation())

    def items_after(self, first: Answer) -> list[Answer]:
        """The items of which the first was read."""
        found = [first]
        while self.take(",") or self.take(";"):
            found.append(self.relation())
            if len(found) > MAX_ITEMS:
                raise LatexError(f"more than {MAX_ITEMS} items")
        return found

    def bracketed(self, opener: str) -> Answer:
        """Also a set by its condition: {x | x > 0} is the condition."""
        if opener != r"\{" or self.next.text == r"\}":
            return super().bracketed(opener)
        in_set, bars = self.in_set, self.bars
        self.in_set, self.bars = True, bars + 1
        first = self.relation()
        self.bars = bars
        if self.take("mid") or self.take("|") or self.take(":"):
            self.in_set = False
            found = _within(first, self.listing())
            self.expect(r"\}")
        else:
            self.bars = 0
            found = self.closed(opener, self.items_after(first))
        self.in_set, self.bars = in_set, bars
        return found

    def relation(self) -> Answer:
        sides, operators = [self.joined()], []
        while self.next.text in RELATIONS and self.next.kind in ("operator", "command"):
            operators.append(RELATIONS[self.next.text])
            self.at += 1
            sides.append(self.joined())
        return Relation(tuple(sides), tuple(operators)) if operators else sides[0]

    def joined(self) -> Answer:
        found, depth = self.measured(), self.depth
        while self.next.text in JOINED or (self.next.text == "-" and is_set(found)):
            operator = "setminus" if self.next.text == "-" else self.next.text
            self.at += 1
            part = self.measured()
            if isinstance(found, Joined) and found.operator == operator == "cup":
                found = Joined("cup", (*found.parts, part))
            else:
                self.deepen()
                found = Joined(operator, (found, part))
        self.depth = depth
        return found

    def measured(self) -> Answer:
        """A value with a currency sign before it or a unit behind it; or words alone."""
        if self.next.kind == "word" and not self.is_currency():
            return self.words()
        is_negative = self.next.text == "-" and self.peek().text == "$"
        self.at += is_negative
        is_money = self.take("$")
        sign = None
        if self.is_currency():
            sign = canonical_unit(self.next.text)
            self.at += 1
        value = self.colons(self.additive())
        if is_negative:
            value = Product((Number(Fraction(-1)), as_expression(value)))
        is_money |= self.take("$")
        unit = self.unit()
        if unit in MAGNITUDES and isinstance(value, EXPRESSIONS):
            value = Product((value, Number(Fraction(10 ** MAGNITUDES[unit]))))
            unit = self.unit()
        return _with_unit(value, unit or sign or ("dollar" if is_money else None))

    def is_currency(self) -> bool:
        return self.next.kind == "word" and canonical_unit(self.next.text) in FREE_UNITS

    def words(self) -> Answer:
        """Words alone. A letter of a choice may have the choice's content behind it."""
        found = [self.next.text]
        self.at += 1
        while self.next.kind in ("word", "letter"):
            found.append(self.next.text)
            self.at += 1
        text = ARTICLE.sub("", " ".join(found))
        if choice := CHOICE.fullmatch(text):
            return Words(choice[1].lower())
        if text.lower() in NUMBER_WORDS:
            return Number(Fraction(NUMBER_WORDS[text.lower()]))
        return SETS_IN_WORDS.get(text.lower()) or Words(text.lower())

    def colons(self, first: Answer) -> Answer:
        """A ratio or a time, where a colon or an a.m. follows."""
        parts = [first]
        is_time = self.tokens[self.at - 1].kind == "number"
        while not self.in_set and self.take(":"):
            is_time &= self.next.kind == "number" and len(self.next.text) == 2
            parts.append(self.additive())
        half = ""
        if self.next.kind == "half":
            half = self.next.text
            self.at += 1
        if len(parts) == 1 and not half:
            return first
        return Ratio(tuple(map(as_expression, parts)), half, is_time)

    def unit(self) -> str | None:
        r"""The canonical unit that follows, such as "centimeter^2" or "mod 7"; None without."""
        if self.next.kind == "command" and self.next.text in ("pmod", "mod", "bmod"):
            self.at += 1
            modulus = self.argument()
            return f"mod {modulus.value}" if isinstance(modulus, Number) else f"mod {modulus}"
        if self.next.text == "(" and self.peek().text in ("mod", "bmod"):
            self.at += 2
            modulus = self.argument()
            self.expect(")")
            return f"mod {modulus.value}" if isinstance(modulus, Number) else f"mod {modulus}"
        if self.next.kind != "word":
            return None
        words = []
        while self.next.kind == "word" and (not words or words[-1] not in MAGNITUDES):
            words.append(self.next.text)
            self.at += 1
        power = 1
        if self.take("^"):
            exponent = self.exponent()
            if not isinstance(exponent, Number) or exponent.value.denominator != 1:
                raise LatexError("a unit to a power that is no whole number")
            power = int(exponent.value)
        unit = canonical_unit(" ".join(words), power)
        if not unit and any(map(str.isalpha, "".join(words))):
            raise LatexError(f"{words[0]} of nothing")  # 5 squared
        if self.take("/"):
            unit += "/" + (self.unit() or "")
        return unit


def _within(element: Answer, condition: Answer) -> Answer:
    """The condition on real numbers, or on those of a smaller set: n in Z and 0 < n < 3."""
    match element, condition:
        case Relation((_, Symbol("set R" | "set { R }")), ("in",)), _:
            return condition
        case Relation(_, ("in",)), Listing(items, joint) if joint != "or":
            return Listing((element, *items), "and")
        case Relation(_, ("in",)), _:
            return Listing((element, condition), "and")
    return condition


def _with_unit(value: Answer, unit: str | None) -> Answer:
    """The value with its unit; "30 degrees" carries its sign as a factor of the product."""
    if isinstance(value, Product) and value.factors[-1] == Symbol("degree"):
        rest = value.factors[:-1]
        inner = rest[0] if len(rest) == 1 else Product(rest)
        return Quantity(inner, "degree" + (f" {unit}" if unit else ""))
    if not unit:
        return value
    return Quantity(value, unit)


def _in_base(digits: str, base: int) -> Answer:
    if not 2 <= base <= 36 or len(digits) > 300 or max(int(d, 36) for d in digits) >= base:
        raise LatexError(f"{digits} is no number in base {base}")
    return Apply("base", (Number(Fraction(int(digits, base))), Number(Fraction(base))))
