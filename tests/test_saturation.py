"""A run ends when rounds stop finding new paths. Run: pytest tests/test_saturation.py"""

import random
from pathlib import Path

import pytest

from rft_ray.config_file import load_config
from rft_ray.run_dir import RunDir, read_metrics
from rft_ray.saturation import is_saturated, new_paths, note_new_paths
from rft_ray.scores import EvaluationRow
from rft_ray.scoring import is_finished, publish
from rft_ray.selection import path_key, select_group
from rft_ray.study import Study
from rft_ray.types import Group
from tests.made_up_run import log, make_group, of_rounds, select_lines

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
ROUNDS = 3
ROW = EvaluationRow("target", "rft_pooled", "pass@1", value=0.5, n=1, low=0.0, high=1.0, step=1)


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    """Problems with few paths, which few rollouts a round soon have found."""
    rng = random.Random(1)
    return [make_group(number, rng, k=3, rounds=ROUNDS) for number in range(30)]


def make_study(folder: Path, groups: list[Group], least: float, rounds: int = ROUNDS) -> Study:
    """A run whose rounds have logged their counts."""
    for number in range(rounds):
        past = [select_group(of_rounds(group, *range(number + 1))) for group in groups]
        log(folder, *select_lines(number, past))
    overrides = [f"budget.min_new_paths={least}", f"num_rounds={ROUNDS}"]
    return Study(load_config(CONFIG, overrides), RunDir(folder), {}, models={})


def count_by_hand(groups: list[Group], number: int) -> int:
    """Paths of accepted rollouts that no earlier round has, policies pooled."""
    total = 0
    for group in groups:
        keys = [(r.round, path_key(r.completion)) for r in group.accepted]
        earlier = {key for round, key in keys if round < number}
        total += len({key for round, key in keys if round == number} - earlier)
    return total


def test_new_paths_are_those_that_no_earlier_round_has(tmp_path: Path, groups: list[Group]) -> None:
    study = make_study(tmp_path, groups, 0)
    lines = [line for line in read_metrics(study.run.metrics) if line["kind"] == "select"]
    counts = [new_paths(lines, number) for number in range(ROUNDS)]
    assert counts == [(count_by_hand(groups, number), 30 * 2 * 3) for number in range(ROUNDS)]
    assert counts[0][0] > counts[1][0] > counts[2][0] > 0
    # a round that was killed and selected again counts once
    assert [new_paths(lines + lines, number) for number in range(ROUNDS)] == counts


def test_a_run_ends_with_the_first_round_below_the_threshold(
    tmp_path: Path, groups: list[Group], capsys: pytest.CaptureFixture[str]
) -> None:
    found = count_by_hand(groups, 1)
    least = (found + 0.5) / 180
    study = make_study(tmp_path, groups, least, rounds=2)
    assert [is_saturated(study, number) for number in range(2)] == [False, True]
    note_new_paths(study, 0)
    assert capsys.readouterr().err == ""
    note_new_paths(study, 1)
    said = capsys.readouterr().err
    assert f"round 1: {found} new distinct paths of 180 rollouts" in said and "last round" in said
    line = read_metrics(study.run.metrics)[-1]
    assert (line["kind"], line["new_paths"], line["rollouts"]) == ("new_paths", found, 180)
    for number in range(2):
        assert not is_finished(study)
        publish(study, number, [ROW])
    # the third round is not missing
    assert is_finished(study)


def test_without_a_threshold_every_round_is_run(tmp_path: Path, groups: list[Group]) -> None:
    study = make_study(tmp_path, groups, 0)
    assert not any(is_saturated(study, number) for number in range(ROUNDS))
    for number in range(ROUNDS):
        assert not is_finished(study)
        publish(study, number, [ROW])
    assert is_finished(study)
