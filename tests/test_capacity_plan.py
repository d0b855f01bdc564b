"""What numbers of GPUs give, and the page that says so. Run: pytest tests/test_capacity_plan.py"""

import re
from pathlib import Path

import pytest

from rft_ray.capacity_plan import capacity_lines, fastest_trainer, plan_capacity, spread_samplers
from rft_ray.cli import main
from rft_ray.config_file import load_config
from rft_ray.model_shapes import model_shape
from rft_ray.parts import list_samplers
from rft_ray.phase_plan import plan_phases, wall_seconds
from rft_ray.plan import check_placement
from rft_ray.workload import workload_of

ROOT = Path(__file__).parents[1]
LARGE = "configs/llama2_70b_u13b_gsm8k.yaml"
PAGE = (ROOT / "cluster" / "CAPACITY.md").read_text(encoding="utf-8")
GPUS = [8, 16, 24, 32, 64, 128, 512]


def test_the_page_is_what_the_plan_says() -> None:
    numbers = re.search(r"rft-ray plan \S+ --gpus (\S+)", PAGE)
    assert numbers is not None
    gpus = [int(text) for text in numbers[1].split(",")]
    assert {1, 8, 64, 512} <= set(gpus)
    lines = capacity_lines(load_config(ROOT / LARGE, []), gpus)
    assert "\n".join(lines) in PAGE


def test_what_the_page_says_of_its_numbers_is_so() -> None:
    config, words = load_config(ROOT / LARGE, []), " ".join(PAGE.split())
    wide = ["target.sampler.tensor_parallel_size=2", "target.sampler.gpus_per_replica=2"]
    (problem,) = check_placement(load_config(ROOT / LARGE, wide))
    needed, usable = re.findall(r"([0-9.]+) GB a GPU needed .* ([0-9.]+) can be used", problem)[0]
    assert f"over two it would need {float(needed):.0f} GB of each" in words
    assert f"of which {float(usable):.0f} can be used" in words
    shape = model_shape(config.target.model)
    assert shape is not None
    state = round(12 * shape.parameters / 1e9, -1)
    assert f"state of 70 billion parameters, {state:.0f} GB" in words
    assert f"gathering {2 * shape.parameters / 1e9:.0f} GB of weights" in words
    one, two, four, most = (plan_capacity(config, gpus).hours for gpus in (8, 16, 32, 512))
    assert round(one / two) == 12 and "twelve times earlier" in words
    assert round(one * 8 / (two * 16)) == 6 and "for a sixth of the cost" in words
    assert most > 0.9 * four > 0.5 * two and "More GPUs than that are paid for and wait" in words
    load, batch = workload_of(config), config.target.rft.batch_size
    tokens = round(batch * (load.question + load.response), -3) / 1000
    assert f"learns from {batch} examples, {tokens:.0f} thousand tokens" in words
    examples = load.train_problems * (1 + load.selected)
    assert examples == pytest.approx(104_000, rel=0.01) and "104 thousand examples" in words


def test_more_gpus_never_take_longer() -> None:
    config = load_config(ROOT / LARGE, [])
    hours = [plan_capacity(config, gpus).hours for gpus in GPUS]
    assert hours == sorted(hours, reverse=True)
    assert all(hours)


@pytest.mark.parametrize("gpus", GPUS)
def test_samplers_share_the_gpus_and_ranks_have_room(gpus: int) -> None:
    config = load_config(ROOT / LARGE, [])
    spread = spread_samplers(config, gpus)
    assert not isinstance(spread, str)
    used = [own.num_replicas * own.gpus_per_replica for _, own in list_samplers(spread).values()]
    assert sum(used) <= gpus and min(used) > 0
    assert sum(used) > 0.8 * gpus


def test_a_spread_is_faster_than_equal_shares() -> None:
    config = load_config(ROOT / LARGE, [])
    spread = spread_samplers(config, 64)
    assert not isinstance(spread, str)
    equal = load_config(ROOT / LARGE, ["sampler.num_replicas=8", "target.sampler.num_replicas=8"])

    def sampling(own: object) -> float:
        return wall_seconds([p for p in plan_phases(own) if p.name.startswith(("sample", "eval"))])

    assert sampling(spread) < sampling(equal)


def test_the_fastest_trainer_is_not_slower_than_the_configs() -> None:
    config = load_config(ROOT / LARGE, [])
    found = fastest_trainer(config, 32)
    assert found is not None and found.num_workers <= 32
    best, own = (
        wall_seconds(plan_phases(config.model_copy(update={"trainer": trainer})))
        for trainer in (found, config.trainer)
    )
    assert best <= own


def test_too_few_gpus_are_said_so() -> None:
    config = load_config(ROOT / LARGE, [])
    assert "needs 8 GPUs at once" in plan_capacity(config, 1).problem
    small = load_config(ROOT / "configs/llama2_7b_gsm8k.yaml", [])
    assert not plan_capacity(small, 1).problem
    poor = load_config(ROOT / LARGE, ["machines.memory_gb=32", "machines.gpu_memory_gb=50"])
    assert "largest model" in plan_capacity(poor, 8).problem


def test_wrong_numbers_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([LARGE, "--gpus", "12"], "not whole machines of 8 GPUs"),
        ([LARGE, "--gpus", "8", "machines=null"], "the config names no machines"),
        (["configs/llama2_70b_online.yaml", "--gpus", "8"], "is for mode offline"),
    ):
        path, *rest = arguments
        assert main(["plan", str(ROOT / path), *rest]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    for wrong in ("1,,8", "0", "x", "-3", ""):
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(ROOT / LARGE), f"--gpus={wrong}"])
        assert ended.value.code == 2
