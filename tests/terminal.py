"""Which lines that a run printed are not its own but Ray's, vLLM's, torch's or DeepSpeed's."""

import re

# What they begin their lines with: a process, a level, a time; and Python's own warnings.
CHATTER = re.compile(
    r"\(\w+ pid=|^\[?(\d{4}-|[A-Z]\d{3,4} )|\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b"
    r"|Warning:|Traceback"
)


def chatter(output: str) -> list[str]:
    """The lines that a user's terminal should not show."""
    return [line for line in output.splitlines() if CHATTER.search(line)]
