"""How new weights get into a running vLLM engine: the worker's half of a weight refresh.

One backend of vLLM's weight-transfer API lives here: `rft_checkpoint` reads a Hugging Face folder
that every node can see, on CPUs and GPUs alike, one tensor at a time. vLLM finds it through the
`vllm.general_plugins` entry point in `pyproject.toml`, so the package must be installed (not only
shipped as a working directory) wherever an engine runs. vLLM's transfer API changes between
releases; this file and the `refresh` method of `sampler.py` are the only users of it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

BACKEND = "rft_checkpoint"


def register() -> None:
    """Entry point that vLLM calls in each of its processes."""
    WeightTransferEngineFactory.register_engine(BACKEND, CheckpointEngine)


@dataclass
class CheckpointInitInfo(WeightTransferInitInfo):
    """A folder needs no rendezvous."""


@dataclass
class CheckpointUpdateInfo(WeightTransferUpdateInfo):
    """The Hugging Face folder to read."""

    path: str


class CheckpointEngine(WeightTransferEngine[CheckpointInitInfo, CheckpointUpdateInfo]):
    """Loads a checkpoint folder into the worker's model, in place.

    Invariant: `update_weights` returns only if every parameter of the model was written; a folder
    that lacks one raises, and the sampler then serves nothing until a refresh succeeds.
    """

    init_info_cls = CheckpointInitInfo
    update_info_cls = CheckpointUpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: CheckpointInitInfo) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """Make the model take tensors in checkpoint format again."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: CheckpointUpdateInfo) -> None:
        """Write every tensor of the folder; ValueError names the parameters it lacks."""
        expected = {name for name, _ in self.model.named_parameters()}
        written = self.model.load_weights(_read_tensors(Path(update_info.path)))
        missing = expected - written - _tied_to_embeddings(self.model)
        if missing:
            raise ValueError(f"{update_info.path} lacks {', '.join(sorted(missing)[:5])}")

    def finish_weight_update(self) -> None:
        """Put the new tensors into the layout that the kernels read."""
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            # The CPU kernel of the output layer reads a packed copy of its weight. Where the
            # weight is the embedding's, nothing is loaded into the layer itself, so the reload
            # does not pack it again and the sampler would mix new layers with the old output.
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


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
