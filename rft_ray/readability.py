"""Is a completion fit to be read and learned from? Filters by name, pure and in linear time.

Sampled solutions drift into other languages, loops and endless texts while their answers stay
right, and what is learned from them comes back more often (DeepSeek-R1 drops such samples before
its fine-tuning). A filter refuses a right rollout; it never makes it wrong. Left out: code blocks
and long paragraphs, which some prompts ask for.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal

ReadabilityFilter = Literal["mixed_languages", "repetition", "length"]

MAX_READABLE_CHARS = 4_000
MIN_FOREIGN_LETTERS = 3
MAX_LATIN_SHARE = 0.3
WINDOW_WORDS, WINDOW_CHARS = 8, 24
MAX_REPEATED_SHARE = 0.3
# formulas use them in every language
SHARED_SCRIPTS = {"GREEK", "MATHEMATICAL"}
SCRIPT_FAMILY = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HALFWIDTH": "CJK", "FULLWIDTH": "LATIN"}


def first_objection(text: str, names: Iterable[str]) -> str | None:
    """The first of the named filters that refuses the text, or None."""
    return next((name for name in names if FILTERS[name](text)), None)


def has_mixed_languages(text: str) -> bool:
    """Letters of another script among those of the text's own, three or more.

    Greek letters are mathematics; Latin ones are names and variables in any language, up to three
    tenths of the letters.
    """
    if text.isascii():
        return False
    letters = Counter[str]()
    for character, count in Counter(text).items():
        if script := _script(character):
            letters[script] += count
    if len(letters) < 2:
        return False
    total, (main, _) = letters.total(), letters.most_common(1)[0]
    latin = letters.pop("LATIN", 0)
    foreign = letters.total() - letters[main] if main != "LATIN" else letters.total()
    return foreign >= MIN_FOREIGN_LETTERS or (main != "LATIN" and latin > MAX_LATIN_SHARE * total)


def is_repetitive(text: str) -> bool:
    """More than three tenths of the text's windows of eight words have been there before.

    A text with next to no spaces (Chinese, a loop of one sign) is looked at in windows of 24
    characters.
    """
    words: list[str] | str = text.split()
    size = WINDOW_WORDS
    if len(words) * 20 < len(text):
        words, size = text, WINDOW_CHARS
    count = len(words) - size + 1
    if count < 2:
        return False
    windows = {hash(tuple(words[start : start + size])) for start in range(count)}
    return count - len(windows) > MAX_REPEATED_SHARE * count


def is_too_long(text: str) -> bool:
    """Longer than MAX_READABLE_CHARS characters."""
    return len(text) > MAX_READABLE_CHARS


@lru_cache(maxsize=10_000)
def _script(character: str) -> str | None:
    """The script of a letter by its Unicode name: "LATIN", "CJK", "CYRILLIC"; None for others."""
    if not character.isalpha():
        return None
    script = unicodedata.name(character, "").partition(" ")[0]
    if not script or script in SHARED_SCRIPTS:
        return None
    return SCRIPT_FAMILY.get(script, script)


FILTERS: dict[str, Callable[[str], bool]] = {
    "mixed_languages": has_mixed_languages,
    "repetition": is_repetitive,
    "length": is_too_long,
}
