r"""Where a solution states its final answer: pure functions from a text to the answers' texts.

In this order: every `\boxed{}`; what follows `####` and "the answer is"; a text that is short; and
the only formula or number of the last sentence. All of it is linear in the length of the text. What
stands before the last box in prose ("so the answer is 5 ... no") does not count, but boxes do.
"""

import re
from dataclasses import dataclass

from rft_ray.stated_answers import ANSWER_MARK, after_thoughts

MAX_ANSWER_CHARS = 2_000
MAX_BARE_CHARS = 300
MAX_TAIL_CHARS = 4_000
MAX_STATEMENTS = 20
MAX_EMPTY_CHARS = 100

BOX_PART = re.compile(r"\\{1,2}(?:boxed|fbox)\s{0,3}\{|\\[{}\\]|[{}]")
BARE_BOX = re.compile(r"\\boxed\s{0,3}([^\s{}$\\]{1,50})")
# What belongs to the answer although it stands behind the box: 28} percent, 204}_5.
BOX_SUFFIX = re.compile(
    r"\s{0,3}\$?\s{0,3}(\\?%|percentage\b|percent\b|pct\b)|\s{0,3}(_\{?[0-9]{1,2}\}?)"
)
# The sign of a boxed number that stands outside; 7 - \boxed{5} = 2 is a blank that was filled in.
LEADING_MINUS = re.compile(r"(?:[=$(\[:]|is|\n|\A)\s{0,3}[-\u2212]\s{0,3}\Z")
MAX_BEFORE_CHARS = 20
DENIED_BEFORE = re.compile(r"(?:\bnot|n't)\s{1,3}\$?\Z")
DENIED_BEHIND = re.compile(
    r"\s{0,3}\$?\s{0,3}(?:isn't|(?:is|was|would be)\s+(?:not|wrong|incorrect|false))\b"
)
STATEMENT = re.compile(
    r"\banswers?\*{0,2}\s{0,3}(?:is|are|=|:)\*{0,2}\s{0,3}(?:(?:simply|thus|therefore)\b)?:?\s{0,9}",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<!\\)[.!?](?=[\"'*]{0,3}(?:\s|$))|\n|<\||$")
DISPLAYS = ((r"\[", r"\]"), ("$$", "$$"))
FORMULA = re.compile(
    r"\$\$(.{1,600}?)\$\$|\\\[(.{1,600}?)\\\]|\\\((.{1,600}?)\\\)|(?<!\\)\$([^$]{1,600})(?<!\\)\$",
    re.DOTALL,
)
LONE_NUMBER = re.compile(
    r"(?<![\w.,/^])[-+]?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?%?(?![\w/^])"
)
MARKUP = re.compile(r"<\|[a-z_]{1,20}\|>[a-z]{0,10}\s*|</?[a-z]{1,12}>")
# Words that make something else of the number beside them: a bound, a part, a multiple.
NO_VALUE = re.compile(
    r"\b(?:at (?:least|most)|(?:more|less|fewer|greater|larger|smaller|higher|lower) than|exceeds?"
    r"|above|below|over|under|up to|between|about|around|approximately|roughly|nearly|almost|near"
    r"|close to|half|twice|thrice|double|squared|cubed|(?:square|cube) of|root|power|negative"
    r"|minus|plus|times|sum|product|multiple|divisible|factor|digits?|anything|something|nothing|like|but|except|if"
    r"|whether|when(?=[^:]*,))\b",
    re.IGNORECASE,
)
# What is supposed, looked for or named by its number is not concluded.
NO_CONCLUSION = re.compile(
    r"\b(?:suppose|assum(?:e|ing)|let us|let's|try|contradict\w*|fail(?:s|ed)?|no"
    r"|impossible|unless)\b"
    r"|\b(?:step|part|equation|theorem|lemma|case|example|figure|line|problem|question|section"
    r"|chapter|method|claim|proposition|page|item|exercise)s?\s{0,3}[#$]?\(?[0-9]",
    re.IGNORECASE,
)
RUNNING_WORDS = re.compile(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}")
HEDGE = re.compile(r"\b(?:or|not|cannot|maybe|perhaps|either|wrong|incorrect)\b|n't", re.IGNORECASE)
# Two words to begin with: a sentence, not an answer.
PROSE = re.compile(r"\W{0,3}(?:[A-Za-z]{2,}|[aAI]),?\s+(?:[A-Za-z]{2,}\b|[a-z]\b|\$|\\[\[(])")
LAST_VERB = re.compile(r"\b(?:is|are|equals|be|equal to)\b(?:\s+(?:equal to|exactly|thus|just))?:?")
EMPTY_BOX = re.compile(r"(?:\\(?:phantom|hspace|square)\s{0,3}(?:\{[^{}]*\})?|[\s~?_.]|\\[,; ])*")
NO_CONTENT = re.compile(r"^[\W_]*$|I hope it is correct", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FinalAnswers:
    """`boxes` are one answer, or several together; every one of `statements` is an answer.

    `behind` has for each box what may belong to it: the % of 28}%, the _5 of 204}_5, or "".
    """

    boxes: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them, in order of precedence."""
        return self.boxes + self.statements


def find_final_answers(text: str) -> FinalAnswers:
    r"""The final answers that a text states, without those that prose before a box states.

    "so $x=\boxed{5}$" -> boxes ("5",);  "The answer is 5." -> statements ("5",);  "5" -> the same.
    """
    text = after_thoughts(text)
    boxes, end = find_boxes(text)
    marked = [part.partition("\n")[0].strip() for part in text.split(ANSWER_MARK)[1:]]
    statements = [*marked[-MAX_STATEMENTS:], *find_statements(text, end)]
    if boxes or statements:
        kept = (s for s in dict.fromkeys(statements) if s and r"\boxed" not in s)
        texts, behind = zip(*dict.fromkeys(boxes), strict=True) if boxes else ((), ())
        return FinalAnswers(texts, tuple(kept), behind=behind)
    bare = find_unmarked(text)
    return FinalAnswers((), (bare,) if bare else ())


def find_boxes(text: str) -> tuple[list[tuple[str, str]], int]:
    r"""All outermost \boxed{}: contents, and what stands behind; and where the last one ends.

    r"\boxed{28}\%, \boxed{5}" -> [("28", r"\%"), ("5", "")], 21
    """
    if "boxed" not in text and "fbox" not in text:
        return [], 0
    found: list[tuple[str, str]] = []
    depth, opened, start, end = 0, -1, 0, 0
    minus = before = ""
    for match in BOX_PART.finditer(text):
        part = match[0]
        if part == "}":
            depth -= 1
            if opened == depth:
                opened, inside = -1, text[start : match.start()].strip()
                if EMPTY_BOX.fullmatch(inside[:MAX_EMPTY_CHARS]):
                    continue  # a blank to fill in, in the problem told again
                if DENIED_BEFORE.search(before) or DENIED_BEHIND.match(text, match.end()):
                    continue
                end = match.end()
                suffix = BOX_SUFFIX.match(text, end)
                found.append((minus + inside, (suffix[1] or suffix[2]) if suffix else ""))
            depth = max(depth, 0)
        elif part[-1] == "{" and part != r"\{":
            if len(part) > 1 and opened < 0:
                opened, start = depth, match.end()
                before = text[max(0, match.start() - MAX_BEFORE_CHARS) : match.start()]
                minus = "-" if LEADING_MINUS.search(before) else ""
            depth += 1
    if not found and (bare := BARE_BOX.search(text)):
        return [(bare[1], "")], bare.end()
    return found, end


def find_statements(text: str, start: int = 0) -> list[str]:
    """What follows the last occurrences of "answer is" and the like, up to the sentence's end."""
    ends = [match.end() for match in STATEMENT.finditer(text, start)][-MAX_STATEMENTS:]
    said = [_sentence(text[end : end + MAX_ANSWER_CHARS]) for end in ends]
    return [sentence for sentence in said if not STATEMENT.search(sentence)]


def _sentence(text: str) -> str:
    text = text.lstrip()
    for opener, closer in DISPLAYS:
        if text.startswith(opener):
            return text[len(opener) :].partition(closer)[0].strip()
    end = SENTENCE_END.search(text)
    return text[: end.start()].strip(" *") if end else text


def find_unmarked(text: str) -> str | None:
    """A text that is nothing but an answer, or else its last sentence unless that one hedges."""
    bare = MARKUP.sub(" ", text[-MAX_TAIL_CHARS:]).strip()
    if len(text) <= MAX_BARE_CHARS and not RUNNING_WORDS.search(bare):
        return None if PROSE.match(bare) and _hedges(bare) else bare
    last = _last_sentence(bare)
    return None if _hedges(last) else last


def _hedges(sentence: str) -> bool:
    """Whether it asks, denies or offers a choice, so that a number in it is no answer."""
    return sentence.rstrip(" *").endswith("?") or HEDGE.search(sentence) is not None


def readings(text: str) -> tuple[str, ...]:
    """How a stated answer may be read, best first: as it stands, or what its sentence says.

    "The volume of $V$ is 120" -> ("120",);  "by 5 cm" -> ("5",);  "x=5" -> ("x=5",)
    """
    if not PROSE.match(text) or HEDGE.search(text):
        return (text,)
    if not _concludes(text):
        return () if re.search(r"[0-9\\$]", text) else (text,)
    said = LAST_VERB.split(text)[-1].strip() if LAST_VERB.search(text) else ""
    found = [said] if re.search(r"[0-9\\$]", said) else []
    formulas = _formulas(text)
    if len(formulas) == 1 and not LONE_NUMBER.search(FORMULA.sub(" ", text)):
        found.append(formulas[0])
    numbers = LONE_NUMBER.findall(text)
    if not formulas and len(numbers) == 1:
        found.append(numbers[0])
    return (*found, said or text, text)


def _concludes(text: str) -> bool:
    """Whether a sentence says what something is: "the sum is 5", not "half of 5" or "step 5"."""
    value = LAST_VERB.split(text)[-1]
    if not re.search(r"[0-9\\$]", value):
        value = text
    return not (NO_VALUE.search(FORMULA.sub(" ", value)) or NO_CONCLUSION.search(text))


def _formulas(text: str) -> list[str]:
    return [next(filter(None, groups)) for groups in FORMULA.findall(text)]


def _last_sentence(text: str) -> str:
    """The last sentence with content; a formula is never cut."""
    masked = FORMULA.sub(lambda match: "F" * len(match[0]), text)
    cuts = [match.end() for match in re.finditer(r"(?<!\\)[.!?](?=\s)|\n|FF(?=\s[A-Z])", masked)]
    pieces = [text[a:b].strip() for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    return next((piece for piece in reversed(pieces) if not NO_CONTENT.search(piece)), "")
