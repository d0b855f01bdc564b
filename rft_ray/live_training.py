"""The trainer of an online run, as the driver sees it: in the background, behind a buffer.

`LiveTraining` says which step to sample next, takes its groups, and knows what was exported. Where
training goes back to a checkpoint, since a rank died, the steps after it are asked for again. The
other end is `online_trainer.py`.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rft_ray.buffer import BufferActor
from rft_ray.gpu_gate import NAMESPACE, GateActor, Sharing, gate_name
from rft_ray.online_trainer import OnlineJob, run_online_training
from rft_ray.run_dir import run_label
from rft_ray.sampling import SamplerUnavailableError, Weights
from rft_ray.study import TARGET, Checkpoints, Samplers, Study, exported_weights
from rft_ray.types import Group

PROBLEMS_IN_PROBE = 4
PROBE_TOKENS = 64


class LiveTraining:
    """A training that runs in a thread of the driver, fed through a buffer."""

    def __init__(self, study: Study, job: OnlineJob, buffer: Any) -> None:
        self._study = study
        self._job = job
        self._buffer = buffer
        self._exports: list[str] = []
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._train, name="train", daemon=True)
        self._thread.start()

    def steps(self) -> Iterator[int]:
        """Each step once it may be sampled: not more than `max_staleness` ahead of the trainer.

        Until the first is asked for, the trainer starts and leaves the samplers alone.
        """
        self._ask("open")
        while (step := self._ask("next_step")) is not None:
            yield step

    def put(self, step: int, groups: list[Group], facts: dict[str, Any]) -> None:
        """Hand over a step's groups, and what is to stand in its line of the metrics."""
        self._ask("put", step, groups, facts)

    def wait_trained(self, step: int) -> bool:
        """Return when the step is trained, exported where that was due, and in the samplers.

        False where training has gone back: the step will be asked for again.
        """
        return self._ask("wait_trained", step)

    @property
    def failure(self) -> Exception | None:
        """What training failed with for good, if it has."""
        return self._failure

    @property
    def output_dir(self) -> str:
        """Where the last weights go, and beside it the exports on the way."""
        return self._job.output_dir

    def exported(self, step: int) -> Weights:
        """The checkpoint that was exported after a step."""
        return exported_weights(f"{self._job.output_dir}.steps/step-{step:06d}")

    def finish(self) -> list[Weights]:
        """No more steps: the checkpoints that are there, once the trainer has written the last."""
        self._ask("close")
        self._thread.join()
        if self._failure:
            raise self._failure
        weights = [exported_weights(folder) for folder in self._exports if os.path.isdir(folder)]
        if len(weights) > 1 and weights[-1].version == weights[-2].version:
            # The last step's export was scored while it was live, and the final one equals it.
            del weights[-1]
        return weights

    def _ask(self, method: str, *args: Any) -> Any:
        """A call of the buffer; where training failed, its own error instead of the buffer's."""
        try:
            return ray.get(getattr(self._buffer, method).remote(*args))
        except RayError:
            if self._failure:
                raise self._failure from None
            raise

    def _train(self) -> None:
        try:
            if self._job.sharing:
                # Until then the driver asks the samplers, which have the GPUs.
                ray.get(self._buffer.wait_open.remote())
            self._exports = run_online_training(self._job, self._study.config.trainer)
        except Exception as error:  # whatever it is, the driver raises it
            self._failure = error
        finally:
            # Whoever waits in the buffer is woken: there is nobody left to wait for.
            reason = None if self._failure is None else f"training failed: {self._failure}"
            # In a buffer that is gone nobody waits.
            with suppress(RayError):
                ray.get(self._buffer.end.remote(reason))


@contextmanager
def live_training(
    study: Study, samplers: Samplers, checkpoints: dict[str, Checkpoints]
) -> Iterator[LiveTraining]:
    """A training of the target in the background; it is stopped if the block raises."""
    online, target = study.config.online, study.target
    live = study.config.own_policy.name if study.config.own_policy else ""
    # Where the driver is: another node's death would take the buffer with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    buffer = BufferActor.options(
        name=f"online-buffer-{os.getpid()}", num_cpus=0, scheduling_strategy=here
    ).remote(online.steps, online.max_staleness, live)
    job = OnlineJob(
        name="online-target",
        model=checkpoints[TARGET].start(target.rft.start_from),
        output_dir=str(study.run.round(0).checkpoint),
        recipe=target.rft,
        online=online,
        prompt=target.prompt,
        selection=study.config.selection,
        live_policy=live,
        metrics_path=str(study.run.metrics),
        application=samplers.application[samplers.serving[TARGET]],
        buffer=buffer,
        probes=probe_sequences(study),
        sharing=share_gpus(study, samplers) if online.share_gpus else None,
    )
    training = LiveTraining(study, job, buffer)
    try:
        yield training
    except BaseException as error:
        # Asked first: without its buffer training fails too.
        failure = failure_behind(error, training.failure)
        ray.kill(buffer)
        if failure:
            raise failure from error
        raise


def failure_behind(error: BaseException, failure: Exception | None) -> Exception | None:
    """Training's failure where it is the reason for an error of the driver's; None: it is not.

    Samplers stay without weights, or asleep, when nobody is left to bring and wake them.
    """
    return failure if isinstance(error, SamplerUnavailableError) else None


def share_gpus(study: Study, samplers: Samplers) -> Sharing:
    """The samplers, up so that Ray puts ranks beside them, and the gate they start through."""
    samplers.start()
    # Where the driver is, as the buffer.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    gate = GateActor.options(
        name=gate_name(run_label(study.run.path)),
        namespace=NAMESPACE,
        num_cpus=0,
        scheduling_strategy=here,
    ).remote()
    replicas = {
        samplers.application[policy.name]: policy.sampler.num_replicas
        for policy in study.config.policies
    }
    return Sharing(gate, samplers.application[samplers.serving[TARGET]], replicas)


def probe_sequences(study: Study) -> list[list[int]]:
    """Prompts with their gold solutions, cut short: on these sampler and trainer are compared."""
    from rft_ray.sampling import load_tokenizer

    tokenizer = load_tokenizer(study.target.base)
    sequences = []
    for problem in study.problems["train"][:PROBLEMS_IN_PROBE]:
        ids = study.target.prompt.encode(problem, tokenizer)
        ids += tokenizer.encode(problem.solution or problem.answer, add_special_tokens=False)
        sequences.append(ids[-PROBE_TOKENS:])
    return sequences
