"""After a training step: every sampler replica gets the new weights from the running trainer.

`Refresher` is what the train loop holds, on every rank; rank 0 alone talks to the samplers, through
a `SamplerLink`, and tells the other ranks how it went, so that all go on or all raise. A refresh
is: see which replicas there are, form the weight group anew if they are not those of last time,
pause them, send each bucket while the next one is gathered and packed, resume, check parity.
Whatever fails or takes too long ends the attempt with nothing served; the next one starts with the
replicas that are left. A replica that starts later serves no live weights until the refresh after.

Left out: which requests may be answered by which version (`sampling.Weights`), and sending to
samplers of several models at once.
"""

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor, distributed

from rft_ray.buckets import TensorSpec
from rft_ray.export import probe_logprobs
from rft_ray.sampling import ParityError, RefreshReport, SamplerUnavailableError
from rft_ray.shared_group import Address, SharedGroup, share_buffer
from rft_ray.weight_group import Rendezvous, WeightGroup, bucket_bytes, open_store
from rft_ray.weight_source import WeightSource

Plan = list[list[TensorSpec]]


class RefreshError(RuntimeError):
    """The samplers could not be refreshed.

    They serve nothing; those that had not begun still serve the version before.
    """


@dataclass(frozen=True, slots=True)
class RefreshSettings:
    """How refreshes are done; the limits are seconds."""

    in_flight: Literal["wait", "keep", "abort"] = "wait"
    """Requests that a refresh finds running: finished first, continued with the new weights and
    counted as the old version's, or failed (and asked again by whoever asked)."""
    backend: Literal["gloo", "nccl", "shared"] = "gloo"
    """How buckets travel; shared: through memory of rank 0's machine, where all replicas are."""
    bucket_bytes: int = 32 * 2**20
    """Tensors travel together up to this size; rank 0 holds two buckets beside its shard."""
    timeout_s: float = 60.0
    """For a rendezvous, a bucket, or any call to the replicas that only does work."""
    drain_s: float = 600.0
    """For the requests in flight to finish."""
    replicas_s: float = 600.0
    """For a replica to appear where there is none."""
    attempts: int = 3


class Refresher:
    """Brings a sampler's replicas to the weights of a DeepSpeed engine, called on every rank."""

    def __init__(
        self, application: str, settings: RefreshSettings, probes: list[list[int]]
    ) -> None:
        """`application` is the sampler's in Serve; `probes` are token ids to check parity on."""
        self._settings = settings
        self._probes = probes
        self._source: WeightSource | None = None
        is_leader = distributed.get_rank() == 0
        self._link = SamplerLink(application, settings) if is_leader else None

    def refresh(
        self, engine: DeepSpeedEngine, version: int, check_parity: bool = True
    ) -> list[RefreshReport]:
        """Every replica serves the current weights as this version; a report for each, on any rank.

        Raises on all ranks alike: ParityError, or RefreshError after the last attempt.
        """
        if self._source is None:
            self._source = WeightSource(engine, self._settings.bucket_bytes)
            if self._link and self._settings.backend == "shared":
                device = torch.device(engine.device)
                self._source.buffers = self._link.share_buffers(self._source.plan, device)
        probe = None
        if check_parity and self._probes:
            logprobs = probe_logprobs(engine, self._probes)
            probe = {"token_ids": self._probes, "logprobs": logprobs}
        for _ in range(self._settings.attempts):
            outcome = self._attempt(engine, version, probe)
            if isinstance(outcome, list):
                return outcome
            if isinstance(outcome, ParityError):
                break
        raise outcome

    def close(self) -> None:
        """Leave the weight group."""
        if self._link:
            self._link.close()

    def _attempt(
        self, engine: DeepSpeedEngine, version: int, probe: dict[str, list] | None
    ) -> list[RefreshReport] | Exception:
        """The reports, or why there are none: the same on all ranks."""
        failure = self._lead(engine, lambda link: link.prepare(self._source.plan))
        if failure:
            return failure
        for flat in self._source:
            if self._link:
                self._link.send(flat)
        return self._lead(engine, lambda link: link.finish(version, probe))

    def _lead(self, engine: DeepSpeedEngine, act: Callable[["SamplerLink"], Any]) -> Any:
        """What rank 0 got from its link, or its exception, on every rank."""
        outcome = None
        if self._link:
            try:
                outcome = act(self._link)
            except ParityError as error:
                # Ray's own has the traceback of the replica in front of the message.
                outcome = ParityError(str(getattr(error, "cause", error)))
            except Exception as error:
                # Whatever it is, a bug too: the other ranks wait to hear how it went.
                outcome = RefreshError(f"{type(error).__name__}: {error}")
            if isinstance(outcome, Exception):
                self._link.abandon()
        box = [outcome]
        distributed.broadcast_object_list(box, src=0, device=engine.device)
        return box[0]


