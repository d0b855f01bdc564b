"""The report of online runs: made up whole, trained again, hostile, and without their numbers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.online_report import last_steps, online_report
from tests.made_up_run import (
    log,
    make_online_run,
    make_run,
    online_evaluations,
    online_line,
    start_run,
)
from tests.test_report import HOSTILE, page_of

SETTINGS = {"steps": 4, "updates_per_batch": 1, "max_staleness": 1, "filters": ["all_wrong"]}


def test_a_finished_online_run_has_every_section(tmp_path: Path) -> None:
    page = page_of(make_online_run(tmp_path / "run"))
    text = page.text
    for shown in ("Target after SFT\n41.2%", "Target after online RFT\n49.8%", "+8.6%",
                  "240 of 240 online steps, target trained, target evaluated",
                  "Online training", "accepted share, which is the mean reward", "Entropy",
                  "known to collapse it", "Share of clipped ratios", "SFT is where online training "
                  "began: 40.5%", "Rollouts by age", "Seconds of a step", "Tokens a second",
                  "mean of up to 2 steps"):  # fmt: skip
        assert shown in text
    assert page.tags["h2"] == 9
    # accepted, paths, entropy, examples; loss, norm, clipped; validation; seconds, tokens; the SFT
    # run's loss and rate; paths against samples, worth of a policy
    assert page.tags["svg"] == 14


def test_an_offline_run_has_no_online_section(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path / "run", num_problems=2, rounds=1)).text
    assert "Online training" not in text and "online steps" not in text
    assert "every step that sampled it" not in text


def test_an_online_run_that_has_not_begun_says_so(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    with (tmp_path / "run" / "config.yaml").open("a") as file:
        file.write("mode: online\nonline: {steps: 7}\n")
    text = page_of(tmp_path / "run").text
    assert "0 of 7 online steps (not yet)" in text
    assert "Online training\nNot computed yet." in text


def test_numbers_of_the_tables_are_sums_over_steps(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    common = {"wait_seconds": 1.0, "train_seconds": 2.0, "save_seconds": 0.0,
              "refresh_seconds": 1.0, "sample_seconds": 2.5, "verify_seconds": 0.5,
              "sampled_tokens": 1_000, "tokens": 300}  # fmt: skip
    log(
        tmp_path / "run",
        online_line(1, **common, staleness={"0": 30}, dropped={"all_wrong": 3}),
        online_line(2, **common, staleness={"0": 10, "1": 40}, dropped={"all_wrong": 1, "new": 2}),
    )
    page = page_of(tmp_path / "run")
    [[_, *ages]] = page.table("age", "rollouts")
    assert ages == [["0 steps", "40", "50.0%"], ["1 step", "40", "50.0%"]]
    [[_, *dropped]] = page.table("reason", "dropped")
    assert [[row[0], *row[2:]] for row in dropped] == [
        ["all_wrong", "groups", "4", "6.2%"],
        ["new", "\u2013", "2", "\u2013"],
    ]
    [[_, *times]] = page.table("side", "part")
    assert times == [
        ["driver", "sample", "5.0", "2.500", "62.5%"],
        ["driver", "verify", "1.0", "0.500", "12.5%"],
        ["driver", "other", "2.0", "1.000", "25.0%"],
        ["trainer", "train", "4.0", "2.000", "50.0%"],
        ["trainer", "save", "0.0", "0.000", "0.0%"],
        ["trainer", "refresh", "2.0", "1.000", "25.0%"],
        ["trainer", "wait", "2.0", "1.000", "25.0%"],
    ]
    [[_, *speeds]] = page.table("tokens", "idle")
    assert speeds == [
        ["sampling", "2,000", "400", "250", "37.5%"],
        ["training", "600", "150", "75", "25.0%"],
    ]


def test_tokens_count_once_an_optimiser_step() -> None:
    lines = [online_line(1, tokens=300, train_seconds=2.0)]
    assert ">300<" in online_report(lines, [], SETTINGS)
    assert ">900<" in online_report(lines, [], {**SETTINGS, "updates_per_batch": 3})


@pytest.mark.parametrize(("bound", "word"), [(1, "within"), (0, "above")])
def test_the_oldest_rollout_is_held_against_the_bound(bound: int, word: str) -> None:
    found = online_report([online_line(1)], [], {**SETTINGS, "max_staleness": bound})
    assert f">{word}</b>" in found


def test_groups_and_rollouts_that_are_too_long_are_told_apart() -> None:
    lines = [online_line(1, dropped={"too_long": 2, "over_max_length": 1})]
    found = online_report(lines, [], SETTINGS)
    assert "max_length" in found and "cut off by the token limit" in found


def test_partial_rewards_are_a_line_of_their_own() -> None:
    found = online_report([online_line(1), online_line(2, reward=0.9)], [], SETTINGS)
    assert "which is the mean reward" not in found and ">mean reward<" in found


def test_without_a_score_of_sft_there_is_no_reference() -> None:
    scored = [line for line in online_evaluations(60) if line["stage"] == "online"]
    found = online_report([online_line(1)], scored, SETTINGS)
    assert "What it began with was not scored on them" in found
    assert "Validation" not in online_report([online_line(1)], [], SETTINGS)


def test_steps_that_were_trained_again_count_once(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    quick, slow = {"train_seconds": 1.0}, {"train_seconds": 7.0}
    log(tmp_path / "run", *(online_line(step, **slow) for step in (1, 2, 3, 4)))
    log(tmp_path / "run", *(online_line(step, **quick) for step in (2, 3)))
    page = page_of(tmp_path / "run")
    assert "3 lines of steps that were trained again" in page.text
    [[_, *times]] = page.table("side", "part")
    assert ["trainer", "train", "9.0", "3.000"] in [row[:4] for row in times]


@given(st.lists(st.integers(1, 20)))
def test_the_steps_that_count_are_the_last_and_in_order(numbers: list[int]) -> None:
    lines = [{"step": number, "line": i} for i, number in enumerate(numbers)]
    kept = last_steps(lines)
    assert [line["step"] for line in kept] == sorted({line["step"] for line in kept})
    assert [line["line"] for line in kept] == sorted(line["line"] for line in kept)
    assert kept[-1:] == lines[-1:]
    for line in kept:
        assert all(later["step"] > line["step"] for later in lines[line["line"] + 1 :])


def test_a_step_that_taught_nothing_leaves_gaps() -> None:
    empty = dict.fromkeys(("loss", "grad_norm", "entropy", "clipped", "fill"))
    line = online_line(1, **empty, examples=0, tokens=0, staleness={})
    found = online_report([line], [], {**SETTINGS, "updates_per_batch": 2})
    assert "1 steps had nothing to learn from" in found
    assert "No rollouts of the live policy" in found and "nan" not in found


def test_lines_without_their_numbers_and_hostile_ones(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    with (tmp_path / "run" / "config.yaml").open("a") as file:
        file.write(f"mode: online\nonline: {json.dumps({'steps': HOSTILE, 'filters': HOSTILE})}\n")
    log(tmp_path / "run", {"kind": "online_step"}, {"kind": "online_step", "step": 1})
    log(tmp_path / "run", {"kind": "online_step", "step": HOSTILE})
    log(
        tmp_path / "run",
        online_line(2, dropped={HOSTILE: 1}, staleness={HOSTILE: 1, "1": "x"}, loss=HOSTILE),
        online_line(3, dropped=HOSTILE, staleness=[1], sample_seconds=None),
    )
    page = page_of(tmp_path / "run")
    assert not page.tags.keys() & {"script", "img"}
    assert "nan" not in page.text and "3 of" in page.text
