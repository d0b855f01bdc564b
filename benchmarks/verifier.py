"""Claim: a core verifies GSM8K 50 times as fast as math-verify does, and MATH 3 times.

    python benchmarks/verifier.py [--quick]

Both sides grade the same distinct pairs, nothing cached, one by one in a worker process that can be
killed from outside; what is measured is pairs per second of CPU time of worker and parent together,
so that other work on the machine hardly matters. Ours checks final answers only, as math-verify
does, by default without leniencies; row `math` holds responses of a model and math-verify's own
tests, which expect its leniencies, row `math, rewritten` MATH-500's answers written otherwise and
answers just beside them (`math_variants.py`); a row with `<<lhs=rhs>>` checked too is context, like
the growth with workers and the price of texts made to hang a verifier. Where the published data is
not there, generated problems are used.
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from labelled_pairs import LabelledPair, read_pairs
from math_verify_rival import MathVerify, process_cpu_seconds

GOALS = {"gsm8k": 50.0, "math": 3.0}
MATH_DATA = ("math_cot", "math_verify_tests")
REWRITTEN_EVERY = 7
Pairs = list[tuple[str, str]]


def main() -> None:
    """Measure every row, print the table and the JSON line."""
    from rft_ray.benchmark_summary import finish

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    parser.add_argument("--styles", nargs="*", choices=GOALS, default=list(GOALS))
    arguments = parser.parse_args()
    repeats = 2 if arguments.quick else 5
    rival = MathVerify()
    results = []
    for style in arguments.styles:
        results.append(compare(style, style, load_rows(style), rival, repeats))
    if "math" in arguments.styles and (rewritten := read_pairs("math_rewritten")):
        some = rewritten[::REWRITTEN_EVERY]
        results.append(compare("math, rewritten", "math", some, rival, repeats))
    rival.close()
    if "gsm8k" in arguments.styles:
        results += context_rows(load_rows("gsm8k"), repeats)
    if "math" in arguments.styles:
        results.append(hanging_row("math", load_rows("math"), repeats))
    finish(__file__, results, rival_versions={"math-verify": rival.version})


def load_rows(style: str) -> list[LabelledPair]:
    """The labelled pairs of a style, distinct, or generated ones."""
    names = MATH_DATA if style == "math" else ("gsm8k",)
    rows = [row for name in names for row in read_pairs(name)] or generated_rows(style)
    return list({(row.completion, row.answer): row for row in rows}.values())


def generated_rows(style: str) -> list[LabelledPair]:
    """Word problems of ours with their solutions, half of them beside a wrong answer."""
    from rft_ray.word_problems import generate_word_problems

    rows = []
    for index, problem in enumerate(generate_word_problems(1500, seed=0, split="train")):
        text, is_right = str(problem.solution), index % 2 == 0
        if style == "math":
            text = text.replace("####", "So it is $\\boxed{") + "}$"
        answer = problem.answer if is_right else str(int(problem.answer) + 1)
        rows.append(LabelledPair(problem.id, text, answer, is_right))
    return rows


def compare(
    what: str, style: str, rows: list[LabelledPair], rival: MathVerify, repeats: int
) -> dict[str, Any]:
    """The row with the goal: rates and errors of both sides on the same pairs."""
    pairs = [(row.completion, row.answer) for row in rows]
    labels = [row.is_right for row in rows]
    ours, verdicts = measure_ours(style, pairs, repeats, check_calculations=False)
    theirs, rival_verdicts = measure_rival(rival, pairs, max(1, repeats // 2))
    mine, his = statistics.median(ours), statistics.median(theirs)
    print(f"{what}: {len(pairs)} pairs, pairs per CPU second")
    for name, rates, found in (
        ("ours", ours, verdicts),
        ("math-verify", theirs, rival_verdicts),
    ):
        precision, recall = precision_and_recall(found, labels)
        print(
            f"  {name:12} {statistics.median(rates):10.0f}   {[round(rate) for rate in rates]}   "
            f"precision {precision:.2%}, recall {recall:.2%}"
        )
    print(f"  ratio        {mine / his:10.1f}   from {min(ours) / max(theirs):.1f}", end="")
    print(f" to {max(ours) / min(theirs):.1f}")
    row = result_row(what, mine, "math-verify", his, GOALS[style])
    for name, found in (("ours", verdicts), ("rival", rival_verdicts)):
        row[f"{name}_precision"], row[f"{name}_recall"] = precision_and_recall(found, labels)
    return row


def measure_ours(
    style: str, pairs: Pairs, repeats: int, **options: Any
) -> tuple[list[float], list[str]]:
    """Pairs per CPU second of each repeat, in new processes each time, and the verdicts."""
    from rft_ray.verifier import Verifier
    from rft_ray.verifier_config import VerifierConfig

    rates, verdicts = [], []
    for _ in range(repeats):
        with Verifier(VerifierConfig(style=style, **options)) as verifier:
            verifier.grade([("warm \\boxed{\\frac{1}{2}}", "\\frac{2}{4}")])
            seconds, verdicts = cpu_seconds(lambda v=verifier: v.grade(pairs), worker_seconds)
        rates.append(len(pairs) / seconds)
    return rates, verdicts


def measure_rival(
    rival: MathVerify, pairs: Pairs, repeats: int
) -> tuple[list[float], list[str]]:
    """The same for math-verify."""
    rates, verdicts = [], []
    rival.grade([("warm \\boxed{\\frac{1}{2}}", "\\frac{2}{4}")])
    for _ in range(repeats):
        seconds, verdicts = cpu_seconds(lambda: rival.grade(pairs), rival.used_cpu_seconds)
        rates.append(len(pairs) / seconds)
    return rates, verdicts


def cpu_seconds(work: Callable[[], Any], other: Callable[[], float]) -> tuple[float, Any]:
    """CPU time that some work takes in this process and by `other`, and what it returns."""
    before = own_seconds() + other()
    result = work()
    return own_seconds() + other() - before, result


def own_seconds() -> float:
    """CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def worker_seconds() -> float:
    """CPU time of our worker processes: those alive, and those that were killed."""
    import psutil

    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = [
        process_cpu_seconds(child.pid)
        for child in psutil.Process().children()
        if "verifier_worker" in " ".join(child.cmdline())
    ]
    return sum(alive) + ended.ru_utime + ended.ru_stime


