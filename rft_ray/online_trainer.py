"""The training half of online RFT: the ranks of a Ray Train job, fed by the buffer.

`run_online_training` is called in the background of the driver. Each step rank 0 takes a batch of
groups and shares it, every rank trains on its part by the step of offline training, and the new
weights go into every sampler replica before the step counts as trained. Steps and checkpoints are
numbered by batches: a batch may have several optimiser steps. Left out: how weights travel
(`refresh.py`), and any loss but RFT's (`loss.py`).
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rft_ray.clock import Clock
from rft_ray.config import OnlineConfig, RecipeConfig, SelectionConfig, TrainerConfig
from rft_ray.gpu_gate import RANK_SHARE, Sharing
from rft_ray.loss_watch import LossWatch
from rft_ray.online_batches import OnlineStep, make_online_step, online_weights, rank_batches
from rft_ray.packing import ExampleColumns
from rft_ray.prompts import Prompt
from rft_ray.ray_metrics import Meter, line_points
from rft_ray.sampling import refresh_facts
from rft_ray.schedule import learning_rate
from rft_ray.selection import EVERYTHING
from rft_ray.trainer import fit, is_due, prepare_process, stop, train_step
from rft_ray.utilisation import Utilisation

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from rft_ray.buffer import StepGroups
    from rft_ray.gpu_turns import GpuTurns
    from rft_ray.types import Group


@dataclass(frozen=True, slots=True)
class OnlineJob:
    """One online training, from a Hugging Face folder and a buffer to a new folder.

    Beside `output_dir` may stand `<output_dir>.train` (checkpoints, while it runs) and
    `<output_dir>.steps/step-000123` (an export every `online.evaluate_every` steps).
    """

    name: str
    model: str
    output_dir: str
    recipe: RecipeConfig
    online: OnlineConfig
    prompt: Prompt
    selection: SelectionConfig
    """Which of the accepted rollouts are learned from."""
    live_policy: str
    metrics_path: str
    application: str
    """Serve application of the live policy's sampler."""
    buffer: Any
    """Handle of the buffer's actor."""
    probes: list[list[int]]
    """Token ids on which sampler and trainer are compared."""
    sharing: Sharing | None = None
    """The samplers on the trainer's GPUs; none: they have others."""


def run_online_training(job: OnlineJob, trainer: TrainerConfig) -> list[str]:
    """Train until the buffer has no more steps; the exports in step order, the last one last.

    The same call again continues from the last complete checkpoint, or returns at once.
    """
    return fit(online_loop, job, trainer, RANK_SHARE if job.sharing else 1.0)


