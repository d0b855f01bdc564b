"""The two exceptions that end a command without a traceback, and text as it may be shown.

The command line turns "the user's input is wrong" into a single line on standard error and exit
code 2, "the run stopped itself" into one and exit code 1. Everything else is a fault of ours or of
the machine and keeps its traceback. No hierarchy of wrong input: a caller never needs to tell one
from another.
"""

import re


class InputError(Exception):
    """The user's input is wrong; the message names the file, line and field where there are any."""


class StoppedError(RuntimeError):
    """A run found that it must not or cannot go on; the message says why, in one line."""


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
