r"""Numbers as answers write them: decimals, mixed numbers, repeating decimals, other bases."""

from fractions import Fraction

from rft_ray.latex_tokens import Token
from rft_ray.latex_tree import Apply, Expression, LatexError, Number, quotient
from rft_ray.latex_words import NUMBER_WORDS

MAX_DIGITS = 1_000
MAX_DEPTH = 40
END = Token("end", "")
REPEATING = ("overline", "bar", "dot")


class TokenReader:
    """The tokens and the place in them, which only moves to the right but for a look-ahead."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0
        # The fraction behind a whole number that turned out to be a factor: place, end and value.
        self.fraction_ahead: tuple[int, int, Expression] | None = None

    @property
    def next(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else END

    def peek(self, distance: int = 1) -> Token:
        index = self.at + distance
        return self.tokens[index] if index < len(self.tokens) else END

    def take(self, text: str) -> bool:
        """Step over the next token if it is this operator or command."""
        if self.next.text != text or self.next.kind in ("word", "letter", "end"):
            return False
        self.at += 1
        return True

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise LatexError(f"expected {text!r} before {self.next.text!r}")

    def deepen(self) -> None:
        """One level more, in the recursion or in the tree: both are followed recursively later."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise LatexError(f"nested deeper than {MAX_DEPTH}")


class NumberParser(TokenReader):
    """Numbers, after their first token was taken."""

    def argument(self, by_digit: bool = False) -> Expression:
        """A command's argument."""
        raise NotImplementedError

    def number(self, text: str) -> Expression:
        """A decimal, a mixed number, a number in a base, or a repeating decimal."""
        value = self.plain_number(text).value
        if self.next.text in REPEATING and "." in text:
            return Number(value + self.repeating(text))
        if self.take("_"):
            return self.based(text)
        if text.isdigit() and (part := self.mixed_part()) is not None:
            return Number(value + part)
        return Number(value)

    def plain_number(self, text: str) -> Number:
        """What the digits of one token say, whatever follows."""
        if len(text) > MAX_DIGITS:
            raise LatexError(f"a number of more than {MAX_DIGITS} digits")
        return Number(Fraction(text.rstrip(".")))

    def repeating(self, text: str) -> Fraction:
        self.at += 1
        digits = self.argument()
        if not isinstance(digits, Number) or digits.value.denominator != 1 or digits.value < 0:
            raise LatexError("not a repeating decimal")
        length = len(self.tokens[self.at - 2].text)
        if self.next.text == "dot":
            raise LatexError("a period between two dots")
        decimals = len(text) - text.index(".") - 1
        return digits.value / (10**length - 1) / 10**decimals

    def based(self, digits: str) -> Expression:
        """A whole number in a base, such as 204_5: compared by digits and by base."""
        base = self.base()
        if not digits.isdigit() or not 2 <= base <= 36 or max(map(int, digits)) >= base:
            raise LatexError(f"{digits} is no number in base {base}")
        return Apply("base", (Number(Fraction(int(digits, base))), Number(Fraction(base))))

    def base(self) -> int:
        is_group = self.take("{")
        token = self.next
        self.at += 1
        base = NUMBER_WORDS.get(token.text, int(token.text) if token.text.isdecimal() else 0)
        if is_group:
            self.expect("}")
        return base

    def mixed_part(self) -> Fraction | None:
        r"""The proper fraction behind a whole number: 1\frac{4}{5} or 1 4/5; None without one.

        2\frac{x}{3} is read once and kept for `command`: read again, nested ones double the work.
        """
        start, tokens = self.at, self.tokens[self.at : self.at + 3]
        if self.take("frac"):
            top, bottom = self.argument(by_digit=True), self.argument(by_digit=True)
        elif self._is_plain_fraction(tokens):
            self.at += 3
            top, bottom = (Number(Fraction(tokens[i].text)) for i in (0, 2))
        else:
            return None
        whole = isinstance(top, Number) and isinstance(bottom, Number)
        if not whole or top.value.denominator != 1 or bottom.value.denominator != 1:
            self.fraction_ahead = start, self.at, quotient(top, bottom)
            self.at = start
            return None
        if not 0 < top.value < bottom.value:
            raise LatexError("a mixed number without a proper fraction")
        return top.value / bottom.value

    @staticmethod
    def _is_plain_fraction(tokens: list[Token]) -> bool:
        return (
            [token.kind for token in tokens] == ["number", "operator", "number"]
            and tokens[0].is_spaced
            and tokens[1].text == "/"
            and all(token.text.isdigit() for token in (tokens[0], tokens[2]))
        )