def online_loop(config: dict[str, Any]) -> str | None:
    """One rank, to the end of the buffer. Returns why it stopped, where the loss blew up."""
    job: OnlineJob = config["job"]
    trainer: TrainerConfig = config["trainer"]
    rank, num_ranks = prepare_process(trainer)

    from rft_ray.engine import build_engine
    from rft_ray.export import export_model
    from rft_ray.gpu_turns import GpuTurns
    from rft_ray.training_state import load_checkpoint, report_checkpoint

    online, turns = job.online, GpuTurns(job.sharing, rank)
    turns.take()
    engine = build_engine(job.model, job.recipe, trainer)
    done = load_checkpoint(engine) // online.updates_per_batch
    live = LiveSide(job, engine, trainer, turns)
    live.begin(done)
    watch = LossWatch(job.recipe.spike_factor)

    def export(folder: str, step: int) -> None:
        export_model(engine, job.model, folder, job.probes, step, trainer.max_shard_mb * 2**20)

    while (taken := live.take(done)) is not None:
        done, clock = taken.step, Clock()
        turns.take(clock)
        examples = live.examples(taken.groups)
        result = train_on(engine, job, trainer, examples, done, (rank, num_ranks), watch.limit)
        if result.is_update and (failure := watch.failure(done, result.loss, result.grad_norm)):
            return stop(failure, rank, job.output_dir, done, ExampleColumns.of(examples.examples))
        clock.lap("train_seconds")
        if is_due(done, online.evaluate_every):
            export(f"{job.output_dir}.steps/step-{done:06d}", done)
        if is_due(done, trainer.checkpoint_every):
            report_checkpoint(engine, done, uploads=trainer.checkpoint_storage is not None)
        clock.lap("save_seconds")
        live.refresh(done)
        clock.lap("refresh_seconds")
        live.log(taken, examples, result, clock)
        live.finished(done)
    export(job.output_dir, done)
    return None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a batch: means over its optimiser steps; NaN where there was nothing to learn.

    `entropy` is in nats a trained token; `clipped` the share of them whose ratio left the range.
    """

    loss: float
    grad_norm: float
    entropy: float
    clipped: float
    learning_rate: float
    fill: float = math.nan

    @property
    def is_update(self) -> bool:
        """Whether there was anything to learn; a batch without examples changes nothing."""
        return not math.isnan(self.fill)


def train_on(
    engine: "DeepSpeedEngine",
    job: OnlineJob,
    trainer: TrainerConfig,
    learned: OnlineStep,
    number: int,
    place: tuple[int, int],
    limit: float = math.inf,
) -> StepResult:
    """The optimiser steps on a batch; `place` is (rank, ranks).

    Weights are left alone where there is nothing to learn from or the loss is above `limit`.
    """
    updates = job.online.updates_per_batch
    total = job.online.steps * updates
    if not learned.examples:
        rate = learning_rate(number * updates, total, job.recipe)
        return StepResult(math.nan, math.nan, math.nan, math.nan, rate)
    rank, num_ranks = place
    columns = ExampleColumns.of(learned.examples)
    weights = online_weights(learned, columns, job.recipe.loss, job.online.normalise)
    group, piece = divmod(rank, trainer.sequence_parallel)
    num_groups = num_ranks // trainer.sequence_parallel
    shape = (num_groups, trainer.row_tokens, trainer.micro_batch_rows)
    own = rank_batches(number, columns, weights, *shape)[group]
    own = own.piece(piece, trainer.sequence_parallel)
    results = []
    for update in range(updates):
        rate = learning_rate((number - 1) * updates + update + 1, total, job.recipe)
        loss = OnlineLoss(job.online)
        value, grad_norm = train_step(engine, own, rate, job.recipe.max_grad_norm, loss, limit)
        results.append(StepResult(value, grad_norm, *loss.means(engine), rate, own.fill))
        if not math.isfinite(grad_norm):
            break
    return _mean_result(results)


def _mean_result(results: list[StepResult]) -> StepResult:
    def mean(name: str) -> float:
        return sum(getattr(result, name) for result in results) / len(results)

    return StepResult(*map(mean, StepResult.__dataclass_fields__))


class OnlineLoss:
    """The clipped loss of micro-batches, which adds up what is to be watched on the way."""

    def __init__(self, online: OnlineConfig) -> None:
        from rft_ray.loss import ClipRange

        low = online.clip_low if online.clip_low is not None else ClipRange().low
        self._clip = ClipRange(low, online.clip_high if online.clip_high is not None else low)
        self._sums: list[Any] = []

    def __call__(self, engine: Any, packed: Any, device: Any) -> Any:
        from rft_ray.loss_head import clipped_loss

        sums = clipped_loss(engine, packed, device, self._clip)
        self._sums.append([s.detach().double() for s in (sums.entropy, sums.clipped, sums.tokens)])
        return sums.loss

    def means(self, engine: "DeepSpeedEngine") -> tuple[float, float]:
        """Entropy and clipped share a trained token, over all ranks."""
        import torch

        total = torch.tensor(
            [sum(float(own[i]) for own in self._sums) for i in range(3)],
            dtype=torch.float64,
            device=engine.device,
        )
        torch.distributed.all_reduce(total)
        entropy, clipped, tokens = total.tolist()
        return entropy / max(tokens, 1.0), clipped / max(tokens, 1.0)


class LiveSide:
    """What connects the ranks to the rest of the run: rank 0 asks, the others hear of it."""

    def __init__(
        self, job: OnlineJob, engine: "DeepSpeedEngine", trainer: TrainerConfig, turns: "GpuTurns"
    ) -> None:
        from rft_ray.refresh import Refresher, RefreshSettings
        from rft_ray.sampling import load_tokenizer

        network: Literal["gloo", "nccl"] = "nccl" if trainer.gpus_per_worker else "gloo"
        settings = RefreshSettings(
            in_flight=job.online.in_flight,
            backend="shared" if job.online.transfer == "shared" else network,
            bucket_bytes=job.online.bucket_mb * 2**20,
            timeout_s=job.online.refresh_timeout_s,
        )
        self._tokenizer = load_tokenizer(job.model)
        self._job = job
        self._engine = engine
        self._is_leader = turns.is_leader
        self._refresher = Refresher(job.application, settings, job.probes)
        self._turns = turns
        self._num_refreshes = 0
        self._meter = Meter()
        self._use = Utilisation.of(job.model, trainer)

    def begin(self, done: int) -> None:
        """Bring the samplers to the weights there are, once they are free, and let them sample."""
        import ray

        # On every rank: one that waited for rank 0 in a collective would time out in the end.
        ray.get(self._job.buffer.wait_open.remote())
        self.refresh(done)
        self._call("start", done)

    def take(self, done: int) -> "StepGroups | None":
        """The next step's groups, on every rank; None when there are no more."""
        import ray
        import torch

        started = time.perf_counter()
        if not self._is_leader:
            # Not in the collective below: NCCL waits by a kernel that spins, here for as long as
            # the samplers work, perhaps on the same GPU.
            ray.get(self._job.buffer.wait_put.remote(done))
        box = [self._call("take", done)]
        torch.distributed.broadcast_object_list(box, src=0, device=self._engine.device)
        self._waited = time.perf_counter() - started
        return box[0]

    def refresh(self, version: int) -> None:
        """Every replica gets the current weights; compared with ours as often as asked for."""
        online, number = self._job.online, self._num_refreshes
        self._num_refreshes += 1
        is_checked = number < online.parity_first or is_due(number, online.parity_every)
        started = time.perf_counter()
        self._turns.give(self._engine)
        reports = self._refresher.refresh(self._engine, version, is_checked)
        self._turns.wake_frozen()
        self._write(
            kind="refresh",
            round=0,
            step=version,
            sampler=self._job.application,
            model="target",
            seconds=time.perf_counter() - started,
            pause_seconds=max(report.seconds for report in reports),
            **refresh_facts(reports),
        )

    def examples(self, groups: "list[Group]") -> OnlineStep:
        """What is learned from a step's groups, as every rank computes it."""
        job = self._job
        return make_online_step(
            groups,
            lambda problem: job.prompt.encode(problem, self._tokenizer),
            job.recipe.max_length,
            selection=job.selection if job.online.select else EVERYTHING,
            ratio_for=job.live_policy if job.online.clip_low is not None else None,
            source_weights=job.recipe.source_weights,
        )

    def finished(self, version: int) -> None:
        """The step is trained and its weights are in the samplers."""
        self._call("trained", version)

    def log(
        self,
        taken: "StepGroups",
        learned: OnlineStep,
        result: StepResult,
        clock: Clock,
    ) -> None:
        """The step's line in the metrics."""
        ages, updates = taken.staleness, self._job.online.updates_per_batch
        positions = updates * sum(len(example.input_ids) for example in learned.examples)
        self._write(
            kind="online_step",
            round=0,
            step=taken.step,
            policy_version=taken.step,
            staleness_max=max(ages, default=0),
            staleness={str(age): count for age, count in sorted(ages.items())},
            loss=_or_none(result.loss),
            grad_norm=_or_none(result.grad_norm),
            entropy=_or_none(result.entropy),
            clipped=_or_none(result.clipped),
            learning_rate=result.learning_rate,
            examples=len(learned.examples),
            tokens=sum(sum(example.loss_mask) for example in learned.examples),
            fill=_or_none(result.fill),
            mfu=self._use.share(positions, clock.laps["train_seconds"]),
            wait_seconds=self._waited,
            **clock.laps,
            **{
                **taken.facts,
                "dropped": {**taken.facts["dropped"], **taken.dropped, **learned.dropped},
            },
        )

    def _call(self, method: str, *args: Any) -> Any:
        import ray

        if self._is_leader:
            return ray.get(getattr(self._job.buffer, method).remote(*args))
        return None

    def _write(self, **line: Any) -> None:
        if self._is_leader:
            with Path(self._job.metrics_path).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": time.time(), **line}) + "\n")
            self._meter.record(line_points(line))


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
