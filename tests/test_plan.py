"""A config is checked against the machines it names; what does not fit is one line of numbers."""

import re
from pathlib import Path

import pytest

from rft_ray.cli import main
from rft_ray.config import RunConfig
from rft_ray.config_file import load_config
from rft_ray.model_shapes import ModelSize
from rft_ray.parts import adapters_of, largest_model, list_parts
from rft_ray.plan import check_placement

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SMALL, LARGE = CONFIGS / "llama2_7b_gsm8k.yaml", CONFIGS / "llama2_70b_u13b_gsm8k.yaml"


def check(path: Path, *overrides: str) -> list[str]:
    return check_placement(load_config(path, list(overrides)))


def small_run(**sections: object) -> RunConfig:
    """Two policies of 7B and a target of 13B, on two nodes with four GPUs of 80 GB."""
    gpu = {"gpus_per_replica": 1}
    problems = {"format": "word_problems", "count": 5}
    raw = {
        "run_dir": "runs/x",
        "problems": {"train": problems, "heldout": {**problems, "split": "heldout"}},
        "policies": [{"name": "a", "model": "me/a-7b"}, {"name": "b", "model": "me/b-7b"}],
        "target": {"model": "me/c-13B-chat"},
        "sampler": gpu,
        "trainer": {"num_workers": 5, "gpus_per_worker": 1, "zero_stage": 3, "dtype": "bfloat16"},
        "machines": {"nodes": 2, "gpus_per_node": 4, "gpu_memory_gb": 80},
    }
    return RunConfig.model_validate({**raw, **sections})


