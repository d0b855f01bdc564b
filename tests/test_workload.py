"""How much work a run is. Run: pytest tests/test_workload.py"""

from pathlib import Path

import pytest

from rft_ray.config_file import load_config
from rft_ray.workload import SELECTED, selected_of, template_tokens, workload_of

CONFIGS = Path(__file__).parents[1] / "configs"
LARGE = CONFIGS / "llama2_70b_u13b_gsm8k.yaml"


def test_u13b_is_as_large_as_the_papers() -> None:
    own = workload_of(load_config(LARGE, ["workload.train_problems=7473"]))
    # Yuan et al. 2023: 104 thousand examples with the gold solutions.
    assert own.examples(own.selected) == pytest.approx(104_000, rel=0.01)
    assert own.examples() == 7473


def test_selected_rollouts_lie_between_the_published_ones() -> None:
    for rollouts, selected in SELECTED.items():
        assert selected_of(rollouts) == pytest.approx(selected)
    assert 5.25 < selected_of(200) < 12.84
    assert selected_of(4000) == selected_of(400)
    few = workload_of(load_config(LARGE, ["sampling.k=1", "workload.accepted_share=0.1"]))
    assert few.selected == pytest.approx(0.4)


def test_problems_are_counted_where_they_are() -> None:
    own = workload_of(load_config(CONFIGS / "quickstart.yaml", []))
    assert (own.train_problems, own.heldout_problems) == (400, 1200)
    assert "counted" in own.sources[0]
    stated = workload_of(load_config(CONFIGS / "quickstart.yaml", ["workload.train_problems=9"]))
    assert stated.train_problems == 9 and "workload" in stated.sources[0]


def test_every_accepted_rollout_is_trained_on_without_selection() -> None:
    own = workload_of(load_config(LARGE, ["selection.rule=none"]))
    assert own.selected == own.accepted == pytest.approx(0.6 * 400)


def test_a_template_is_counted_by_its_characters() -> None:
    prompt = load_config(LARGE, ["prompt.template='ab {prompt} cd'"]).prompt
    assert template_tokens(prompt, None) == 6 / 4
    assert template_tokens(prompt, 50) == 50
    alpaca = load_config(LARGE, []).prompt
    assert 30 < template_tokens(alpaca, None) < 50
