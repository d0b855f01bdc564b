"""Advice that is taken makes a run fit, and no less than it does.

Run: pytest tests/test_fit_advice.py
"""

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.config import MachinesConfig, TrainerConfig
from rft_ray.config_file import load_config
from rft_ray.fit_advice import _changes, advise_trainer, apply_changes, trainer_fits
from rft_ray.model_shapes import model_shape
from rft_ray.plan import advise, check_placement

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL, LARGE = CONFIGS / "llama2_7b_gsm8k.yaml", CONFIGS / "llama2_70b_u13b_gsm8k.yaml"
ONLINE = CONFIGS / "llama2_70b_online.yaml"


@pytest.mark.parametrize(
    ("path", "overrides", "advice"),
    [
        (SMALL, ["trainer.zero_stage=1"], "trainer.zero_stage=2"),
        (
            SMALL,
            ["trainer.micro_batch_rows=8"],
            "'trainer.deepspeed.activation_checkpointing={partition_activations: false}'",
        ),
        (LARGE, ["trainer.num_workers=16"], "trainer.num_workers=24"),
        (
            LARGE,
            ["machines.nodes=2"],
            "trainer.num_workers=16 trainer.deepspeed.zero_optimization.offload_optimizer.device="
            "cpu",
        ),
        (
            LARGE,
            ["machines.nodes=1"],
            "trainer.num_workers=8 trainer.deepspeed.zero_optimization.offload_optimizer.device="
            "nvme",
        ),
        (
            LARGE,
            ["target.sampler={tensor_parallel_size: 1, gpus_per_replica: 1}"],
            "target.sampler.tensor_parallel_size=4 target.sampler.gpus_per_replica=4",
        ),
        (LARGE, ["machines.gpu=A100-40GB", "trainer.num_workers=32"], None),
        (ONLINE, ["trainer.num_workers=16"], "trainer.num_workers=32"),
    ],
)
def test_a_run_fits_once_the_advice_is_taken(
    path: Path, overrides: list[str], advice: str | None
) -> None:
    config = load_config(path, overrides)
    assert check_placement(config)
    found = advise(config)
    assert found and (advice is None or " ".join(found) == advice)
    taken = shlex.split(" ".join(found))
    assert check_placement(load_config(path, [*overrides, *taken])) == []


def test_there_is_no_advice_where_it_fits_or_where_nothing_helps() -> None:
    assert advise(load_config(LARGE, [])) == []
    assert advise(load_config(LARGE, ["machines=null"])) == []
    # One small GPU in a machine without room to offload to.
    alone = ["machines.nodes=1", "machines.gpus_per_node=1", "machines.memory_gb=64"]
    assert not any(text.startswith("trainer") for text in advise(load_config(LARGE, alone)))


@settings(deadline=None, max_examples=60)
@given(
    model=st.sampled_from(["llama-7b", "llama-13b", "llama-65b"]), ranks=st.integers(1, 16),
    rows=st.integers(1, 16), stage=st.integers(0, 3), memory=st.sampled_from([24, 40, 80, 141]),
)  # fmt: skip
def test_advice_fits_and_nothing_of_it_can_be_left_out(
    model: str, ranks: int, rows: int, stage: int, memory: int
) -> None:
    machines = MachinesConfig(
        nodes=2, gpus_per_node=8, gpu_memory_gb=memory, memory_gb=1000, disk_gb=4000
    )
    own = TrainerConfig(
        num_workers=ranks, gpus_per_worker=1, dtype="bfloat16", zero_stage=stage, row_tokens=1024,
        micro_batch_rows=rows,
    )  # fmt: skip
    shape, found = model_shape(model), advise_trainer(model, own, machines)
    assert shape is not None
    if found is None:
        return
    settings_of = {text: change for group in _changes(own, machines) for text, change in group}
    changes = [settings_of[text] for text in found]
    assert trainer_fits(shape, model, apply_changes(own, changes), machines)
    for left_out in range(len(changes)):
        fewer = [change for n, change in enumerate(changes) if n != left_out]
        assert not trainer_fits(shape, model, apply_changes(own, fewer), machines)
