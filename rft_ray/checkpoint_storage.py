"""Where a training keeps its resumable checkpoints: beside its output, or in any storage of Ray's.

What writes and reads them on the ranks is `training_state.py`. Left out: moving a training that is
under way from one storage to another, which starts it anew.
"""

from typing import TYPE_CHECKING

from rft_ray.errors import InputError
from rft_ray.training_config import TrainerConfig

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def storage_path(output_dir: str, trainer: TrainerConfig) -> str:
    """The path or URI of the checkpoints of the training that leaves `output_dir`, absolute.

    s3://bucket/runs?region=x, /a/b -> s3://bucket/runs/a/b.train?region=x
    """
    own = f"{output_dir}.train"
    if trainer.checkpoint_storage is None:
        return own
    base, mark, options = trainer.checkpoint_storage.partition("?")
    return f"{base.rstrip('/')}{own}{mark}{options}"


def open_storage(path: str) -> "tuple[FileSystem, str]":
    """The file system of a path or URI, and the place in it.

    Raises InputError where pyarrow cannot reach such a storage.
    """
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(path)
    except (ValueError, ImportError, OSError) as error:  # pyarrow's own are among them
        line = str(error).splitlines()[0]
        raise InputError(f"trainer.checkpoint_storage: {path}: {line}") from error


def remove_storage(path: str) -> None:
    """Delete the checkpoints of a training, where there are any."""
    from pyarrow.fs import FileType

    storage, place = open_storage(path)
    if storage.get_file_info(place).type != FileType.NotFound:
        storage.delete_dir(place)
