r"""LaTeX or plain text of one answer -> tokens, in linear time and within limits.

The markup that only changes how an answer looks is dropped here (\left, spaces, \displaystyle), as
are math delimiters. What carries meaning and can be spelt in several ways gets one spelling:
Unicode operators, thousands separators, words inside and outside \text{...}. ASCII digits only.
"""

import re
from typing import NamedTuple

from rft_ray.latex_tree import LatexError
from rft_ray.latex_words import FUNCTION_WORDS, SYMBOL_WORDS, is_word, names, word_token

MAX_CHARS = 2_000
MAX_TOKENS = 1_000
MAX_TEXT_NESTING = 5

OPENERS, CLOSERS = ("(", "[", r"\{", r"\langle"), (")", "]", r"\}", r"\rangle")
BRACKETS = OPENERS + CLOSERS


class Token(NamedTuple):
    """`kind` is number, letter, command, word, operator, half ("a.m.", "p.m.") or environment."""

    kind: str
    text: str
    is_spaced: bool = False


SPELLINGS = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ",
        "\u22c5": r"\cdot ", "\u00f7": "/", "\u2215": "/", "\u2044": "/", "\u03c0": r"\pi ",
        "\u221a": r"\sqrt ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ",
        "\u2a7d": r"\le ", "\u2a7e": r"\ge ", "\u2260": r"\ne ", "\u2248": r"\approx ",
        "\u2208": r"\in ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u00b1": r"\pm ",
        "\u2213": r"\mp ", "\u00b0": r"^\circ ", "\u00b9": "^{1}", "\u00b2": "^{2}",
        "\u00b3": "^{3}", "\u2074": "^{4}", "\u03b8": r"\theta ", "\u03b1": r"\alpha ",
        "\u03b2": r"\beta ", "\u03bb": r"\lambda ", "\u211d": r"\mathbb{R}",
        "\u20ac": r"\text{ euros }", "\u00a3": r"\text{ pounds sterling }", "\u2019": "'",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u201c": '"', "\u201d": '"',
    }
)  # fmt: skip

VULGAR_FRACTIONS = {
    "\u00bc": "14", "\u00bd": "12", "\u00be": "34", "\u2150": "17", "\u2151": "19", "\u2153": "13",
    "\u2154": "23", "\u2155": "15", "\u2156": "25", "\u2157": "35", "\u2158": "45", "\u2159": "16",
    "\u215a": "56", "\u215b": "18", "\u215c": "38", "\u215d": "58", "\u215e": "78",
}  # fmt: skip
SPELLINGS |= {ord(char): rf"\frac{digits}" for char, digits in VULGAR_FRACTIONS.items()}

