"""Trainings that are killed and go on: with the same ranks, with others, and from other storage.

Run: pytest tests/test_training_state.py
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rft_ray.config import TrainerConfig
from rft_ray.run_dir import read_metrics
from rft_ray.trainer import TrainingJob, run_name, run_training
from tests.training_jobs import (
    assert_same_training,
    make_job,
    make_trainer,
    step_rows,
    write_inputs,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and examples of all trainings here, and what comes of them."""
    folder = tmp_path_factory.mktemp("training")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, ray_session: None) -> TrainingJob:
    """A training on two ranks that nothing interrupts."""
    job = make_job(folder, "whole", steps=60)
    run_training(job, make_trainer(zero_stage=2, num_workers=2))
    assert_same_training(job)
    return job


@pytest.mark.engine
@pytest.mark.faults
@pytest.mark.parametrize("uploads", [False, True])
def test_a_dead_worker_and_a_dead_driver_change_nothing(
    folder: Path, whole: TrainingJob, tmp_path: Path, uploads: bool
) -> None:
    """ZeRO-2 on two ranks in three pieces: bit for bit the same losses and weights."""
    pieces = make_job(folder, f"pieces-{uploads}", steps=60)
    trainer = make_trainer(
        zero_stage=2,
        num_workers=2,
        checkpoint_every=5,
        checkpoint_storage=f"fsspec+file://{tmp_path}" if uploads else None,
    )
    driver = start_driver(pieces, trainer)
    wait_for_step(pieces, 12, driver)
    next(iter(train_workers(driver))).kill()
    wait_for_step(pieces, 30, driver)
    kill_driver(pieces, driver)
    storage = tmp_path if uploads else Path(f"{pieces.output_dir}.train")
    # What is written when the kill comes may be there too.
    assert 1 <= len(saved_steps(storage, 2)) <= trainer.num_to_keep + 2

    run_training(pieces, trainer)
    for ours, theirs in zip(step_rows(pieces), step_rows(whole), strict=True):
        assert (ours["loss"], ours["grad_norm"]) == (theirs["loss"], theirs["grad_norm"])
    weights = "model.safetensors"
    assert Path(pieces.output_dir, weights).read_bytes() == (
        Path(whole.output_dir, weights).read_bytes()
    )
    assert not saved_steps(storage, 2)


@pytest.mark.engine
@pytest.mark.faults
@pytest.mark.parametrize(("stage", "model"), [(1, "tied"), (3, "untied")])
def test_another_number_of_ranks_goes_on(
    folder: Path, ray_session: None, stage: int, model: str
) -> None:
    """Two ranks, then one, then two again make the steps of the plain loop."""
    job = make_job(folder, f"ranks-{stage}", model, steps=100)
    zero = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    two, one = (
        make_trainer(
            zero_stage=stage, num_workers=n, checkpoint_every=5, num_to_keep=20, deepspeed=zero
        )
        for n in (2, 1)
    )
    for trainer in (two, one):
        driver = start_driver(job, trainer)
        # Ranks whose driver is killed may have made a few steps more.
        wait_for_step(job, last_step(job) + 12, driver)
        kill_driver(job, driver)
    # The rank alone did not begin anew: at step 12, that of 5 is recorded.
    assert saved_steps(Path(f"{job.output_dir}.train"), 1)[0] >= 10
    run_training(job, two)
    assert_same_training(job)


@pytest.mark.engine
def test_an_upload_that_fails_ends_the_training(
    folder: Path, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rft_ray.trainer.MAX_WORKER_FAILURES", 0)
    job = make_job(folder, "not-uploaded")
    trainer = make_trainer(checkpoint_every=5, checkpoint_storage=str(tmp_path))
    place = Path(f"{tmp_path}{job.output_dir}.train", run_name(job.name, trainer))
    place.mkdir(parents=True)
    # Where the last checkpoint is to be, there is a file already.
    (place / "step-000005-of-1-ranks").write_text("")
    with pytest.raises(Exception, match="step-000005-of-1-ranks"):
        run_training(job, trainer)


def saved_steps(storage: Path, ranks: int) -> list[int]:
    """Steps that so many ranks have saved, in order."""
    return sorted(int(f.name.split("-")[1]) for f in storage.rglob(f"step-*-of-{ranks}-ranks"))


def kill_driver(job: TrainingJob, driver: subprocess.Popen[bytes]) -> None:
    """Kill a driver and wait until its cluster has noticed."""
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    assert not Path(job.output_dir).exists()
    psutil.wait_procs(children, timeout=30)


def start_driver(job: TrainingJob, trainer: TrainerConfig) -> subprocess.Popen[bytes]:
    """A process of its own, with a Ray cluster of its own, that runs the job."""
    code = f"""
from rft_ray.config import RecipeConfig, TrainerConfig
from rft_ray.ray_session import start_ray
from rft_ray.trainer import TrainingJob, run_name, run_training
start_ray()
run_training({job!r}, {trainer!r})
"""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


def train_workers(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


def last_step(job: TrainingJob) -> int:
    rows = read_metrics(Path(job.metrics_path))
    return max((row["step"] for row in rows if row.get("job") == job.name), default=0)


def wait_for_step(job: TrainingJob, step: int, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if last_step(job) >= step:
            return
        assert driver.poll() is None, "the driver ended early"
        time.sleep(0.02)
    raise TimeoutError(f"no step {step} of {job.name}")


def test_a_state_is_bound_to_its_ranks_where_it_is_on_their_disks() -> None:
    two, three = (make_trainer(num_workers=n) for n in (2, 3))
    assert run_name("rft", two) == run_name("rft", three)
    assert run_name("rft", two) != run_name("rft", make_trainer(num_workers=2, zero_stage=1))
    nvme = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/scratch"}}
    two, three = (
        make_trainer(num_workers=n, deepspeed={"zero_optimization": nvme}) for n in (2, 3)
    )
    assert run_name("rft", two) != run_name("rft", three)
