"""Workers are killed, die and lie; verdicts of neighbours stay right and nothing waits for long."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rft_ray.config import VerifierConfig
from rft_ray.errors import InputError
from rft_ray.grading import grade_gsm8k
from rft_ray.types import Group, Problem, Rollout
from rft_ray.verifier import Verifier

TESTS = Path(__file__).parent
OBEY = "hostile_graders:obey"


def children() -> set[int]:
    """Living child processes of this one."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def gsm8k() -> Verifier:
    with Verifier(VerifierConfig(workers=2)) as verifier:
        yield verifier


def test_verdicts_are_those_of_the_pure_function(gsm8k: Verifier) -> None:
    texts = ["#### 4", "#### 5", "<<1+1=3>>#### 4", "4", "#### 4\x00", "\ud800#### 4", "é\n#### 4"]
    pairs = [(text, answer) for text in texts for answer in ("4", "5", "x", "\udc80")]
    assert gsm8k.grade(pairs) == [grade_gsm8k(*pair) for pair in pairs]
    assert gsm8k.grade([]) == []


def test_thousands_of_pairs_keep_their_order(gsm8k: Verifier) -> None:
    pairs = [(f"{index} #### {index % 7}", str(index % 3)) for index in range(5000)]
    assert gsm8k.grade(pairs) == [grade_gsm8k(*pair) for pair in pairs]


def test_completions_larger_than_a_pipe_pass() -> None:
    with Verifier(VerifierConfig(workers=2, max_chars=3_000_000)) as verifier:
        text = "x" * 2_000_000
        assert verifier.grade([(text + "#### 4", "4"), (text, "4")]) == ["correct", "unparsable"]


def test_a_completion_beyond_max_chars_is_not_looked_at() -> None:
    with Verifier(VerifierConfig(max_chars=100)) as verifier:
        assert verifier.grade([("x" * 95 + "#### 4", "4")]) == ["unparsable"]
        assert verifier.grade([("x" * 94 + "#### 4", "4")]) == ["correct"]


def test_groups_get_verdicts_and_rewards(gsm8k: Verifier) -> None:
    rollouts = [Rollout("a", "#### 4", sample=3), Rollout("b", "#### 5"), Rollout("a", "4")]
    (group,) = gsm8k.verify_groups([Group(Problem("p", "2+2?", "4"), rollouts)])
    assert [r.verdict for r in group.rollouts] == ["correct", "wrong", "unparsable"]
    assert [r.reward for r in group.rollouts] == [1.0, 0.0, 0.0]
    assert group.rollouts[0].sample == 3
    empty = Group(Problem("q", "", ""))
    assert gsm8k.verify_groups([empty, group, empty]) == [empty, group, empty]


@pytest.mark.parametrize(
    ("orders", "verdict", "timeout_s"),
    [
        (["sleep", "regex", "power", "fork"], "timeout", 1.0),
        (["exit", "kill", "memory", "recursion", "raise"], "error", 30.0),
    ],
)
def test_only_the_guilty_suffer(orders: list[str], verdict: str, timeout_s: float) -> None:
    config = VerifierConfig(workers=2, timeout_s=timeout_s, memory_mb=200, function=OBEY)
    pairs, expected = [], []
    for order in orders:
        pairs += [(f"correct before {order}", ""), (order, ""), (f"wrong after {order}", "")]
        expected += ["correct", verdict, "wrong"]
    before = children()
    with Verifier(config) as verifier:
        assert verifier.grade(pairs) == expected
        assert verifier.grade([("correct later", "")]) == ["correct"]
    assert children() <= before


def test_a_hanging_completion_costs_its_time_limit_and_little_more() -> None:
    with Verifier(VerifierConfig(timeout_s=1.0, function=OBEY)) as verifier:
        verifier.grade([("correct", "")])
        start = time.perf_counter()
        pairs = [(f"wrong {index}", "") for index in range(100)]
        pairs.insert(50, ("regex", ""))
        verdicts = verifier.grade(pairs)
        assert 1.0 <= time.perf_counter() - start < 3.0
    assert verdicts.pop(50) == "timeout"
    assert verdicts == ["wrong"] * 100


HOSTILE = {
    "2 MB": "x" * 2_000_000,
    "2 MB of marks": "####" * 500_000,
    "open braces": "\\boxed" + "{" * 10**5,
    "nested boxes": "\\boxed{" * 10**5 + "18" + "}" * 10**5,
    "a million digits": "#### " + "9" * 10**6,
    "a tower": "<<9**9**9**9=1>>#### 18",
    "deep parentheses": "<<" + "(" * 10**5 + "1" + ")" * 10**5 + "=1>>#### 18",
    "NULs": "#### 18" + "\0" * 1000,
    "a lone surrogate": "#### 18\ud800",
    "full-width digits": "#### \uff11\uff18",
    "right-to-left digits": "#### \u0661\u0668",
    "right-to-left override": "#### \u202e81",
    "equals signs": "=" * 10**5 + "#### 18 #### 19",
    "spaces": "#### 18" + " " * 10**6 + "x",
    "words": "the answer is 18 " + "a " * 10**5,
}


