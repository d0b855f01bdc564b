r"""Other ways to write an answer, and answers just beside it, made from a gold answer by program.

`variants(gold)` gives (text, is_equal) pairs by rewriting text, so that it shares nothing with the
parser that it tests: \frac as \dfrac, a/b or a decimal; terms, elements and spaces moved; and for
the near misses a digit, a sign, a bracket, an order or an element changed.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

INTEGER = re.compile(r"-?[0-9]+")
WHOLE_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?[0-9]+)\}\s*\{([0-9]+)\}")
ROOT = re.compile(r"\\sqrt\{([0-9]+)\}")
DIGIT = re.compile(r"[0-9]")
MAX_DIGITS_CHANGED = 4


def variants(gold: str) -> list[tuple[str, bool]]:
    """Rewritten answers with whether they are equal to the gold one; without repeats."""
    equal = [text for text in equivalents(gold) if text != gold]
    unequal = [text for text in near_misses(gold) if text not in equal and text != gold]
    return [(t, True) for t in dict.fromkeys(equal)] + [(t, False) for t in dict.fromkeys(unequal)]


def equivalents(gold: str) -> Iterator[str]:
    """The same answer, written otherwise."""
    yield f"The final answer is ${gold}$."
    yield rf"Therefore the result is \(\boxed{{{gold}}}\)."
    yield f"${gold}$"
    yield gold + "."
    yield re.sub(r"\\frac", r"\\dfrac", gold)
    if not re.search(r"\\(?:text|mbox)", gold):
        yield re.sub(r"([-+=<])", r" \1 ", gold)
        yield re.sub(r"(?<![a-z])\s+(?![a-zA-Z])|\s+(?=[-+=\\(])", "", gold)
    if "(" in gold and "\\left" not in gold and r"\text" not in gold:
        yield gold.replace("(", r"\left(").replace(")", r"\right)")
    yield gold.replace(r"\left", "").replace(r"\right", "")
    yield gold.replace("pmatrix", "bmatrix")
    yield re.sub(r"\^\\circ", r"^{\\circ}", gold)
    yield re.sub(r"\^\\circ", r"\\text{ degrees}", gold)
    yield re.sub(r"\\(?:text|mbox)\{\s*([A-Za-z]+)\s*\}$", r"\1", gold)
    yield ROOT.sub(r"{\1}^{1/2}", gold)
    yield ROOT.sub(lambda m: rf"\frac{{\sqrt{{{4 * int(m[1])}}}}}{{2}}", gold)
    yield from _fractions(gold)
    yield from _scalars(gold)
    yield from _reordered(gold)


def _fractions(gold: str) -> Iterator[str]:
    if match := WHOLE_FRACTION.fullmatch(gold.lstrip("-")):
        sign = "-" if gold.startswith("-") else ""
        top, bottom = int(match[1]), int(match[2])
        yield f"{sign}{top}/{bottom}"
        yield rf"{sign}\frac{{{3 * top}}}{{{3 * bottom}}}"
        yield rf"\frac{{{sign}{top}}}{{{bottom}}}"
        decimal = Fraction(top, bottom) * 10**6
        if decimal.denominator == 1:
            yield sign + f"{int(decimal):07d}"[:-6] + "." + f"{int(decimal):07d}"[-6:]
        if 0 < bottom < top:
            yield rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}"


def _scalars(gold: str) -> Iterator[str]:
    """Algebra that changes nothing, for answers that are one expression."""
    if INTEGER.fullmatch(gold):
        number = int(gold)
        yield f"{number:,}"
        yield f"{number}.0"
        yield f"+{number}" if number > 0 else gold
        yield rf"\frac{{{2 * number}}}{{2}}"
        yield f"x={number}"
        yield f"{number - 7} + 7"
    if is_scalar(gold):
        yield f"({gold})"
        yield rf"\frac{{2\left({gold}\right)}}{{2}}"
        yield f"3({gold}) - 2({gold})"
        yield f"({gold}) + w - w"
        yield f"({gold})(1+\\sqrt{{2}})(\\sqrt{{2}}-1)"


def is_scalar(gold: str) -> bool:
    """Whether the answer is one expression without units, so that arithmetic can be done on it."""
    return not re.search(r"[,=<>|%_$]|\\(?:text|mbox|in|pm|circ|cup|begin|infty|\{)", gold)


def _reordered(gold: str) -> Iterator[str]:
    terms = _split(gold, r"[-+]")
    if is_scalar(gold) and len(terms) > 1:
        signed = [term if term[0] in "+-" else "+" + term for term in terms]
        yield "".join(reversed(signed)).lstrip("+")
    if len(items := _items(gold)) > 1:
        yield ", ".join(reversed(items))
    if gold.startswith(r"\{"):
        yield r"\{" + ", ".join(reversed(_items(gold[2:-2]))) + r"\}"
    if r"\cup" in gold and r"\in" not in gold.replace(r"\infty", ""):
        yield r" \cup ".join(reversed(gold.split(r"\cup")))
    if gold.count("=") == 1:
        left, right = gold.split("=")
        yield f"{right}={left}"
        yield f"{left}-({right})=0"
        yield f"2({left}) = 2({right})"


def _items(gold: str) -> list[str]:
    """The elements of a bare list, and nothing for 10,080."""
    if (
        gold[:1] in ("(", "[", "\\")
        or r"\in" in gold
        or r"\!" in gold
        or re.fullmatch(r"[0-9]+,[0-9]{3}", gold)
    ):
        return []
    return [item.strip() for item in gold.split(",")]


def _split(text: str, pattern: str) -> list[str]:
    """The pieces that begin at a match outside all brackets."""
    depth, cuts = 0, [0]
    for index, char in enumerate(text):
        depth += (char in "({[") - (char in ")}]")
        if depth == 0 and index and re.match(pattern, char):
            cuts.append(index)
    return [text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def near_misses(gold: str) -> Iterator[str]:
    """Answers that look almost the same and are not."""
    digits = [match.start() for match in DIGIT.finditer(gold)]
    for index in digits[:: max(1, len(digits) // MAX_DIGITS_CHANGED)]:
        yield gold[:index] + str((int(gold[index]) + 1) % 10 or 1) + gold[index + 1 :]
        if gold[index] != "0":
            yield gold[: index + 1] + gold[index:]
    if re.search(r"[a-z]", re.sub(r"\\[a-zA-Z]+|\{[a-z]*matrix\}", "", gold)) and is_scalar(gold):
        yield f"({gold}) + 1"
    if is_scalar(gold) and not re.fullmatch(r"0+", gold):
        yield f"-({gold})"
        yield f"({gold}) + 10^{{-12}}"
        yield f"100({gold})"
        yield f"({gold})\\%"
        yield f"({gold})(1 + 10^{{-9}})"
        yield f"\\pm ({gold})"
        yield f"{gold}, 0"
        yield f"{gold} \\text{{ or }} 17/19"
    yield from _other_brackets(gold)


def _other_brackets(gold: str) -> Iterator[str]:
    text = gold.replace(r"\left", "").replace(r"\right", "").replace(" ", "")
    if re.fullmatch(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]", text):
        swap = {"(": "[", "[": "(", ")": "]", "]": ")"}
        yield swap[text[0]] + text[1:]
        yield text[:-1] + swap[text[-1]]
        parts = _split_commas(text[1:-1])
        yield text[0] + ",".join(reversed(parts)) + text[-1]
        yield text[0] + ",".join(parts[:-1]) + text[-1]
        yield text[0] + ",".join([*parts, "1"]) + text[-1]
    if len(items := _items(gold)) > 1:
        yield ", ".join(items[:-1])
        yield ", ".join([*items, "1234567"])
    if r"\cup" in gold:
        yield gold.split(r"\cup")[0]
        yield gold.replace(r"\cup", r"\cap")
    if r"\\" in gold and "matrix" in gold:
        body = gold[gold.index("matrix}") + 7 : gold.rindex(r"\end")]
        rows = body.split(r"\\")
        yield gold.replace(body, r"\\".join(reversed(rows)))
        yield gold.replace(body, r"\\".join(rows[:-1]))


def _split_commas(text: str) -> list[str]:
    return [part.lstrip(",") for part in _split(text, ",")]
