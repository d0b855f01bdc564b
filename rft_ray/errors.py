"""The one exception that means "the user's input is wrong".

The command line turns it into a single line on standard error and exit code 2. Everything else is a
fault of ours or of the machine and keeps its traceback. No hierarchy: a caller never needs to tell
one wrong input from another.
"""


class InputError(Exception):
    """The user's input is wrong; the message names the file, line and field where there are any."""
