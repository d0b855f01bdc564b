"""A run's phases, their order and their sums. Run: pytest tests/test_phase_plan.py"""

from pathlib import Path

import pytest

from rft_ray.config_file import load_config
from rft_ray.phase_plan import Phase, PhasePlan, plan_phases, wall_seconds, why_no_time

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL, LARGE = CONFIGS / "llama2_7b_gsm8k.yaml", CONFIGS / "llama2_70b_u13b_gsm8k.yaml"
ONLINE = CONFIGS / "llama2_7b_online.yaml"


def phases(path: Path, *overrides: str) -> dict[str, Phase]:
    return {phase.name: phase for phase in plan_phases(load_config(path, list(overrides)))}


def test_phases_are_those_of_the_method_in_order() -> None:
    policies = ["llama-7b", "llama2-7b", "llama-13b", "llama2-13b"]
    assert list(phases(LARGE)) == [
        *(f"sft {name}" for name in [*policies, "target"]),
        *(f"sample {name}" for name in policies),
        "verify",
        "rft target",
        "evaluate",
    ]
    # The target's SFT is that of the policy with its base, and is done once.
    assert list(phases(SMALL)) == [
        "sft llama2-7b", "sample llama2-7b", "verify", "rft target", "control random",
        "control no_dedup", "evaluate",
    ]  # fmt: skip


def test_what_is_done_at_once_takes_as_long_as_its_longest() -> None:
    own = phases(LARGE)
    sampled = [phase for name, phase in own.items() if name.startswith("sample")]
    assert wall_seconds([*sampled, own["verify"]]) == max(phase.seconds for phase in sampled)
    training = [own["sft target"], own["rft target"]]
    assert wall_seconds(training) == sum(phase.seconds for phase in training)
    assert own["rft target"].gpu_hours == own["rft target"].seconds * 24 / 3600


def test_a_slow_verifier_holds_sampling_up() -> None:
    own = phases(SMALL, "workload.verdicts_s=1", "verifier.workers=1")
    assert own["verify"].seconds == 747_300
    assert wall_seconds([own["sample llama2-7b"], own["verify"]]) == 747_300


def test_later_rounds_train_on_more() -> None:
    own = phases(SMALL, "num_rounds=2", "rounds=[{retrain_policies: true}]", "controls=[]")
    assert "rft llama2-7b round 1" in own and "rft llama2-7b round 0" not in own
    assert own["rft target round 1"].seconds > 1.5 * own["rft target round 0"].seconds


def test_a_measured_rate_replaces_the_estimate() -> None:
    config = load_config(SMALL, [])
    rate = PhasePlan(config).rate("llama2-7b")
    told = phases(SMALL, f"machines.sampler_tokens_s={{llama2-7b: {rate.tokens_s / 2}}}")
    own = phases(SMALL)
    assert told["sample llama2-7b"].bound == "as measured"
    assert told["sample llama2-7b"].seconds == pytest.approx(
        2 * own["sample llama2-7b"].seconds, rel=0.02
    )
    assert told["rft target"] == own["rft target"]


def test_twice_the_replicas_take_half_the_time() -> None:
    once, twice = phases(SMALL), phases(SMALL, "sampler.num_replicas=8", "machines.nodes=2")
    for name in ("sample llama2-7b", "evaluate"):
        assert once[name].seconds == pytest.approx(2 * twice[name].seconds)
        assert once[name].gpu_hours == pytest.approx(twice[name].gpu_hours)


def test_online_sampling_and_training_overlap_where_they_may() -> None:
    beside, in_turn = (
        phases(ONLINE, f"online.max_staleness={staleness}") for staleness in (1, 0)
    )
    assert list(beside) == [
        "sft live", "online training", "online sampling", "online refresh", "evaluate",
    ]  # fmt: skip
    training, sampling = beside["online training"].seconds, beside["online sampling"].seconds
    online, refresh = slice(1, 4), beside["online refresh"].seconds
    parts = [list(own.values())[online] for own in (beside, in_turn)]
    assert wall_seconds(parts[0]) == pytest.approx(max(training, sampling) + refresh)
    assert wall_seconds(parts[1]) == pytest.approx(training + sampling + refresh)


@pytest.mark.parametrize(
    ("path", "overrides", "reason"),
    [
        (SMALL, ["machines=null"], "the config names no machines"),
        (SMALL, ["machines.gpu=null"], "machines.gpu does not say which GPUs"),
        (SMALL, ["target.model=me/gpt"], "the size of me/gpt is not known"),
        (SMALL, ["trainer.gpus_per_worker=0"], "rates of CPUs are not known"),
        (SMALL, [], None),
    ],
)
def test_why_there_is_no_time(path: Path, overrides: list[str], reason: str | None) -> None:
    found = why_no_time(load_config(path, overrides))
    assert found is None if reason is None else (found or "").startswith(reason)