def precision_and_recall(verdicts: Sequence[str], labels: Sequence[bool]) -> tuple[float, float]:
    """Share of what is called correct that is right, and of what is right that is called so."""
    called = [verdict == "correct" for verdict in verdicts]
    both = sum(c and label for c, label in zip(called, labels, strict=True))
    return both / max(1, sum(called)), both / max(1, sum(labels))


def context_rows(rows: list[LabelledPair], repeats: int) -> list[dict[str, Any]]:
    """Style gsm8k with calculations checked, with more workers, and with hanging texts."""
    pairs = copies([(row.completion, row.answer) for row in rows])
    plain = statistics.median(measure_ours("gsm8k", pairs, repeats, check_calculations=False)[0])
    full = statistics.median(measure_ours("gsm8k", pairs, repeats)[0])
    print(f"gsm8k with calculations checked: {full:.0f} pairs per CPU second")
    cores = os.cpu_count() or 1
    one, many = (wall_rate(pairs, workers) for workers in (1, cores))
    print(f"gsm8k: {one:.0f} pairs/s with 1 worker, {many:.0f} with {cores} (wall clock)")
    return [
        result_row("gsm8k with calculations", full, "without", plain, 0.5, info=True),
        result_row(f"gsm8k, {cores} workers", many, "1 worker", one, 1.0, info=True),
        hanging_row("gsm8k", rows, repeats),
    ]


def copies(pairs: Pairs) -> Pairs:
    """Eight distinct texts of each, so that there is something to measure."""
    return [(f"{number}. {text}", answer) for number in range(8) for text, answer in pairs]


def wall_rate(pairs: Pairs, workers: int) -> float:
    """Pairs per second of wall-clock time."""
    from rft_ray.verifier import Verifier
    from rft_ray.verifier_config import VerifierConfig

    with Verifier(VerifierConfig(workers=workers)) as verifier:
        verifier.grade([(f"{number} #### 1", "1") for number in range(100 * workers)])
        started = time.perf_counter()
        verifier.grade(pairs)
        return len(pairs) / (time.perf_counter() - started)


def hanging_row(style: str, rows: list[LabelledPair], repeats: int) -> dict[str, Any]:
    """What it costs when one text in a hundred is made to hang a verifier."""
    pairs = [(row.completion, row.answer) for row in rows]
    if style == "gsm8k":
        pairs = copies(pairs)
    hostile = list(pairs)
    for number, index in enumerate(range(50, len(pairs), 100)):
        hostile[index] = (hanging_text(number), pairs[index][1])
    # A core's speed drifts: the two take turns.
    turns = [
        [measure_ours(style, some, 1, check_calculations=False)[0][0] for some in (pairs, hostile)]
        for _ in range(2 * repeats)
    ]
    plain, with_hostile = zip(*turns, strict=True)
    kept = statistics.median(b / a for a, b in zip(plain, with_hostile, strict=True))
    print(f"{style}, 1% of texts made to hang: {1 - kept:.1%} lost")
    medians = statistics.median(with_hostile), "none", statistics.median(plain)
    return {**result_row(f"{style}, 1% hanging texts", *medians, 0.9, info=True), "ratio": kept}


def hanging_text(number: int) -> str:
    """A text that has made some verifier hang, each one another."""
    fraction = "\\frac{1}{1+"
    kinds = [
        f"#### {'9' * (10_000 + number)}",
        f"<<{'9**' * 50}9={number}>>\n#### 18",
        f"{number} " + "\\boxed{" * 2000,
        f"\\boxed{{9^{{9^{{9^{{9^{{{number}}}}}}}}}}}",
        f"\\boxed{{(x+{number})^{{100000}}}}",
        f"\\boxed{{{10**9 + number}!}}",
        f"\\boxed{{\\sum_{{k=1}}^{{10^{{12}}}} \\frac{{{number}}}{{k}}}}",
        f"\\boxed{{{'(' * 3000}{number}{')' * 3000}}}",
        f"\\boxed{{{fraction * 150}{number}{'}' * 150}}}",
        f"the answer is {number} " * 500,
    ]
    return kinds[number % len(kinds)]


def result_row(
    what: str, ours: float, rival: str, value: float, goal: float, info: bool = False
) -> dict[str, Any]:
    """One row of the benchmark contract."""
    from rft_ray.benchmark_summary import row

    unit = "pairs/s" if "workers" in what else "pairs per CPU second"
    own = row(what, ours, rival, value, goal, unit)
    return {**own, "info": True} if info else own


if __name__ == "__main__":
    main()
