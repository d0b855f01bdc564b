"""What of a working directory goes to a cluster with a run, and what the run would miss there.

The rule is one list of names and one limit, both said here, so that what is uploaded can be told
before anything is sent: `.gitignore` plays no part. Left out: anything that is not under the
working directory, which a cluster reads from storage its nodes share.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rft_ray.config import ProblemSetConfig, RunConfig
from rft_ray.console import say
from rft_ray.errors import InputError

MIB = 1024**2
MAX_FILE_BYTES = 20 * MIB
MAX_UPLOAD_BYTES = 100 * MIB
"""Ray keeps an upload in the memory of the head node and refuses some 500 MiB of it."""
LEFT_OUT = {
    *(".git", ".venv", ".venv-bench", "venv", "runs", "models", "build", "dist", "__pycache__"),
    *(".pytest_cache", ".ruff_cache", ".hypothesis", ".mypy_cache", ".ipynb_checkpoints"),
}
"""Folders that stay here wherever they are: environments, results, weights and caches."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The files of a working directory by their paths in it: those that are sent and others."""

    root: Path
    files: dict[str, int]
    """Bytes of each file that is sent."""
    big: dict[str, int]
    """Bytes of each that is left out for its size."""
    folders: list[str]
    """Folders that are left out for their name."""

    @property
    def excludes(self) -> list[str]:
        """The same in the form of Ray's `runtime_env`: patterns of what is left out."""
        return [_pattern(path) for path in [*self.folders, *self.big]]

    def holds(self, path: str) -> bool:
        """Whether a file, or all of a folder, is sent."""
        place = os.path.normpath(self.root / path)
        inside = os.path.relpath(place, self.root)
        prefix = "" if inside == "." else inside + os.sep
        if os.path.isfile(place):
            return inside in self.files
        left_out = (f"{own}/" for own in [*self.folders, *self.big])
        lacks = any(own.startswith(prefix) or prefix.startswith(own) for own in left_out)
        return not lacks and any(own.startswith(prefix) for own in self.files)


def list_upload(root: Path) -> Upload:
    """What would be sent of a folder; raises InputError where that is too much."""
    upload = Upload(root.resolve(), {}, {}, [])
    for folder, names, files in os.walk(upload.root):
        place = Path(folder).relative_to(upload.root)
        upload.folders.extend(str(place / name) for name in names if _stays(name))
        names[:] = [name for name in names if not _stays(name)]
        for name in files:
            size = (Path(folder) / name).stat().st_size if _is_file(folder, name) else 0
            kind = upload.big if size > MAX_FILE_BYTES else upload.files
            kind[str(place / name)] = size
    total = sum(upload.files.values())
    if total > MAX_UPLOAD_BYTES:
        sizes = sorted(((size, path) for path, size in upload.files.items()), reverse=True)
        largest = ", ".join(f"{path} ({_mib(size)})" for size, path in sizes[:3])
        raise InputError(
            f"{upload.root}: {_mib(total)} would be uploaded, {_mib(MAX_UPLOAD_BYTES)} is the "
            f"limit; the largest: {largest}; put data on storage that the cluster shares"
        )
    return upload


def _stays(name: str) -> bool:
    return name in LEFT_OUT or name.endswith(".egg-info")


def _is_file(folder: str, name: str) -> bool:
    """False for links that lead nowhere, sockets and the like."""
    return (Path(folder) / name).is_file()


def _pattern(path: str) -> str:
    """A path as a pattern that matches nothing else, in the words of a .gitignore."""
    return "/" + re.sub(r"([\\*?\[\]!# ])", r"\\\1", path)


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB"


def say_left_out(upload: Upload) -> None:
    """A line about what is sent, and one for each file that is too big."""
    count, size = len(upload.files), _mib(sum(upload.files.values()))
    say(f"upload: {count} files of {upload.root}, {size}")
    for path, size_bytes in sorted(upload.big.items()):
        limit = _mib(MAX_FILE_BYTES)
        say(f"not uploaded, as it is larger than {limit}: {path} ({_mib(size_bytes)})")


def check_reachable(config: RunConfig, upload: Upload) -> None:
    """Raises InputError where a run reads something from the working directory that stays here.

    What has an absolute path is taken to be on storage that the cluster's nodes share.
    """
    for field, path, is_hub_name in _named_paths(config):
        place = Path(path).expanduser()
        if place.is_absolute() or (is_hub_name and not (upload.root / place).exists()):
            continue
        if not (upload.root / place).exists():
            raise InputError(f"{field}: no {path} in {upload.root}, from where the run is uploaded")
        if not upload.holds(path):
            raise InputError(
                f"{field}: {path} is not uploaded (big files and folders of weights are left "
                "out); put it on storage that the cluster's nodes share and give its absolute path"
            )


def _named_paths(config: RunConfig) -> Iterator[tuple[str, str, bool]]:
    """Field, path, and whether that may be the name of something on a hub."""
    sets: dict[str, Any] = {name: getattr(config.problems, name) for name in _SETS}
    sets |= {f"out_of_domain.{name}": own for name, own in config.problems.out_of_domain.items()}
    for name, own in sets.items():
        if isinstance(own, ProblemSetConfig) and own.path:
            yield f"problems.{name}.path", own.path, own.format == "huggingface"
    for number, policy in enumerate(config.policies):
        yield f"policies.{number}.model", policy.model, True
    yield "target.model", config.target.model, True


_SETS = ("train", "validation", "heldout")
