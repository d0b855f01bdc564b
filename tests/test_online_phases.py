"""Where an online loop's time went. Run: pytest tests/test_online_phases.py"""

from pathlib import Path

import pytest

from rft_ray.online_phases import idle_shares, online_phases
from tests.made_up_run import log, online_line, start_run
from tests.test_report import page_of

SECONDS = {"wait_seconds": 3.0, "train_seconds": 4.0, "save_seconds": 1.0, "refresh_seconds": 2.0,
           "sample_seconds": 5.0, "evaluate_seconds": 1.0}  # fmt: skip
STEPS = [online_line(1, **SECONDS), online_line(2, **{**SECONDS, "evaluate_seconds": 0.0})]


def test_phases_divide_the_loop_and_leave_evaluation_to_its_own() -> None:
    seconds = {line["phase"]: line["seconds"] for line in online_phases(STEPS)}
    assert seconds == {
        "online training": 8.0,
        "online refresh": 4.0,
        "online saving": 2.0,
        "online wait for rollouts": 5.0,
    }
    # with the second of evaluation these are the 20 seconds of the trainer
    assert sum(seconds.values()) + 1.0 == 20.0


def test_lines_from_before_evaluation_was_timed_have_it_in_the_wait() -> None:
    old = {key: value for key, value in STEPS[0].items() if key != "evaluate_seconds"}
    assert online_phases([old])[-1]["seconds"] == 3.0


def test_idle_shares_are_of_the_whole_loop() -> None:
    text = str(idle_shares(STEPS))
    assert "the 20.0 seconds" in text and "trainer was idle 30.0%" in text
    # ten seconds of sampling and one of evaluation
    assert "samplers 45.0%" in text and "evaluated, 5.0%" in text


def test_a_run_without_steps_has_no_shares() -> None:
    assert idle_shares([]) == ""
    assert all(line["seconds"] == 0 for line in online_phases([]))


@pytest.mark.parametrize("again", [False, True])
def test_the_report_has_the_phases_also_of_steps_trained_again(
    tmp_path: Path, again: bool
) -> None:
    start_run(tmp_path / "run")
    log(tmp_path / "run", *STEPS, *(STEPS[1:] if again else []))
    log(tmp_path / "run", {"kind": "phase", "phase": "evaluate", "stage": "online", "seconds": 1.0})
    page = page_of(tmp_path / "run")
    [[_, *rows]] = page.table("phase", "share")
    seconds = {phase.strip(): spent for phase, spent, *_ in rows}
    assert seconds["online training"] == ("12.0" if again else "8.0")
    assert seconds["evaluate"] == "1.0"
    assert "of the online loop the trainer was idle" in page.text
