"""The one exception that means "the user's input is wrong", and text as it may be shown.

The command line turns the exception into a single line on standard error and exit code 2.
Everything else is a fault of ours or of the machine and keeps its traceback. No hierarchy: a caller
never needs to tell one wrong input from another.
"""

import re


class InputError(Exception):
    """The user's input is wrong; the message names the file, line and field where there are any."""


def one_line(text: str, max_chars: int | None = None) -> str:
    """Text as it may be shown: hostile names must not break the line or drive the terminal.

    Control characters become U+FFFD, lone surrogates a question mark; what is longer than
    `max_chars` is cut and ends with an ellipsis.
    """
    if max_chars is not None and len(text) > max_chars:
        text = text[: max_chars - 1] + "\u2026"
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", "\ufffd", text)
    return text.encode("utf-8", "replace").decode("utf-8")


def first_words(text: str, max_chars: int) -> str:
    """The beginning of a text on one line, its white space (line ends too) as single spaces."""
    return one_line(" ".join(text.split()), max_chars)
