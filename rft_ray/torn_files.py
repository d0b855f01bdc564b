"""What a crash left behind: files that were cut short, and what to do about each kind.

Files get their names when they are whole, but a machine that loses power may not have them on its
disk yet, and folders get copied. A torn file of sampled groups is set aside, since its rollouts are
drawn again with the same seeds. A torn training state is passed over for the one before it. Of
whatever else is torn, who reads it says so. Left out: damage that leaves a file as long as it was.
"""

import itertools
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray.console import say
from rft_ray.run_dir import write_atomically

SIZES_FILE = "sizes.json"
DAMAGED = ".damaged"


def set_torn_aside(folder: Path) -> None:
    """Rename the Parquet files of a folder that cannot be read, and remove unfinished ones.

    Nobody else may be writing there. One line on standard error for each renamed file.
    """
    for path in folder.glob(".*.tmp"):
        path.unlink()
    for path in sorted(folder.glob("*.parquet")):
        if reason := unreadable(path):
            os.replace(path, path.with_name(path.name + DAMAGED))
            say(f"{path}: {reason}; set aside, and its rollouts are sampled again")


def unreadable(path: Path) -> str | None:
    """Why a Parquet file cannot be opened; None where it can."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        return f"not a readable Parquet file: {str(error).partition(chr(10))[0]}"
    return None


def note_sizes(folder: Path) -> None:
    """Write down how large each file of a finished training state is."""
    sizes = {name: (folder / name).stat().st_size for name in _files(folder)}
    write_atomically(folder / SIZES_FILE, json.dumps(sizes))


def is_whole(folder: Path) -> bool:
    """Whether a training state still has every file as large as it was written."""
    try:
        sizes = json.loads((folder / SIZES_FILE).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def newest_whole(latest: Path) -> Path | None:
    """The latest training state, or the newest whole one before it; None where there is none.

    States are neighbours whose names sort as they were written.
    """
    states = sorted((own for own in latest.parent.glob("step-*") if own <= latest), reverse=True)
    return next((own for own in states if is_whole(own)), None)


def unused_folder(folder: Path) -> Path:
    """The folder for a new training state, or one that sorts behind it where a state is there.

    Steps are done again after a torn state, which Ray Train still knows and deletes in its turn:
    a new one must not stand in its place.
    """
    others = (folder.with_name(f"{folder.name}-{number:02d}") for number in itertools.count(1))
    places = itertools.chain([folder], others)
    return next(place for place in places if not (place / SIZES_FILE).exists())


def say_torn_states(storage: Path) -> None:
    """One line for each training state under `storage` that will not be read."""
    for path in sorted(storage.glob("*/step-*")):
        if (path / SIZES_FILE).exists() and not is_whole(path):
            say(f"{path}: a file is not as long as it was written; training goes on from before")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
