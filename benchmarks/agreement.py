"""Claim: what the verifier calls right is right, and little that is right escapes it.

    python benchmarks/agreement.py [--data gsm8k math_cot ...] [--style STYLE]

Grades labelled completions with our verifier and with math-verify, final answers only, and counts
against the labels: false positives (called correct, labelled wrong), false negatives, time-outs;
disagreements on rows whose label is debatable are counted apart. Every disagreement of ours is
listed, with why it is right to disagree where `benchmarks/disagreements.json` says so.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from labelled_pairs import DATASETS, LabelledPair, read_pairs
from math_verify_rival import MathVerify

REASONS = Path(__file__).with_name("disagreements.json")
COLUMNS = ("false_positives", "false_negatives", "on_debatable", "timeouts", "errors")


def main() -> None:
    """Print a table and the disagreements of every data set, and the JSON line."""
    from rft_ray.benchmark_summary import finish

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="*", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--style", help="instead of the data set's own")
    parser.add_argument("--rows", type=int, help="rows a data set, from the front")
    parser.add_argument("--quick", action="store_true", help="500 rows a data set")
    arguments = parser.parse_args()
    rival = MathVerify()
    results: list[dict[str, Any]] = []
    print(f"{'data set':20} {'verifier':18} {'rows':>6}" + "".join(f"{c:>16}" for c in COLUMNS))
    for name in arguments.data:
        rows = read_pairs(name)[: arguments.rows or (500 if arguments.quick else None)]
        if not rows:
            print(f"{name:20} is not here")
            continue
        ours = grade_ours(rows, arguments.style or DATASETS[name][0])
        theirs = rival.grade([(row.completion, row.answer) for row in rows])
        own, other = compare(rows, ours), compare(rows, theirs)
        for verifier, counts in (("rft_ray", own), (f"math-verify {rival.version}", other)):
            print(f"{name:20} {verifier:18} {len(rows):6d}", end="")
            print("".join(f"{counts[column]:16d}" for column in COLUMNS))
        list_disagreements(rows, ours)
        results += result_rows(name, own, other)
    rival.close()
    finish(__file__, results, rival_versions={"math-verify": rival.version})


def grade_ours(rows: list[LabelledPair], style: str) -> list[str]:
    """Our verdicts, on the final answer alone."""
    from rft_ray.verifier import Verifier
    from rft_ray.verifier_config import VerifierConfig

    config = VerifierConfig(style=style, check_calculations=False)
    with Verifier(config) as verifier:
        return verifier.grade([(row.completion, row.answer) for row in rows])


def compare(rows: list[LabelledPair], verdicts: list[str]) -> Counter[str]:
    """Counts of verdicts that the labels contradict, and of those that say nothing."""
    counts = Counter[str]()
    for row, verdict in zip(rows, verdicts, strict=True):
        is_correct = verdict == "correct"
        if row.is_debatable:
            counts["on_debatable"] += is_correct != row.is_right
        else:
            counts["false_positives"] += is_correct and not row.is_right
            counts["false_negatives"] += row.is_right and not is_correct
        counts["timeouts"] += verdict == "timeout"
        counts["errors"] += verdict == "error"
    return counts


def list_disagreements(rows: list[LabelledPair], verdicts: list[str]) -> None:
    """A line for every verdict of ours that its label contradicts."""
    reasons = json.loads(REASONS.read_text()) if REASONS.exists() else {}
    for row, verdict in zip(rows, verdicts, strict=True):
        if (verdict == "correct") == row.is_right:
            continue
        label = "right" if row.is_right else "wrong"
        why = reasons.get(row.id) or ("the label is debatable" if row.is_debatable else "NO REASON")
        end = row.completion.strip()[-60:]
        print(f"  {row.id}: labelled {label}, ours {verdict}: {why}")
        print(f"    answer {row.answer!r}, completion ends {end!r}")


def result_rows(name: str, ours: Counter[str], theirs: Counter[str]) -> list[dict[str, Any]]:
    """Rows of the benchmark contract; fewer is better, so the ratio is theirs to ours plus one."""
    from rft_ray.benchmark_summary import row

    return [
        row(
            f"{name}: {column.replace('_', ' ')}", ours[column], "math-verify", theirs[column],
            1.0, "rows", ratio=(theirs[column] + 1) / (ours[column] + 1),
        )
        for column in ("false_positives", "false_negatives", "timeouts")
    ]  # fmt: skip


if __name__ == "__main__":
    main()