@pytest.mark.parametrize("path", [SMALL, LARGE])
def test_the_papers_runs_fit_on_the_machines_they_name(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(path) == []
    assert main(["plan", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "69B parameters as published" in out or path == SMALL
    assert out.splitlines()[-1].startswith("fits on")
    assert err == ""


def test_the_readme_shows_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\n\$ rft-ray (plan .+)\n((?:.+\n)+)```$", text, re.MULTILINE)
    assert len(shown) == 2
    for command, lines in shown:
        code = main(command.split())
        out, err = capsys.readouterr()
        if code:
            assert lines.replace("\n", " ").strip() == err.strip()
        else:
            assert set(lines.splitlines()) - {"..."} <= set(out.splitlines())


def test_half_the_machines_are_refused_with_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(LARGE, "machines.nodes=2") == [
        "trainer: 24 GPUs needed, 2 nodes with 8 GPUs each: 16 in all"
    ]
    online = CONFIGS / "llama2_7b_online.yaml"
    together = (
        "samplers (4) and trainer (4) need 8 GPUs together, as online they work at the same time; "
        "1 node with 4 H100 GPUs of 80 GB and 96 CPUs each: 4 in all"
    )
    assert check(online, "machines.gpus_per_node=4") == [together]
    assert main(["plan", str(online), "machines.gpus_per_node=4"]) == 2
    assert capsys.readouterr().err == f"rft-ray: error: the run does not fit: {together}\n"


def test_offline_one_set_of_gpus_serves_both_phases(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(SMALL, "machines.gpus_per_node=4") == []
    assert main(["plan", str(SMALL), "machines.gpus_per_node=4"]) == 0
    assert "samplers end before a training" in capsys.readouterr().out
    assert main(["plan", str(SMALL), "machines.gpus_per_node=8"]) == 0
    assert "samplers end before a training" not in capsys.readouterr().out
    assert check(SMALL, "machines.gpus_per_node=3") == [
        "samplers: 4 GPUs needed, 1 node with 3 GPUs each: 3 in all",
        "trainer: 4 GPUs needed, 1 node with 3 GPUs each: 3 in all",
    ]


def test_memory_that_is_too_small_is_refused_with_the_numbers() -> None:
    (problem,) = check(LARGE, "machines.gpu_memory_gb=64")
    assert problem == (
        "trainer: 61.2 GB a GPU needed (69B parameters as published), of 64 GB 57.6 can be used"
    )
    target = "target.sampler={tensor_parallel_size: 1, gpus_per_replica: 1}"
    (problem,) = check(LARGE, target)
    assert problem.startswith("sampler target: 143.1 GB a GPU needed (69B parameters")
    assert check(SMALL, "trainer.zero_stage=1")[0].startswith("trainer: ")
    assert check(SMALL, "trainer.zero_stage=1", "machines.gpu=null") == []


def test_the_target_has_a_sampler_of_its_own_unless_a_policy_shares_its_base() -> None:
    names = [part.name for part in list_parts(small_run())]
    assert names == ["sampler a", "sampler b", "sampler target", "trainer"]
    shared = small_run(target={"model": "me/a-7b"})
    assert [part.name for part in list_parts(shared)] == ["sampler a", "sampler b", "trainer"]
    assert check_placement(small_run()) == check_placement(shared) == []


def test_adapters_count_where_every_training_of_a_model_has_them() -> None:
    lora = {"lora": {"rank": 8}}
    small, both = small_run(rft=lora), small_run(rft=lora, sft=lora)
    assert adapters_of(small, "me/c-13B-chat") is None
    adapters = adapters_of(both, "me/c-13B-chat")
    assert adapters is not None and adapters.rank == 8
    held = [list_parts(run)[-1].device_gb for run in (small, both)]
    assert held[0] is not None and held[1] is not None and held[1] < held[0] / 2
    # A larger model takes less with adapters than a smaller one without.
    mixed = small_run(policies=[{"name": "big", "model": "me/big-30b", "sft": lora}])
    assert largest_model(mixed) == "me/c-13B-chat"
    assert largest_model(small_run(policies=[{"name": "big", "model": "me/big-30b"}])) != (
        "me/c-13B-chat"
    )


def test_the_trainer_must_hold_the_largest_model_it_trains() -> None:
    big = [{"name": "big", "model": "me/big-70b"}]
    assert list_parts(small_run(policies=big))[-1].size == ModelSize(70 * 10**9, "from the name")
    untrained = [{**big[0], "sft": None}]
    assert list_parts(small_run(policies=untrained))[-1].size == ModelSize(
        13 * 10**9, "from the name"
    )
    retrained = small_run(policies=untrained, num_rounds=2, rounds=[{"retrain_policies": True}])
    assert list_parts(retrained)[-1].size == ModelSize(70 * 10**9, "from the name")


def test_a_replica_is_placed_whole() -> None:
    wide = {"tensor_parallel_size": 8, "gpus_per_replica": 8}
    machines = {"nodes": 4, "gpus_per_node": 4}
    problems = check_placement(small_run(sampler=wide, machines={**machines, "nodes": 16}))
    assert "sampler a: a replica needs 8 GPUs on one node of 4" in problems
    # Four nodes of three GPUs have room for four ranks of two, not for five, though that is ten.
    machines = {"nodes": 4, "gpus_per_node": 3}
    ranks = {"num_workers": 5, "gpus_per_worker": 2}
    (problem,) = check_placement(small_run(trainer=ranks, machines=machines))
    assert problem.startswith("no way to place replicas and ranks whole on one node each: 4 nodes")
    assert check_placement(small_run(trainer={**ranks, "num_workers": 4}, machines=machines)) == []


def test_cpus_and_main_memory_are_counted_too() -> None:
    on_cpu = {"cpus_per_replica": 2, "tensor_parallel_size": 2, "vllm": {"dtype": "float32"}}
    ranks = {"num_workers": 2, "cpus_per_worker": 3}
    config = small_run(sampler=on_cpu, trainer=ranks, machines={"cpus_per_node": 11})
    (problem,) = check_placement(config)
    assert problem == "samplers: 12 CPUs needed, 1 node with 11 CPUs each: 11 in all"
    machines = {"cpus_per_node": 18, "memory_gb": 200}
    (problem,) = check_placement(small_run(sampler=on_cpu, trainer=ranks, machines=machines))
    assert "GB of main memory needed, of 1 x 200 GB 180.0 can be used" in problem
    assert check_placement(small_run(trainer=ranks, machines={"cpus_per_node": 18}))[0].startswith(
        "sampler a: a replica needs 1 GPUs on one node of 0"
    )


def test_without_machines_the_plan_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(SMALL), "machines=null", "sampler.num_replicas=3"]) == 0
    out = capsys.readouterr().out
    assert "7 GPUs and 7 CPUs in all" in out
    assert "names no machines" in out


def test_a_model_of_unknown_size_is_placed_but_not_weighed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = "policies=[{name: a, model: me/gpt}]"
    assert main(["plan", str(SMALL), model, "target.model=me/gpt"]) == 0
    assert capsys.readouterr().out.count("me/gpt: size not known") == 1


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_has_a_plan_that_a_terminal_shows(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 105
    names = {line[:22].strip() for line in lines}
    config = load_config(path, [])
    assert {f"sampler {policy.name}"[:22] for policy in config.policies} <= names
    if path.stem.startswith("llama"):
        assert any(" GPU hours of work, " in line for line in lines)
        assert "evaluate" in names
    else:
        assert any(line.startswith("time and cost are not planned") for line in lines)


def test_what_does_not_fit_ends_with_the_nearest_change(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", str(SMALL), "trainer.zero_stage=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("; nearest change that fits: trainer.zero_stage=2")


def test_what_is_offloaded_has_to_have_room_too() -> None:
    zero = "trainer.deepspeed.zero_optimization.offload_optimizer.device"
    (problem,) = check(LARGE, f"{zero}=cpu", "machines.memory_gb=300")
    assert problem.startswith("trainer: 367.9 GB of main memory a node needed by 8 ranks")
    (problem,) = check(LARGE, f"{zero}=nvme", "machines.disk_gb=100")
    assert "of local disks (machines.disk_gb) a node needed by 8 ranks" in problem
    # Below ZeRO-3 every rank reads the whole model first.
    assert "54.0 can be used" in check(SMALL, "machines.memory_gb=60", "trainer.num_workers=8")[-1]
