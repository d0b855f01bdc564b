"""The card beside a trained target. Run: pytest tests/test_model_card.py"""

from pathlib import Path
from typing import Any

from rft_ray.model_card import write_model_cards
from rft_ray.run_dir import open_run_dir
from rft_ray.scores import Score, make_row, write_rows
from rft_ray.selection import round_statistics
from rft_ray.tally import Tally
from rft_ray.types import Group, Problem, Rollout
from tests.test_run_dir import make_config


def select_lines(number: int) -> list[dict[str, Any]]:
    """The counts of a round with one problem and two rollouts."""
    rollouts = [Rollout("a", "x", round=number, verdict="correct", selected=True)]
    group = Group(Problem("p", "q", "1"), [*rollouts, Rollout("a", "y", round=number)])
    tally = Tally()
    tally.add(round_statistics(group, number))
    return [{"round": number, "policy": name, **tally.row(name)} for name in tally.names()]


def test_a_card_has_the_recipe_and_the_results_of_its_own_round_only(tmp_path: Path) -> None:
    config = make_config(
        tmp_path / "run", num_rounds=3, rounds=[{}, {"target_start_from": "current"}]
    )
    score = Score({"1": 1.0, "2": 0.0})
    with open_run_dir(config) as run:
        for number, stages in enumerate((["sft", "rft_own"], ["rft_own"])):
            run.round(number).checkpoint.mkdir(parents=True)
            rows = [make_row("target", stage, "pass@1", score, step=number) for stage in stages]
            write_rows(run.round(number).evaluation, rows)
        lines = select_lines(0) + select_lines(1)
        write_model_cards(run, config, lines)
        first, second = (run.round(n).checkpoint.joinpath("README.md").read_text() for n in (0, 1))
        assert not run.round(2).checkpoint.exists()
    assert "`m` after round 0" in first and "| start_from | `base` |" in first
    assert "| start_from | `current` |" in second
    assert first.count("50.0%") == second.count("50.0%") - 1 == 2
    assert "| 1 | `all_rounds` |" in second and "`all_rounds`" not in first
    assert "fine-tuned on the gold solutions" in second
    assert "`ray`" in second and first.startswith("---\nlibrary_name: transformers\n")


def test_a_hostile_name_stays_in_its_cell(tmp_path: Path) -> None:
    name = "evil`|<script>\n# heading"
    config = make_config(tmp_path / "run", target={"model": name})
    with open_run_dir(config) as run:
        run.round(0).checkpoint.mkdir(parents=True)
        write_rows(run.round(0).evaluation, [])
        write_model_cards(run, config, [])
        card = (run.round(0).checkpoint / "README.md").read_text()
    assert "\n# heading" not in card and "`evil'" in card
