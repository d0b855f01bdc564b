"""Fine-tuning on Ray Train with DeepSpeed ZeRO: one loop for every kind of supervised step.

`run_training` is called by the driver and returns finished Hugging Face folders; `train_loop` runs
on every rank and sees only batches, whose source is an iterator: the plan of a data set here.
Everything random comes from the plan and the learning rate is a function of the step, so a resumed
run repeats the uninterrupted one. Models train without dropout. Left out: any loss but RFT's,
gradient accumulation by count (a step's micro-batches are whatever its rows need).
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from rft_ray.checkpoint_storage import open_storage, remove_storage, storage_path
from rft_ray.config import RecipeConfig, TrainerConfig, cluster_address
from rft_ray.cores import keep_to_cores
from rft_ray.deepspeed_settings import check_paths, offloads_to_disk
from rft_ray.errors import InputError, StoppedError
from rft_ray.loss_watch import LossWatch, save_stopped_step
from rft_ray.packing import (
    ExampleColumns,
    PackedBatch,
    StepPlan,
    TrainingPlan,
    pack_batch,
    plan_steps,
)
from rft_ray.quantisation import find_fault
from rft_ray.schedule import learning_rate
from rft_ray.step_metrics import StepMetrics
from rft_ray.torn_files import say_torn_states
from rft_ray.utilisation import Utilisation

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from rft_ray.online_trainer import OnlineJob

MAX_WORKER_FAILURES = 3


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One fine-tuning run, from a Hugging Face folder and a Parquet file to a new folder.

    Beside `output_dir` may stand `<output_dir>.train` (its checkpoint storage, while it runs) and
    `<output_dir>.steps/step-000123` (the extra exports of `recipe.export_every`).
    """

    name: str
    model: str
    examples: str
    output_dir: str
    recipe: RecipeConfig
    metrics_path: str
    round: int | None = None


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one rank computes in one optimiser step, and the step's global counts.

    Invariant: all ranks hold the same number of micro-batches for the same step.
    """

    step: int
    micro_batches: list[PackedBatch]
    tokens: int
    examples: int
    fill: float
    all_tokens: int = 0
    """Those of prompts included."""

    def piece(self, number: int, count: int) -> "StepBatch":
        """The same where `count` ranks share the rows, for the `number`-th of them from 0."""
        own = [replace(packed, piece=(number, count)) for packed in self.micro_batches]
        return replace(self, micro_batches=own)


def run_training(job: TrainingJob, trainer: TrainerConfig) -> list[str]:
    """Train until `job.output_dir` exists; the exports in step order, that folder last.

    The same call again continues from the last complete checkpoint, or returns at once.
    """
    if not os.path.isdir(job.output_dir):
        _refuse_bad_input(job)
    return fit(train_loop, job, trainer)


def extra_exports(output_dir: str | Path) -> list[Path]:
    """The exports of a training from before its last step, in step order, as far as they go."""
    return sorted(Path(f"{output_dir}.steps").glob("step-" + "[0-9]" * 6))


def _refuse_bad_input(job: TrainingJob) -> None:
    if not os.path.isfile(os.path.join(job.model, "config.json")):
        raise InputError(f"{job.model}: not a Hugging Face model folder (no config.json)")
    if pq.read_metadata(job.examples).num_rows == 0:
        raise ValueError(f"{job.examples}: there are no examples to train on")


def fit(
    loop: Callable[[dict[str, Any]], str | None],
    job: "TrainingJob | OnlineJob",
    trainer: TrainerConfig,
    gpu_share: float = 1.0,
) -> list[str]:
    """Run a loop on all ranks until `job.output_dir` exists; the exports in step order, it last.

    `gpu_share` is what Ray reserves of a rank's GPUs. Raises StoppedError where the loop says why
    it stopped.
    """
    output_dir = os.path.abspath(job.output_dir)
    storage = storage_path(output_dir, trainer)
    if not os.path.isdir(output_dir):
        open_storage(storage)  # refused before anything starts
        if job.recipe.lora and job.recipe.lora.quantised and (fault := find_fault()):
            raise InputError(fault)
        failure = _run_ranks(loop, job, trainer, storage, gpu_share)
        if failure:
            raise StoppedError(f"training {job.name} stopped: {failure}")
    # The export is complete: the checkpoints have nothing left to protect.
    remove_storage(storage)
    return [*map(str, extra_exports(output_dir)), output_dir]


def _run_ranks(
    loop: Callable[[dict[str, Any]], str | None],
    job: "TrainingJob | OnlineJob",
    trainer: TrainerConfig,
    storage: str,
    gpu_share: float,
) -> str | None:
    """What a loop returned on rank 0; checkpoints go to the path or URI `storage`."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    check_paths(trainer)
    say_torn_states(Path(storage))
    # Ray Train reads these in the driver and hands them on to its controller and workers. The last
    # is how often it looks whether the workers are done or dead: two seconds unless told.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(trainer.start_timeout_s)
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(trainer.collective_timeout_s)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if cluster_address():
        # What a cluster's dashboard knows of a training; costs an actor that outlives the run.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    on_gpu = trainer.gpus_per_worker > 0
    resources = {"CPU": trainer.cpus_per_worker}
    if on_gpu:
        resources["GPU"] = trainer.gpus_per_worker * gpu_share
    result = TorchTrainer(
        loop,
        train_loop_config={"job": job, "trainer": trainer},
        torch_config=TorchConfig(
            backend="nccl" if on_gpu else "gloo", timeout_s=math.ceil(trainer.collective_timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=trainer.num_workers,
            use_gpu=on_gpu,
            resources_per_worker=resources,
            label_selector=trainer.labels or None,
        ),
        run_config=RunConfig(
            name=run_name(job.name, trainer),
            storage_path=storage,
            checkpoint_config=CheckpointConfig(num_to_keep=trainer.num_to_keep),
            failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    ).fit()
    return result.return_value


def run_name(job: str, trainer: TrainerConfig) -> str:
    """A state fits the ZeRO stage and type that wrote it: under others, steps are redone.

    So they are with another number of ranks where the state is on disks of the ranks' own.
    """
    name = f"{job}-zero{trainer.zero_stage}-{trainer.dtype}"
    return f"{name}-{trainer.num_workers}-ranks" if offloads_to_disk(trainer) else name


def train_loop(config: dict[str, Any]) -> str | None:
    """One rank: train to the end and export. Returns why it stopped, where the loss blew up.

    That is returned rather than raised, because Ray Train would retry what fails every time.
    """
    job: TrainingJob = config["job"]
    trainer: TrainerConfig = config["trainer"]
    rank, num_ranks = prepare_process(trainer)

    from rft_ray.engine import build_engine
    from rft_ray.export import export_model, probe_sequences
    from rft_ray.prompts import read_example_columns
    from rft_ray.training_state import load_checkpoint, report_checkpoint

    recipe, output_dir = job.recipe, os.path.abspath(job.output_dir)
    columns = read_example_columns(job.examples)
    group, place = divmod(rank, trainer.sequence_parallel)
    num_groups = num_ranks // trainer.sequence_parallel
    plan = plan_steps(
        columns.lengths, recipe, num_groups, trainer.row_tokens, trainer.micro_batch_rows
    )
    probes = probe_sequences(columns)
    engine = build_engine(job.model, recipe, trainer)
    steps_done = load_checkpoint(engine)
    use = Utilisation.of(job.model, trainer)
    metrics = StepMetrics(job, plan.num_steps, use) if rank == 0 else None
    watch = LossWatch(recipe.spike_factor)

    def export(folder: str, step: int) -> None:
        export_model(engine, job.model, folder, probes, step, trainer.max_shard_mb * 2**20)

    for batch in planned_batches(plan, columns, group, first_step=steps_done + 1):
        step, started = batch.step, time.perf_counter()
        rate = learning_rate(step, plan.num_steps, recipe)
        own = batch.piece(place, trainer.sequence_parallel)
        result = train_step(engine, own, rate, recipe.max_grad_norm, limit=watch.limit)
        if failure := watch.failure(step, *result):
            return stop(failure, rank, output_dir, step, columns, plan.step(step).example_ids)
        if metrics:
            metrics.append(batch, rate, *result, time.perf_counter() - started)

        if step == plan.num_steps:
            export(output_dir, step)
        elif is_due(step, recipe.export_every):
            export(f"{output_dir}.steps/step-{step:06d}", step)
        if step < plan.num_steps and is_due(step, trainer.checkpoint_every):
            report_checkpoint(engine, step, uploads=trainer.checkpoint_storage is not None)
    return None


def stop(
    failure: str,
    rank: int,
    output_dir: str,
    step: int,
    columns: ExampleColumns,
    ids: list[int] | None = None,
) -> str:
    """Save the step's examples, which every rank has, on rank 0; the failure and where they are."""
    if rank:
        return failure
    return f"{failure}; its examples: {save_stopped_step(output_dir, step, columns, ids)}"


def prepare_process(trainer: TrainerConfig) -> tuple[int, int]:
    """This rank and their number; imports DeepSpeed, which must not have been before."""
    import torch
    from ray import train

    from rft_ray.deepspeed_import import import_deepspeed

    keep_to_cores(trainer.cores, "trainer.cores")
    if trainer.gpus_per_worker == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
        # Ray sets one thread per reserved logical CPU, which says nothing about cores.
        cores = len(trainer.cores) or os.cpu_count() or 1
        torch.set_num_threads(trainer.threads_per_worker or max(1, cores // trainer.num_workers))
    import_deepspeed()
    context = train.get_context()
    return context.get_world_rank(), context.get_world_size()


def is_due(step: int, every: int | None) -> bool:
    """Whether something is to be done after this step; none or 0: never."""
    return bool(every) and step % every == 0


def planned_batches(
    plan: TrainingPlan, columns: ExampleColumns, rank: int, first_step: int
) -> Iterator[StepBatch]:
    """This rank's (or group of ranks') part of every step of a plan, from first_step on."""
    from rft_ray.loss import token_weights

    for number in range(first_step, plan.num_steps + 1):
        step = plan.step(number)
        loss_tokens = columns.loss_tokens[step.example_ids]
        weights = token_weights(loss_tokens, columns.weights[step.example_ids], plan.recipe.loss)
        yield step_batch(number, step, columns, weights, rank)


def step_batch(
    number: int, step: StepPlan, columns: ExampleColumns, weights: np.ndarray, rank: int
) -> StepBatch:
    """A rank's part of a step; `weights` are those of the loss tokens, by example of the step."""
    by_example = dict(zip(step.example_ids, weights.tolist(), strict=True))
    return StepBatch(
        step=number,
        micro_batches=[pack_batch(rows, columns, by_example) for rows in step.micro_batches[rank]],
        tokens=int(columns.loss_tokens[step.example_ids].sum()),
        examples=len(step.example_ids),
        fill=step.fill,
        all_tokens=int(columns.lengths[step.example_ids].sum()),
    )


def train_step(
    engine: "DeepSpeedEngine",
    batch: StepBatch,
    rate: float,
    max_grad_norm: float,
    loss_of: Callable[..., Any] | None = None,
    limit: float = math.inf,
) -> tuple[float, float]:
    """One optimiser step; the exact loss over all ranks, and the gradient norm before clipping.

    `loss_of` is called as `loss_head.packed_loss` is, which it replaces. The weights are left alone
    when the loss is not finite or above `limit`, and the norm is then NaN.
    """
    import torch
    from torch import distributed

    from rft_ray.loss_head import packed_loss

    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for number, packed in enumerate(batch.micro_batches, start=1):
        # The count of micro-batches differs from step to step: the boundary is ours to announce.
        engine.set_gradient_accumulation_boundary(number == len(batch.micro_batches))
        loss = (loss_of or packed_loss)(engine, packed, engine.device)
        # DeepSpeed takes the mean of the ranks' gradients; the weights already make a sum exact.
        engine.backward(loss * engine.world_size)
        total += loss.detach()
    distributed.all_reduce(total)
    if not (math.isfinite(total.item()) and total.item() <= limit):
        return total.item(), math.nan
    if engine.zero_optimization():
        engine.step()
        return total.item(), float(engine.get_global_grad_norm())
    # Plain fp32 data parallelism: DeepSpeed would clip, but not tell the norm.
    limit = max_grad_norm or math.inf
    grad_norm = torch.nn.utils.clip_grad_norm_(engine.module.parameters(), limit)
    engine.step()
    return total.item(), grad_norm.item()
