"""Where the time of an online loop went: phases for the report, from the lines of its steps.

The trainer's view divides the loop's time without overlap: it trains, saves, refreshes the
samplers, has them fall asleep where they share its GPUs, or waits, for rollouts or for an
evaluation, which is a phase of its own already. All lines count, also those of steps that were
trained again: their time was spent. Left out: the start of the trainer and the refresh before the
first step.
"""

from rft_ray.page import Html, Line, tag
from rft_ray.training_report import numbers

PHASES = {"train": "online training", "refresh": "online refresh", "save": "online saving"}
SLEEP = "online turns"
WAIT = "online wait for rollouts"


def online_phases(steps: list[Line]) -> list[Line]:
    """`phase` lines, one a kind of work, for the `online_step` lines of a run."""
    seconds = {name: _total(steps, part) for part, name in PHASES.items()}
    if asleep := _total(steps, "sleep"):
        seconds[SLEEP] = asleep
    seconds[WAIT] = max(0.0, _total(steps, "wait") - _total(steps, "evaluate"))
    return [{"kind": "phase", "phase": name, "seconds": own} for name, own in seconds.items()]


def idle_shares(steps: list[Line]) -> Html:
    """How much of the loop each side did nothing, in words; empty without steps."""
    whole = sum(_total(steps, part) for part in ("wait", "sleep", *PHASES))
    if not whole:
        return Html("")
    wait, evaluate = _total(steps, "wait"), _total(steps, "evaluate")
    asked = min(whole, _total(steps, "sample") + evaluate)
    text = (
        f"Of the {whole:,.1f} seconds of the online loop the trainer was idle {wait / whole:.1%} "
        f"and the samplers {1 - asked / whole:.1%}; while the target was evaluated, "
        f"{min(evaluate, whole) / whole:.1%}, the trainer waited and the samplers worked."
    )
    return tag("p", text, class_="note")


def _total(steps: list[Line], part: str) -> float:
    return sum(numbers(steps, f"{part}_seconds"))