# Between digits, LaTeX's explicit thousands separators, and a thin space.
THOUSANDS_MARK = re.compile(
    r"(?<=[0-9])(?:\s?\{,\s?\}|,\\[!,;:]|\\[,;: ]|~)(?:\\!)?\s{0,3}(?=[0-9]{3}(?![0-9]))"
)
SPACED_THOUSANDS = re.compile(r"[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
# Answers out of JSON that was escaped twice: \\frac. Rows of a matrix do need their \\.
DOUBLED_BACKSLASH = re.compile(r"\\\\(?=[A-Za-z({\[])")
INVISIBLE = re.compile(
    r"(?<!\\)(?:\\(?:left|right|middle)\s*\.|\\(?:displaystyle|textstyle|limits|nolimits|left|right"
    r"|middle|[Bb]igg?[lrm]?|strut|allowbreak|quad|qquad)(?![A-Za-z])|\\[,;:! ()]|\$|~"
    r"|\\(?:hspace|tag|label)\s*\{[^{}]*\}|[*]{2}(?=[\s:]|$))"
)
# 6.02 x 10^{23}
TIMES_TEN = re.compile(r"(?<=[0-9])\s{0,3}x\s{0,3}(?=10\s?\^)")
LONE_DOLLAR = re.compile(r"(?<!\\)\$")
# One full stop ends a sentence; three leave something out.
TRAILING = re.compile(r"(?:(?<!\.)[.,;:]|[\s*\\])*\Z")
DISPLAY_MARK = re.compile(r"\\[\[\]]")
TEXT_COMMANDS = (
    "textbf|textit|textrm|textnormal|textsf|texttt|text|mbox|hbox|mathrm|mathsf|mathit"
    "|operatorname\\*?|emph|underline"
)
MASTER = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<scientific>(?:[0-9]*\.[0-9]+e[-+]?|[0-9]+(?-i:E[-+]?|e))[0-9]{1,3}(?![0-9.]))"
    r"|(?P<number>[0-9]+(?:\.[0-9]+|\.(?=\\(?:overline|bar|dot)\b))?|\.[0-9]+)"
    rf"|\\(?:{TEXT_COMMANDS})\s*\{{(?P<text>)"
    r"|\\(?P<edge>begin|end)\s*\{(?P<environment>[a-zA-Z]+\*?)\}"
    r"|\\(?P<command>[A-Za-z]+)"
    r"|(?P<escaped>\\[\\{}%$&#_|])"
    r"|(?P<half>[ap]\.\s?m\b\.?)"
    r"|(?P<run>[A-Za-z]+)"
    r"|(?P<operator><=|>=|!=|\*\*|[-+*/^_=<>()\[\]{}|,;:!'&%?])",
    re.IGNORECASE,
)
THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])(?:\.[0-9]+)?")
ORDINAL = re.compile(r"(?:st|nd|rd|th)(?![A-Za-z])")
ESCAPES = {r"\%": "%", r"\$": "$", r"\_": "_", r"\&": "and", r"\|": "||"}
SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom",
    "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=",
    "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "cdot": "*", "times": "*", "ast": "*",
    "div": "/", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "mid", "colon": ":", "land": "and",
    "wedge": "and", "lor": "or", "vee": "or", "infin": "infty", "lang": "langle",
    "rang": "rangle", "degree": "circ", "degrees": "circ", "backslash": "setminus",
    "smallsetminus": "setminus", "varnothing": "emptyset", "approxeq": "approx",
    "simeq": "approx", "dots": "...", "ldots": "...", "cdots": "...",
    "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "tg": "tan", "ctg": "cot",
    "euro": "euros", "pounds": "pounds",
}  # fmt: skip
JOINT = re.compile(r"(,|\b(?:and|or)\b)", re.IGNORECASE)
OPERATOR_SYNONYMS = names("<= >= < > != * / [ ] | : and or ...")


def clean(text: str) -> str:
    r"""The same answer without what only changes its looks: "\left(1,\!000\right)." -> "(1000)".

    Raises LatexError where it is longer than MAX_CHARS.
    """
    if len(text) > MAX_CHARS:
        raise LatexError(f"longer than {MAX_CHARS} characters")
    text = text.translate(SPELLINGS)
    if len(LONE_DOLLAR.findall(text)) == 1:
        text = LONE_DOLLAR.sub(r"\\$", text)
    if r"\begin" not in text:
        text = DOUBLED_BACKSLASH.sub(r"\\", text)
    if "\\" in text or "~" in text or "{," in text:
        text = THOUSANDS_MARK.sub("", text)
    if r"\begin" not in text:
        text = DISPLAY_MARK.sub(" ", text)
    text = TRAILING.sub("", INVISIBLE.sub(" ", text).strip().strip('"').lstrip("*")).strip()
    text = TIMES_TEN.sub(r"\\times ", text)
    return text.replace(" ", "") if SPACED_THOUSANDS.fullmatch(text) else text


