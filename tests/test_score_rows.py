"""Rows of `evaluation.json`: their order, their words, and the one that heads the report."""

import random

import pytest

from rft_ray.page import Line
from rft_ray.score_rows import baseline_score, main_score, read_scores, split_metric
from tests.made_up_run import evaluation_rows


def rows_of(*rounds: int) -> list[Line]:
    return [{**row, "round": number} for number in rounds for row in evaluation_rows(number)]


def test_the_target_comes_first_and_stages_in_order() -> None:
    rows = rows_of(0, 1)
    scores = [s for s in read_scores(rows) if s.metric == "pass@1" and s.problem_set == "svamp"]
    assert [(s.model, s.label(has_rounds=True)) for s in scores] == [
        ("target", "prompted"),
        ("target", "SFT"),
        ("target", "RFT, own, round 0"),
        ("target", "RFT, own, round 1"),
        ("target", "RFT, random, round 0"),
        ("target", "RFT, random, round 1"),
        ("target", "RFT, no de-duplication, round 0"),
        ("target", "RFT, no de-duplication, round 1"),
        ("target", "RFT, pooled, round 0"),
        ("target", "RFT, pooled, round 1"),
        ("small", "SFT"),
        ("large", "SFT"),
    ]


def test_the_main_score_is_of_the_last_round_that_has_one() -> None:
    rows = rows_of(0, 1)
    random.Random(0).shuffle(rows)
    main = main_score(read_scores(rows))
    assert main is not None
    assert (main.stage, main.round, main.metric, main.problem_set) == (
        "rft_pooled",
        1,
        "pass@1",
        "",
    )
    controls = [r for r in rows if r["round"] == 0 or r["stage"] in ("rft_random", "rft_no_dedup")]
    main = main_score(read_scores(controls))
    assert main is not None and (main.stage, main.round) == ("rft_pooled", 0)
    own = [row for row in rows if row["stage"] in ("sft", "rft_own")]
    main = main_score(read_scores(own))
    assert main is not None and (main.stage, main.round) == ("rft_own", 1)
    assert main_score(read_scores(r for r in rows if r["stage"] in ("sft", "rft_random"))) is None
    assert main_score([]) is None


@pytest.mark.parametrize("stage", ["sft", "base"])
def test_the_baseline_is_the_target_before_any_round(stage: str) -> None:
    rows = [{**row, "stage": stage} if row["stage"] == "sft" else row for row in rows_of(0, 1)]
    before = baseline_score(read_scores(rows))
    assert before is not None
    assert (before.model, before.stage, before.metric, before.problem_set) == (
        "target", stage, "pass@1", "")  # fmt: skip
    assert before.label(has_rounds=True) == {"sft": "SFT", "base": "base"}[stage]
    assert baseline_score(read_scores(r for r in rows if r["stage"] != stage)) is None


def test_the_last_row_of_an_identity_counts() -> None:
    row = {"model": "target", "stage": "sft", "metric": "pass@1"}
    [score] = read_scores([{**row, "value": 0.1}, {**row, "value": 0.2, "round": 0}])
    assert score.line["value"] == 0.2


@pytest.mark.parametrize(("metric", "parts"), [
    ("pass@1", ("pass", 1)), ("maj@100", ("maj", 100)), ("avg@16", ("avg", 16)),
    ("pass@1_best_validation", ("pass@1_best_validation", 0)), ("maj@0", ("maj@0", 0)),
    ("best@4", ("best@4", 0)), ("", ("", 0)),
])  # fmt: skip
def test_metrics_split_at_their_number(metric: str, parts: tuple[str, int]) -> None:
    assert split_metric(metric) == parts
