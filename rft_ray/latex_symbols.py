r"""What has a name: variables with subscripts and accents, functions of them, angles by points."""

from rft_ray.latex_numbers import END, NumberParser
from rft_ray.latex_tree import Answer, Apply, Expression, LatexError, Symbol, as_expression

CALLABLE_LETTERS = frozenset("fghFGH")


class SymbolParser(NumberParser):
    """Names, after their first token was taken."""

    def items(self) -> list[Answer]:
        """Answers between commas, inside brackets."""
        raise NotImplementedError

    def named(self, name: str) -> Answer:
        """A variable with its subscript, or a function of it."""
        if self.take("_"):
            name = f"{name}_{self.subscript()}"
        while self.take("'"):
            name += "'"
        is_call = self.next.text == "(" and not self.next.is_spaced
        if name[0] in CALLABLE_LETTERS and is_call:
            self.expect("(")
            arguments = tuple(as_expression(item) for item in self.items())
            self.expect(")")
            return Apply(name, arguments)
        return Symbol(name)

    def subscript(self) -> str:
        if not self.take("{"):
            self.at += 1
            if self.tokens[self.at - 1 : self.at] == []:
                raise LatexError("ends in a subscript")
            return self.tokens[self.at - 1].text
        start = self.at
        while self.next.text != "}" and self.next is not END:
            self.at += 1
        self.expect("}")
        return " ".join(token.text for token in self.tokens[start : self.at - 1])

    def points(self) -> str:
        """The letters that follow: of an angle, one or three."""
        letters = ""
        while self.next.kind == "letter" and len(letters) < 3:
            letters += self.next.text
            self.at += 1
        if not letters:
            raise LatexError("an angle of what is no point")
        return letters

    def accented(self, name: str) -> Expression:
        inner = self.argument()
        if not isinstance(inner, Symbol):
            raise LatexError(f"\\{name} of more than a letter")
        return Symbol(f"{name} {inner.name}")