@pytest.mark.parametrize("max_chars", [20_000, 3_000_000])
def test_hostile_texts_are_decided_in_time_beside_their_neighbours(max_chars: int) -> None:
    config = VerifierConfig(timeout_s=10.0, max_chars=max_chars, check_equations=True)
    with Verifier(config) as verifier:
        verifier.grade([("#### 18", "18")])
        for name, text in HOSTILE.items():
            start = time.perf_counter()
            verdicts = verifier.grade([(f"{name} #### 18", "18"), (text, "18"), ("18", text)])
            assert time.perf_counter() - start < config.timeout_s + 1, name
            assert verdicts[0] == "correct", name
            assert verdicts[1] in ("unparsable", "miscalculated"), name
            assert verdicts[2] == "error", name


def test_a_slow_completion_does_not_hold_its_neighbours_up(tmp_path: Path) -> None:
    with Verifier(VerifierConfig(timeout_s=6.0, function="hostile_graders:mark")) as verifier:
        pairs = [("sleep", ""), *((f"mark {index}", str(tmp_path)) for index in range(20))]
        assert verifier.grade(pairs) == ["timeout", *["correct"] * 20]
        marked_at = max(path.stat().st_mtime for path in tmp_path.iterdir())
        # the last neighbour was done well before the slow one's limit
        assert time.time() - marked_at > 2.0


def test_the_limit_is_for_one_completion_not_for_a_batch() -> None:
    with Verifier(VerifierConfig(timeout_s=1.0, function=OBEY)) as verifier:
        assert verifier.grade([(f"slow {index}", "") for index in range(6)]) == ["wrong"] * 6


def test_what_a_grader_prints_and_reads_is_not_the_protocol() -> None:
    with Verifier(VerifierConfig(timeout_s=20.0, function=OBEY)) as verifier:
        pairs = [("print", ""), ("stdout", ""), ("stdin", ""), ("correct", "")]
        assert verifier.grade(pairs) == ["wrong", "wrong", "wrong", "correct"]


def test_what_is_not_a_verdict_is_an_error() -> None:
    with Verifier(VerifierConfig(function="hostile_graders:nonsense")) as verifier:
        pairs = [(kind, "") for kind in ("list", "nan", "none", "text", "bytes")]
        assert verifier.grade(pairs) == ["error"] * 5


def test_an_innocent_victim_of_a_kill_is_graded_again(tmp_path: Path) -> None:
    with Verifier(VerifierConfig(function="hostile_graders:once")) as verifier:
        assert verifier.grade([("victim", str(tmp_path / "marker"))]) == ["correct"]


def test_identical_pairs_are_graded_once() -> None:
    with Verifier(VerifierConfig(timeout_s=0.5, function=OBEY)) as verifier:
        start = time.perf_counter()
        assert verifier.grade([("sleep", "")] * 50) == ["timeout"] * 50
        assert verifier.grade([("sleep", "")] * 50) == ["timeout"] * 50
        assert time.perf_counter() - start < 10


def test_a_worker_killed_while_idle_is_replaced() -> None:
    before = children()
    with Verifier(VerifierConfig(function=OBEY)) as verifier:
        verifier.grade([("correct", "")])
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        assert verifier.grade([("correct 2", ""), ("wrong", "")]) == ["correct", "wrong"]


@pytest.mark.parametrize("kills", [1, 3, 4])
def test_a_worker_killed_while_it_starts_is_replaced_a_few_times(kills: int) -> None:
    before, killed = children(), set[int]()

    def kill_the_new() -> None:
        while len(killed) < kills:
            for pid in children() - before - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)

    killer = threading.Thread(target=kill_the_new, daemon=True)
    with Verifier(VerifierConfig(function=OBEY, workers=1)) as verifier:
        killer.start()
        if kills > 3:
            with pytest.raises(RuntimeError, match=r"did not start \(exit -9\)"):
                verifier.grade([("correct", "")])
        else:
            assert verifier.grade([("correct", "")]) == ["correct"]
        killer.join()


def test_an_interrupted_call_leaves_no_stale_replies() -> None:
    with Verifier(VerifierConfig(timeout_s=20.0, function=OBEY)) as verifier:
        verifier.grade([("correct", "")])
        main = threading.get_ident()
        timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            verifier.grade([("slow", ""), ("sleep", ""), ("wrong", "")])
        timer.join()
        assert verifier.grade([("correct 3", ""), ("wrong 3", "")]) == ["correct", "wrong"]


@pytest.mark.parametrize("grader", ["no_such_module:f", "hostile_graders:nothing", "nonsense", ":"])
def test_a_grader_that_cannot_be_loaded_is_named(grader: str) -> None:
    config = VerifierConfig(function=grader)
    with Verifier(config) as verifier, pytest.raises(InputError, match=grader):
        verifier.grade([("correct", "")])


@pytest.mark.parametrize("order", ["sleep", "power", "regex"])
def test_workers_die_with_a_killed_parent_whatever_they_are_doing(order: str) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from rft_ray.config import VerifierConfig\n"
        "from rft_ray.verifier import Verifier\n"
        f"verifier = Verifier(VerifierConfig(timeout_s=600, function={OBEY!r}))\n"
        "verifier.grade([('correct', '')])\n"
        "print(verifier._workers[0].process.pid, flush=True)\n"
        f"verifier.grade([({order!r}, '')])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    assert Path(f"/proc/{worker}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    """Whether a process is alive and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