class SamplerLink:
    """Rank 0's connection to all replicas of a sampler.

    One refresh is `prepare`, `send` for each bucket of the plan in order, `finish`; after any
    failure, `abandon`.
    """

    def __init__(self, application: str, settings: RefreshSettings) -> None:
        from ray import serve

        self._handle = serve.get_app_handle(application)
        self._settings = settings
        self._group: WeightGroup | SharedGroup | None = None
        self._group_id = ""
        self._buffers: list[Tensor] = []
        self._addresses: list[Address] = []
        self._num_members = 0
        self._num_bytes = 0
        self._transfer: Future[list[Any]] | None = None
        self._on_its_way: Any = None
        self._failure: Exception | None = None

    def share_buffers(self, plan: Plan, device: torch.device) -> list[Tensor]:
        """The two buffers to pack into, where all replicas are to map them."""
        size = max(map(bucket_bytes, plan))
        shared = [share_buffer(size, device) for _ in range(2)]
        self._buffers = [buffer for buffer, _ in shared]
        self._addresses = [address for _, address in shared]
        return self._buffers

    def prepare(self, plan: Plan) -> None:
        """All replicas stop serving and wait for the buckets of the plan."""
        settings = self._settings
        self._failure = self._on_its_way = None
        self._join(self._find_replicas())
        self._call_members(
            "prepare_refresh",
            (settings.in_flight, settings.drain_s, settings.timeout_s),
            2 * settings.drain_s + settings.timeout_s,
        )
        wire = [[(spec.name, list(spec.shape), spec.dtype) for spec in b] for b in plan]
        self._num_bytes = sum(map(bucket_bytes, plan))
        args = (self._group_id, wire, self._transfer_limit(plan))
        self._transfer = in_background(lambda: self._broadcast("transfer_weights", args))
        self._transfer_ends_by = time.monotonic() + self._transfer_limit(plan)

    def send(self, flat: Tensor) -> None:
        """Send a bucket; returns when the one before has arrived, whose buffer is free then.

        A failure is kept for `finish`: other ranks are gathering, and rank 0 has to go on.
        """
        try:
            if self._failure is None:
                self._raise_early()
                before, self._on_its_way = self._on_its_way, self._group.post(flat)
                if before is not None:
                    before.wait()
        except Exception as error:  # whatever it is: `finish` raises it
            self._failure = error

    def finish(self, version: int, probe: dict[str, list] | None) -> list[RefreshReport]:
        """All replicas serve what was sent, after comparing with `probe`; one report for each."""
        if self._failure is None and self._on_its_way is not None:
            try:
                self._on_its_way.wait()
            except RuntimeError as error:  # all that torch.distributed has are
                self._failure = error
        if self._failure is not None:
            self.close()
        limit = self._transfer_ends_by - time.monotonic() + self._settings.timeout_s
        self._check_count(self._transfer.result(max(limit, 0.0)))
        if self._failure is not None:
            raise self._failure
        args = (version, probe, self._num_bytes)
        return self._call_members("finish_refresh", args, 2 * self._settings.timeout_s)

    def abandon(self) -> None:
        """Have all members serve nothing, and form a new group next time."""
        args, limit = (self._group_id,), 4 * self._settings.timeout_s
        self.close()
        try:
            in_background(lambda: self._broadcast("abandon_refresh", args)).result(limit)
        except Exception:
            # Those that cannot be reached give up by themselves when no call comes. Whatever else
            # it is, why the refresh failed matters more, and the other ranks wait to hear it.
            return

    def close(self) -> None:
        """Leave the weight group; the next refresh forms another."""
        if self._group is not None:
            self._group.close()
        self._group, self._group_id = None, ""

    def _raise_early(self) -> None:
        """Waiting for a group that a replica has left would only end with the timeout."""
        if self._transfer.done():
            self._check_count(self._transfer.result())

    def _transfer_limit(self, plan: Plan) -> float:
        """Each bucket may take the timeout; they hardly all do."""
        return self._settings.timeout_s * (len(plan) + 1)

    def _find_replicas(self) -> list[Any]:
        """The state of each living replica, at least one."""
        deadline = time.monotonic() + self._settings.replicas_s
        while True:
            replicas = self._look_for_replicas()
            if replicas:
                return replicas
            if time.monotonic() > deadline:
                raise SamplerUnavailableError("there is no living replica")
            time.sleep(0.5)

    def _look_for_replicas(self) -> list[Any]:
        from ray.exceptions import RayActorError

        call = in_background(lambda: self._broadcast("describe", ()))
        try:
            return call.result(self._settings.timeout_s)
        except (RayActorError, TimeoutError):
            # One died while it was asked, or Serve has not noticed yet: ask again.
            return []

    def _join(self, replicas: list[Any]) -> None:
        """Be in one group with exactly these replicas, a new one unless they all are in ours."""
        in_ours = [replica.group_id == self._group_id for replica in replicas]
        if self._group and all(in_ours) and len(in_ours) == self._num_members:
            return
        self.close()
        first_ranks, size = {}, 1
        for replica in replicas:
            first_ranks[replica.replica_id] = size
            size += replica.num_workers
        self._rendezvous(first_ranks, size)

    def _rendezvous(self, first_ranks: dict[str, int], size: int) -> None:
        import ray

        settings = self._settings
        host = ray.util.get_node_ip_address()
        store = open_store(host, settings.timeout_s)
        limit_s = settings.timeout_s
        meeting = Rendezvous(host, store.port, size, settings.backend, limit_s, self._addresses)
        self._num_members = len(first_ranks)
        args = (uuid.uuid4().hex, meeting, first_ranks)
        joining = in_background(lambda: self._broadcast("join_weight_group", args))
        self._group = (
            SharedGroup(meeting, 0, store, self._buffers)
            if self._buffers
            else WeightGroup(meeting, 0, store)
        )
        self._group_id = args[0]
        self._check_count(joining.result(3 * settings.timeout_s))

    def _call_members(self, method: str, args: tuple[Any, ...], limit_s: float) -> list[Any]:
        """What each member of the group answered; RuntimeError unless all did."""
        args = (self._group_id, *args)
        call = in_background(lambda: self._broadcast(method, args))
        return self._check_count(call.result(limit_s))

    def _check_count(self, answers: list[Any]) -> list[Any]:
        if len(answers) != self._num_members:
            lost = self._num_members - len(answers)
            raise SamplerUnavailableError(f"{lost} of {self._num_members} replicas are gone")
        return answers

    def _broadcast(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        """The answers of the replicas that the call concerns; the others answer None."""
        from ray.llm._internal.serve.utils.broadcast import broadcast

        answers = broadcast(self._handle, method, args=args)
        return [answer for answer in answers if answer is not None]


def in_background(call: Callable[[], list[Any]]) -> "Future[list[Any]]":
    """A call that can be given up on: Ray's broadcast knows no timeout of its own."""
    future: Future[list[Any]] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whatever it is: whoever asks for the result raises it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
