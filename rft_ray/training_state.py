"""The resumable state of a training: saved by all its ranks, taken up by as many as there are.

A state fits the number of ranks that wrote it. For another number, DeepSpeed's universal format
goes between: every parameter and moment whole in a file of its own, of which each rank reads its
new part. Where states are uploaded, they are written to the local disk first and Ray Train uploads
one while training goes on. Left out: resuming under another ZeRO stage or type.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pyarrow.fs
import torch
from deepspeed import DeepSpeedEngine
from ray import train

from rft_ray.torn_files import SIZES_FILE, newest_whole, note_sizes, unused_folder

TAG = "state"


def report_checkpoint(engine: DeepSpeedEngine, step: int, uploads: bool) -> None:
    """Save the state and make it the latest in Ray Train's storage, at once or by an upload.

    A state cut short is never read: Ray Train records it after all ranks have reported theirs.
    Waits for the upload before, so that local disks hold one state at a time.
    """
    # Another number of ranks writes other files, and an upload does not clear what a folder holds.
    name = f"step-{step:06d}-of-{engine.world_size}-ranks"
    if uploads:
        folder = _local_folder(engine.global_rank) / name
        train.get_all_reported_checkpoints(
            consistency_mode=train.CheckpointConsistencyMode.COMMITTED
        )
    else:
        # What one rank finds there decides for all.
        box = [unused_folder(_storage_folder() / name)]
        torch.distributed.broadcast_object_list(box, src=0, device=engine.device)
        folder = box[0]
    if uploads or engine.global_rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    torch.distributed.barrier()
    # Frozen weights are in the folder that training started from.
    engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=_has_frozen(engine))
    torch.distributed.barrier()
    if engine.global_rank == 0 and not uploads:
        note_sizes(folder)
    checkpoint = train.Checkpoint.from_directory(folder)
    if engine.global_rank == 0:
        checkpoint.set_metadata({"num_ranks": engine.world_size})
    mode = train.CheckpointUploadMode
    train.report(
        {"step": step},
        checkpoint=checkpoint,
        checkpoint_dir_name=folder.name,
        checkpoint_upload_mode=mode.ASYNC if uploads else mode.NO_UPLOAD,
    )


def _has_frozen(engine: DeepSpeedEngine) -> bool:
    return not all(parameter.requires_grad for parameter in engine.module.parameters())


def _storage_folder() -> Path:
    return Path(train.get_context().get_storage().experiment_fs_path)


def _local_folder(rank: int) -> Path:
    """Where a rank's part waits for its upload: the same after a crash, to be found and cleared."""
    run = sha256(str(_storage_folder()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"rft-ray-{run}", f"rank-{rank}")


def load_checkpoint(engine: DeepSpeedEngine) -> int:
    """Restore the latest whole state, if there is one; the number of optimiser steps done."""
    shutil.rmtree(_local_folder(engine.global_rank), ignore_errors=True)
    checkpoint = _whole(train.get_checkpoint())
    if checkpoint is None:
        return 0
    written_by = checkpoint.get_metadata()["num_ranks"]
    # Without ZeRO every rank has all of the state.
    if written_by == engine.world_size or not engine.zero_optimization():
        with _downloaded(checkpoint) as folder:
            load_state(engine, folder)
    else:
        with _universal(checkpoint, engine) as whole, _downloaded(whole) as folder:
            load_universal_state(engine, folder)
    return engine.global_steps


def _whole(latest: train.Checkpoint | None) -> train.Checkpoint | None:
    """The latest state, or the one before a torn one, as far as its sizes were noted."""
    if latest is None or not (Path(latest.path) / SIZES_FILE).exists():
        return latest
    folder = newest_whole(Path(latest.path))
    return train.Checkpoint(str(folder), latest.filesystem) if folder else None


@contextmanager
def _downloaded(checkpoint: train.Checkpoint) -> Iterator[str]:
    """A checkpoint as a local folder, the same for all ranks of a node."""
    with checkpoint.as_directory() as folder:
        # Whoever comes late downloads it over what the others would be reading.
        torch.distributed.barrier()
        yield folder


def load_state(engine: DeepSpeedEngine, folder: str) -> None:
    """Restore what this number of ranks has saved to a folder into an engine just built."""
    loaded, _ = engine.load_checkpoint(folder, tag=TAG, load_module_strict=not _has_frozen(engine))
    if loaded is None:
        raise RuntimeError(f"{folder}: DeepSpeed could not load this checkpoint")


@contextmanager
def _universal(checkpoint: train.Checkpoint, engine: DeepSpeedEngine) -> Iterator[train.Checkpoint]:
    """A checkpoint in the universal format, beside it in the storage until the block ends."""
    storage, place = checkpoint.filesystem, f"{checkpoint.path}-universal"
    is_writer = engine.global_rank == 0
    if is_writer:
        _write_universal(checkpoint, storage, place)
    # One object for all: a node's ranks know by it that they share a download.
    box = [train.Checkpoint(place, storage)]
    torch.distributed.broadcast_object_list(box, src=0, device=engine.device)
    yield box[0]
    torch.distributed.barrier()
    if is_writer:
        storage.delete_dir(place)


def _write_universal(
    checkpoint: train.Checkpoint, storage: pyarrow.fs.FileSystem, place: str
) -> None:
    if storage.get_file_info(place).type != pyarrow.fs.FileType.NotFound:
        storage.delete_dir(place)
    with checkpoint.as_directory() as folder:
        if isinstance(storage, pyarrow.fs.LocalFileSystem):
            convert_state(folder, place)
            return
        with tempfile.TemporaryDirectory(prefix="rft-ray-") as local:
            convert_state(folder, local)
            pyarrow.fs.copy_files(local, place, destination_filesystem=storage)


def convert_state(folder: str, output: str) -> None:
    """DeepSpeed's converter to the universal format, in a process of its own.

    Raises RuntimeError with its last line where it fails.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    # What DeepSpeed asks for here, only Megatron's models save: rules for tensor parallelism.
    options = ["--inject_missing_state", "--input_folder", f"{folder}/{TAG}"]
    options += ["--output_folder", f"{output}/{TAG}"]
    done = subprocess.run(command + options, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"{folder}: cannot be resumed by another number of ranks: {last}")


def load_universal_state(engine: DeepSpeedEngine, folder: str) -> None:
    """Restore a state in the universal format into an engine just built."""
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in engine.optimizer.param_groups
    ]
    # DeepSpeed reads this setting nowhere but here; which it is, is known only now.
    engine._config.load_universal_checkpoint = True
    load_state(engine, folder)
    engine._config.load_universal_checkpoint = False
    # ZeRO-3 restores the first group's weight decay into all groups, and one counter of steps that
    # all of them then share and advance.
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(step := state.get("step")):
            state["step"] = step.clone()
