"""A config is checked against the machines it names; what does not fit is one line of numbers."""

import json
import shutil
from pathlib import Path

import pytest

from rft_ray.cli import main
from rft_ray.config import RunConfig, TrainerConfig
from rft_ray.config_file import load_config
from rft_ray.errors import InputError
from rft_ray.plan import ALLOWANCE_GB, ModelSize, check_placement, list_parts, model_size, rank_gb

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL, LARGE = CONFIGS / "llama2_7b_gsm8k.yaml", CONFIGS / "llama2_70b_u13b_gsm8k.yaml"
BASES = CONFIGS / "quickstart_base"


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
    assert "parameters from the name" in out and out.splitlines()[-1].startswith("fits on")
    assert err == ""


def test_half_the_machines_are_refused_with_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(LARGE, "machines.nodes=2") == [
        "trainer: 24 GPUs needed, 2 nodes with 8 GPUs each: 16 in all"
    ]
    online = CONFIGS / "llama2_7b_online.yaml"
    together = (
        "samplers (4) and trainer (4) need 8 GPUs together, as online they work at the same time; "
        "1 node with 4 GPUs of 80 GB and 96 CPUs each: 4 in all"
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
        "trainer: 59.2 GB a GPU needed (70B parameters from the name), of 64 GB 57.6 can be used"
    )
    target = "target.sampler={tensor_parallel_size: 1, gpus_per_replica: 1}"
    (problem,) = check(LARGE, target)
    assert problem.startswith("sampler target: 140.0 GB a GPU needed (70B parameters")
    assert check(SMALL, "trainer.zero_stage=1")[0].startswith("trainer: ")
    assert check(SMALL, "trainer.zero_stage=1", "machines.gpu_memory_gb=null") == []


def test_the_target_has_a_sampler_of_its_own_unless_a_policy_shares_its_base() -> None:
    names = [part.name for part in list_parts(small_run())]
    assert names == ["sampler a", "sampler b", "sampler target", "trainer"]
    shared = small_run(target={"model": "me/a-7b"})
    assert [part.name for part in list_parts(shared)] == ["sampler a", "sampler b", "trainer"]
    assert check_placement(small_run()) == check_placement(shared) == []


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


@pytest.mark.parametrize(
    ("settings", "bytes_a_parameter"),
    [
        ({"dtype": "bfloat16", "zero_stage": 0}, 2 + 4 + 12 / 4),
        ({"dtype": "bfloat16", "zero_stage": 1}, 2 + 4 + 12 / 4),
        ({"dtype": "bfloat16", "zero_stage": 2}, 2 + (4 + 12) / 4),
        ({"dtype": "bfloat16", "zero_stage": 3}, (2 + 4 + 12) / 4),
        ({"dtype": "float32", "zero_stage": 0}, 4 + 4 + 8),
        ({"dtype": "float32", "zero_stage": 3}, (4 + 4 + 12) / 4),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, (4 + 4 + 12) / 4),
        ({"deepspeed": {"zero_optimization": 3}}, 4 + (4 + 12) / 4),
        (
            {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
            4 + 4 / 4,
        ),
    ],
)
def test_training_state_is_divided_by_stage(
    settings: dict[str, object], bytes_a_parameter: float
) -> None:
    trainer = TrainerConfig(num_workers=4, row_tokens=1, **settings)
    assert rank_gb(10**9, trainer) == pytest.approx(bytes_a_parameter, abs=0.01)
    on_gpu = trainer.model_copy(update={"gpus_per_worker": 1.0})
    assert rank_gb(10**9, on_gpu) - rank_gb(10**9, trainer) == pytest.approx(ALLOWANCE_GB)


def test_activations_grow_with_the_micro_batch_unless_recomputed() -> None:
    row = {"dtype": "bfloat16", "num_workers": 1, "row_tokens": 1024}
    one, four = (rank_gb(7 * 10**9, TrainerConfig(micro_batch_rows=rows, **row)) for rows in (1, 4))
    # Llama-7B: 32 layers of 4096 hidden units, 34 bytes each.
    assert four - one == pytest.approx(3 * 1024 * 34 * 32 * 4096 / 1e9, rel=0.1)
    recomputed = TrainerConfig(deepspeed={"activation_checkpointing": {}}, **row)
    assert rank_gb(7 * 10**9, recomputed) < one


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-2-70b-hf", 70e9),
        ("huggyllama/llama-7b", 7e9),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("x/SmolLM2-135M", 135e6),
        ("x/Qwen3-30B-A3B", 30e9),
        ("x/llama-13b-4bit", 13e9),
    ],
)
def test_a_size_is_read_from_the_name(name: str, parameters: float) -> None:
    assert model_size(name) == ModelSize(int(parameters), "from the name")


@pytest.mark.parametrize("name", ["x/Mixtral-8x7B", "x/phi-2", "x/gpt2", "7b/model", "x/13bit"])
def test_a_name_without_a_size_is_not_guessed(name: str) -> None:
    assert model_size(name) is None


@pytest.mark.parametrize("base", ["tied", "untied"])
def test_a_folders_weights_and_its_config_agree(base: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASES / base)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert model_size(str(BASES / base)) == ModelSize(parameters, "in its weights")
    shutil.copy(BASES / base / "config.json", tmp_path)
    assert model_size(str(tmp_path)) == ModelSize(parameters, "from config.json")


def test_a_folder_of_another_kind_is_not_guessed_and_a_broken_one_refused(tmp_path: Path) -> None:
    config = json.loads((BASES / "tied" / "config.json").read_text())
    for shape in ({**config, "num_local_experts": 8}, {"n_embd": 768}, []):
        (tmp_path / "config.json").write_text(json.dumps(shape))
        assert model_size(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
        model_size(str(tmp_path))
    for content in (
        b"",
        b"12",
        b"\xff" * 16,
        (2**40).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
    ):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors: not a safetensors file"):
            model_size(str(tmp_path))


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
    assert capsys.readouterr().out.count("size not known") == 2
