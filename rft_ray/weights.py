"""How new weights get into a running vLLM engine: the worker's half of a weight refresh.

One backend of vLLM's weight-transfer API lives here, since an engine has one for its lifetime. An
update names either a Hugging Face folder that every node can see, read one tensor at a time, or
buckets that trainer rank 0 broadcasts through a `WeightGroup` (gloo on CPUs, NCCL on GPUs) or lets
the workers of its machine copy, in a `SharedGroup` (CUDA IPC on GPUs). vLLM finds the backend
through the `vllm.general_plugins` entry point in `pyproject.toml`, so the package must be installed
(not only shipped as a working directory) wherever an engine runs. vLLM's transfer API changes
between releases; this file and the refreshes of `sampler.py` are its only users.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rft_ray.buckets import TensorSpec
from rft_ray.patient_waits import PATIENT_ENGINE, wait_patiently
from rft_ray.shared_group import SharedGroup
from rft_ray.weight_group import Rendezvous, WeightGroup, unpack

BACKEND = "rft_weights"


def register() -> None:
    """Entry point that vLLM calls in each of its processes, before they connect."""
    WeightTransferEngineFactory.register_engine(BACKEND, RefreshEngine)
    if os.environ.get(PATIENT_ENGINE):
        wait_patiently()


@dataclass
class RefreshInitInfo(WeightTransferInitInfo):
    """A `Rendezvous`, and the rank in it of this engine's first worker. A folder needs none."""

    host: str
    port: int
    world_size: int
    backend: str
    timeout_s: float
    buffers: list[dict[str, Any]]
    first_rank: int


@dataclass
class RefreshUpdateInfo(WeightTransferUpdateInfo):
    """The Hugging Face folder to read, or the buckets to receive: (name, shape, dtype) each."""

    path: str | None = None
    buckets: list[list[tuple[str, list[int], str]]] | None = None


class RefreshEngine(WeightTransferEngine[RefreshInitInfo, RefreshUpdateInfo]):
    """Loads a folder, or what the trainer sends, into the worker's model, in place.

    Invariant: `update_weights` returns only if every parameter of the model was written; an update
    that lacks one raises, and the sampler then serves nothing until a refresh succeeds.
    """

    init_info_cls = RefreshInitInfo
    update_info_cls = RefreshUpdateInfo
    supports_draft_weight_update = False
    _group: WeightGroup | SharedGroup | None = None
    _is_open = False
    _is_gloo = False

    def init_transfer_engine(self, init_info: RefreshInitInfo) -> None:
        """Join the trainer's group, leaving any earlier one; all members must call together."""
        self.shutdown()
        fields = vars(init_info).copy()
        rank = fields.pop("first_rank") + self.parallel_config.rank
        self._is_gloo = init_info.backend == "gloo"
        kind = SharedGroup if init_info.backend == "shared" else WeightGroup
        self._group = kind(Rendezvous(**fields), rank)

    def start_weight_update(self) -> None:
        """Make the model take tensors in checkpoint format again."""
        if self._is_open:
            # An update failed half-way: what some layers got of it must not count towards this one.
            finalize_layerwise_reload(self.model, self.model_config)
        initialize_layerwise_reload(self.model)
        self._is_open = True

    def receive_weights(self, update_info: RefreshUpdateInfo) -> None:
        """Write every tensor of the update; ValueError names the parameters it lacks."""
        expected = {name for name, _ in self.model.named_parameters()}
        written = self._load(update_info)
        missing = expected - written - _tied_to_embeddings(self.model)
        if missing:
            source = update_info.path or "the trainer"
            raise ValueError(f"{source} lacks {', '.join(sorted(missing)[:5])}")

    def finish_weight_update(self) -> None:
        """Put the new tensors into the layout that the kernels read."""
        finalize_layerwise_reload(self.model, self.model_config)
        self._is_open = False
        if self.device.type != "cpu":
            return
        tied = _tied_to_embeddings(self.model)
        for name, module in self.model.named_modules():
            # The CPU kernel of the output layer reads a packed copy of its weight. Where the
            # weight is the embedding's, nothing is loaded into the layer itself, so the reload
            # does not pack it again and the sampler would mix new layers with the old output.
            if f"{name}.weight" in tied:
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Leave the group, if there is one."""
        if self._group is not None:
            self._group.close()
            self._group = None

    def _load(self, update: RefreshUpdateInfo) -> set[str]:
        """The names of the parameters that were written."""
        if update.path is not None:
            return self.model.load_weights(_read_tensors(Path(update.path)))
        try:
            return self._load_buckets(to_specs(update.buckets))
        except BaseException:
            # The trainer would otherwise wait for this worker until the group's timeout.
            self.shutdown()
            raise

    def _load_buckets(self, buckets: list[list[TensorSpec]]) -> set[str]:
        written: set[str] = set()
        with _room_for_gloo() if self._is_gloo else nullcontext():
            for bucket, flat in self._group.receive(buckets, self.device):
                written |= self.model.load_weights(unpack(flat, bucket))
        return written


@contextmanager
def _room_for_gloo() -> Iterator[None]:
    """Load by one thread where there are two: beside gloo's own they wait for each other in loops.

    On two cores that took four times the processor time of one thread. More are left alone, since
    threads that were let go would come back on the core of the first.
    """
    is_crowded = torch.get_num_threads() == 2
    if is_crowded:
        # vLLM has put something that refuses in the place of torch.set_num_threads.
        torch._C.set_num_threads(1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if is_crowded:
            torch._C.set_num_threads(2)  # type: ignore[attr-defined]


def to_specs(buckets: list[list[tuple[str, list[int], str]]]) -> list[list[TensorSpec]]:
    """Buckets as they come out of vLLM's messages, which know no dataclasses."""
    return [[TensorSpec(name, tuple(shape), dtype) for name, shape, dtype in b] for b in buckets]


def _tied_to_embeddings(model: torch.nn.Module) -> set[str]:
    """Output layers that share the embedding's weight, which checkpoints leave out."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, ParallelLMHead) and model.config.tie_word_embeddings
    }


def _read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of a folder, in the order of the model's layers, one in memory at a time."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = json.loads(index.read_text())["weight_map"]
    else:
        with safe_open(folder / "model.safetensors", "pt") as file:
            shards = dict.fromkeys(file.keys(), "model.safetensors")
    for shard in sorted(set(shards.values())):
        with safe_open(folder / shard, "pt") as file:
            for name in sorted(key for key, at in shards.items() if at == shard):
                yield name, file.get_tensor(name)
