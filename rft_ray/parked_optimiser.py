"""The optimiser's state in main memory while samplers have the trainer's GPU.

That is AdamW's moments and the fp32 master weights, 12 of about 18 bytes a trained parameter. Whole
storages are emptied and filled again in place, so that DeepSpeed's many views of them stay valid,
at any ZeRO stage; its own `offload_states` takes no optimiser but its own at stage 3. Left out: the
16-bit weights, which a refresh and an export read while samplers are awake, gradients, buckets, and
what DeepSpeed keeps off the GPU anyway.
"""

from collections.abc import Iterator

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor, UntypedStorage


class ParkedOptimiser:
    """The state of one rank's optimiser, on its device or parked.

    Invariant: between `park` and `bring_back` nobody reads it.
    """

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._engine = engine
        self._parked: list[tuple[UntypedStorage, UntypedStorage]] = []

    def park(self) -> int:
        """Move it to main memory; the bytes that have become free on the device."""
        for storage in list(self._storages()):
            copy = UntypedStorage(storage.nbytes(), device="cpu")
            copy.copy_(storage)
            storage.resize_(0)
            self._parked.append((storage, copy))
        if torch.cuda.is_available():
            # Other processes get what torch keeps for later, activations included.
            torch.cuda.empty_cache()
        return sum(copy.nbytes() for _, copy in self._parked)

    def bring_back(self) -> None:
        """Have it on the device again; where it is there, nothing."""
        for storage, copy in self._parked:
            storage.resize_(copy.nbytes())
            storage.copy_(copy)
        self._parked.clear()

    def _storages(self) -> Iterator[UntypedStorage]:
        """Each once, of what is on the device and no part of the model itself.

        On a CPU what a checkpoint's file was read into stays: such memory is not torch's to free.
        """
        device = torch.device(self._engine.device).type
        seen = {tensor.untyped_storage().data_ptr() for tensor in self._weights()}
        for tensor in self._state():
            storage = tensor.untyped_storage()
            is_held = storage.nbytes() and tensor.device.type == device and storage.resizable()
            if is_held and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage

    def _weights(self) -> Iterator[Tensor]:
        for parameter in self._engine.module.parameters():
            yield parameter.data
            if hasattr(parameter, "ds_tensor"):
                yield parameter.ds_tensor.data

    def _state(self) -> Iterator[Tensor]:
        # Between steps ZeRO-3 takes the master weights out of the optimiser's groups.
        for master, state in self._engine.basic_optimizer.state.items():
            yield master.data
            yield from (value for value in state.values() if torch.is_tensor(value) and value.dim())
