"""Runs that stop themselves, and what does not count as one. Run: pytest tests/test_stop_reason.py

The exceptions are Ray's own, made as it makes them; Ray itself is not started.
"""

import traceback
from collections.abc import Callable

import pytest
from ray.exceptions import RayTaskError, UserCodeException
from ray.train import WorkerGroupError

from rft_ray.cli import COMMANDS, main
from rft_ray.live_training import failure_behind
from rft_ray.offline import NothingAcceptedError
from rft_ray.sampling import ParityError, SamplerUnavailableError
from rft_ray.selection import group_statistics
from rft_ray.stop_reason import stop_reason
from rft_ray.tally import Tally
from rft_ray.types import Group, Problem, Rollout, Verdict

PARITY = ParityError("after loading x they differ by up to 13; tolerated: 0.001")


def from_a_task(function: Callable[[], None]) -> Exception:
    """What the driver sees of an exception that a task raises."""
    with pytest.raises(Exception) as raised:
        function()
    text = "".join(traceback.format_exception(raised.value))
    error = RayTaskError("f", text, raised.value, proctitle="ray::f", pid=1, ip="127.0.0.1")
    return error.as_instanceof_cause()


def raise_parity() -> None:
    raise PARITY


def fail_block(error: Exception, then: Exception | None = None) -> None:
    """As Ray Data's actors do; `then` is raised where `error` is handled."""
    try:
        try:
            raise error
        except Exception:
            if then is None:
                raise
            raise then from error
    except Exception as last:
        raise UserCodeException("UDF failed to process a data block.") from last


def test_a_stop_is_found_behind_a_remote_call() -> None:
    error = from_a_task(raise_parity)
    assert stop_reason(error) == str(PARITY) != str(error)
    assert stop_reason(PARITY) == str(PARITY)


def test_a_stop_is_found_in_a_stream_which_keeps_its_text() -> None:
    gone = SamplerUnavailableError("the sampler of a has not answered in 318 s: it is dead")
    assert stop_reason(from_a_task(lambda: fail_block(gone))) == str(gone)
    behind = from_a_task(raise_parity)
    assert stop_reason(from_a_task(lambda: fail_block(behind))) == str(PARITY)


def test_a_stop_is_found_where_all_ranks_have_it() -> None:
    assert stop_reason(WorkerGroupError("text", {0: PARITY, 1: PARITY})) == str(PARITY)
    assert stop_reason(WorkerGroupError("text", {0: PARITY, 1: TypeError("a bug")})) is None


def test_a_bug_is_no_stop_though_a_stop_came_before_it() -> None:
    bug = TypeError("a bug")
    assert stop_reason(from_a_task(lambda: fail_block(PARITY, then=bug))) is None
    assert stop_reason(from_a_task(lambda: fail_block(bug))) is None
    bug.__cause__ = bug.__context__ = PARITY
    assert stop_reason(bug) is None
    assert stop_reason(RuntimeError("the same base")) is None


def test_samplers_that_a_dead_trainer_left_without_weights_are_not_the_reason() -> None:
    gone = SamplerUnavailableError("the sampler of a has not answered in 318 s: asleep while the")
    failure = RuntimeError("CUDA out of memory")
    assert failure_behind(gone, failure) is failure
    assert failure_behind(gone, None) is None
    # An interrupt, or a bug of the driver's own, is what it is.
    assert failure_behind(KeyboardInterrupt(), failure) is None
    assert failure_behind(TypeError("a bug"), failure) is None


def test_the_command_says_where_the_logs_are_and_then_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(args: object) -> int:
        error = from_a_task(raise_parity)
        error.add_note("logs: there")
        raise error

    monkeypatch.setitem(COMMANDS, "doctor", stop)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == f"logs: there\nrft-ray: error: {PARITY}\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setitem(COMMANDS, "doctor", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def test_nothing_accepted_says_what_was_sampled_and_what_to_do() -> None:
    verdicts: list[Verdict] = ["wrong", "wrong", "unparsable"]
    rollouts = [Rollout("a", "no", verdict=verdict) for verdict in verdicts]
    tally = Tally.of(["a"])
    for number in range(2):
        tally.add(group_statistics(Group(Problem(str(number), "2+2?", "4"), rollouts)))
    told = "what to do is in cluster/TROUBLESHOOTING.md, 'Nothing was accepted'"
    counts = "round 1, 2 problems: no rollout was accepted: 4 wrong, 2 unparsable"
    error = NothingAcceptedError.of(tally, 1)
    assert stop_reason(error) == str(error) == f"{counts}; {told}"


def test_nothing_sampled_is_said() -> None:
    tally = Tally.of(["a"])
    tally.add(group_statistics(Group(Problem("1", "too long", "4"), [])))
    assert "no rollout was accepted: there are none;" in str(NothingAcceptedError.of(tally, 0))