def tokenize(text: str, nesting: int = 0) -> list[Token]:
    """The tokens of a cleaned answer. Raises LatexError for what no answer holds."""
    tokens: list[Token] = []
    position, depth, is_spaced = 0, 0, False
    while position < len(text):
        match = MASTER.match(text, position)
        if match is None:
            raise LatexError(f"unexpected {text[position]!r}")
        position = match.end()
        if match["space"]:
            is_spaced = True
            continue
        if match["scientific"]:
            found = _scientific(match["scientific"])
        elif match["number"]:
            match = _whole_number(text, match, depth)
            position = match.end()
            found = [Token("number", match[0].replace(",", ""))]
            if ordinal := ORDINAL.match(text, position):
                position = ordinal.end()
                found.append(Token("word", ordinal[0]))
        elif match["text"] is not None:
            end = _closing_brace(text, position)
            found = _text_tokens(text[position:end], nesting)
            position = end + 1
        else:
            found = _tokens_of(match)
        if len(found) != 1 or found[0].is_spaced != is_spaced:
            found = [
                token._replace(is_spaced=is_spaced and i == 0) for i, token in enumerate(found)
            ]
        tokens += found
        is_spaced = False
        if found and found[-1].text in BRACKETS:
            depth += 1 if found[-1].text in OPENERS else -1
        if len(tokens) > MAX_TOKENS:
            raise LatexError(f"more than {MAX_TOKENS} parts")
    return tokens


def _whole_number(text: str, match: re.Match[str], depth: int) -> re.Match[str]:
    """The number with its thousands commas: in brackets, a comma separates unless a group is 0.."""
    long = THOUSANDS.match(text, match.start())
    if long is None or (depth > 0 and not re.search(r",0", long[0])):
        return match
    return long


def _scientific(text: str) -> list[Token]:
    """1.5e-7 and 1E6; not 2e-5, which may be 2e minus 5."""
    mantissa, _, exponent = text.lower().partition("e")
    power = [Token("operator", "{"), Token("number", exponent.lstrip("+-")), Token("operator", "}")]
    if exponent[0] == "-":
        power.insert(1, Token("operator", "-"))
    ten = [Token("operator", "*"), Token("number", "10"), Token("operator", "^")]
    return [Token("number", mantissa), *ten, *power]


def _tokens_of(match: re.Match[str]) -> list[Token]:
    if match["edge"]:
        return [Token("environment", f"{match['edge']} {match['environment'].rstrip('*')}")]
    if match["command"]:
        return [_command(match["command"])]
    if match["escaped"]:
        return [Token("operator", ESCAPES.get(match[0], match[0]))]
    if match["half"]:
        return [Token("half", match[0][0].lower() + ".m.")]
    if match["run"]:
        return _run_tokens(match["run"])
    return [Token("operator", {"**": "^"}.get(match[0], match[0]))]


def _command(name: str) -> Token:
    name = SYNONYMS.get(name, name)
    if name in OPERATOR_SYNONYMS or name in (r"\{", r"\}"):
        return Token("operator", name)
    if name in ("langle", "rangle"):
        return Token("operator", "\\" + name)
    return Token("command", name)


def _run_tokens(run: str) -> list[Token]:
    """Letters side by side outside \\text: a known word, an unknown long one, or a product."""
    if len(run) == 1:
        return [Token("letter", run)]
    if run in FUNCTION_WORDS:
        return [Token("command", run)]
    if run.lower() in SYMBOL_WORDS:
        return [Token("command", SYMBOL_WORDS[run.lower()])]
    if is_word(run):
        return [Token(*word_token(run))]
    return [Token("letter", letter) for letter in run]


def _text_tokens(content: str, nesting: int) -> list[Token]:
    r"""What \text{...} holds: words, a unit, a joint, or an answer that happens to stand in it."""
    if nesting > MAX_TEXT_NESTING:
        raise LatexError("text nested too deeply")
    content = content.strip(" \t\n~")
    if not content:
        return []
    if content in FUNCTION_WORDS:
        return [Token("command", content)]
    if re.search(r"[0-9\\${}=]", content):
        return tokenize(clean(content), nesting + 1)
    found: list[Token] = []
    for part in JOINT.split(content):
        if part.strip():
            found.append(Token("operator", ",") if part == "," else Token(*word_token(part)))
    return found


def _closing_brace(text: str, position: int) -> int:
    """Where the brace group that `position` is in ends."""
    depth = 1
    for index in range(position, len(text)):
        char = text[index]
        if char in "{}" and text[index - 1] != "\\":
            depth += 1 if char == "{" else -1
            if depth == 0:
                return index
    raise LatexError("unclosed brace")
