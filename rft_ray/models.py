"""Where a model's files are: a folder as it is, or a hub name downloaded into a shared folder.

Everything downstream (engines, trainer ranks, exports) reads plain folders that all nodes see, so a
hub name is turned into one once, by the driver, before anything heavy starts. Left out: revisions
(the newest is taken), custom model code, and weights that are neither safetensors nor PyTorch's.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rft_ray.console import say
from rft_ray.errors import InputError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
SAFETENSORS, PYTORCH = "*.safetensors", "pytorch_model*.bin"
OTHER_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "USE_POLICY*")
# Further copies of the same weights, in their makers' own format.
DUPLICATES = ("consolidated*", "*/*")


def resolve_model(model: str, folder: Path) -> str:
    """The absolute folder of a model; a hub name (owner/name) is downloaded to folder/owner--name.

    A download that is there is not looked up again, and one cut short is continued. Raises
    InputError where there is neither such a folder nor such a model, or it cannot be had.
    """
    if here := find_folder(model):
        return str(here.absolute())
    downloaded = folder.absolute() / model.replace("/", "--")
    if not downloaded.is_dir():
        _download(model, downloaded)
    check_model(downloaded)
    return str(downloaded)


def find_folder(model: str) -> Path | None:
    """The folder that a model is, checked; None for a hub name, of which nothing is looked up.

    Raises InputError for what is neither.
    """
    here = Path(model).expanduser()
    if here.is_dir():
        check_model(here)
        return here
    if here.exists():
        raise InputError(f"model {model}: is a file; expected a Hugging Face folder or a hub name")
    if not HUB_NAME.fullmatch(model):
        raise InputError(f"model {model}: no such folder")
    return None


def check_model(folder: Path) -> None:
    """Raises InputError, naming what is missing, unless a folder holds config, weights, tokenizer.

    Where an index lists several weight files, each must be there.
    """
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    weights = [*folder.glob(SAFETENSORS), *folder.glob(PYTORCH)]
    if not weights:
        missing.append(f"weights ({SAFETENSORS} or {PYTORCH})")
    elif index := next(folder.glob(f"{SAFETENSORS}.index.json"), None):
        missing += sorted(set(_listed_files(index)) - {file.name for file in weights})
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing.append(f"a tokenizer ({', '.join(TOKENIZER_FILES)})")
    if missing:
        raise InputError(f"model {folder}: the folder lacks {'; '.join(missing)}")
    for file in weights:
        if file.suffix == ".safetensors" and not is_whole(file):
            raise InputError(f"model {folder}: {file.name} is not as long as its header says")


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors of a safetensors file by name, as its header has them, and where data begins.

    Raises InputError where there is no such header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= size - 8 else b""
    try:
        header = {key: own for key, own in json.loads(text).items() if key[:2] != "__"}
        is_header = all({"shape", "data_offsets"} <= set(own) for own in header.values())
    except (ValueError, TypeError, AttributeError):
        is_header = False
    if not is_header:
        raise InputError(f"{path}: not a safetensors file")
    return header, 8 + length


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: a download may have broken off.

    What git without LFS leaves in its place has no header at all, which is an InputError.
    """
    header, start = read_header(path)
    ends = (own["data_offsets"][1] for own in header.values())
    return path.stat().st_size == start + max(ends, default=0)


def _listed_files(index: Path) -> Iterable[str]:
    try:
        return json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: not an index of weights") from None


def _download(model: str, target: Path) -> None:
    """All or nothing under the final name; what a killed attempt fetched is kept beside it."""
    partial = target.with_name(target.name + ".partial")
    say(f"download {model} to {target}")
    try:
        names = _fetch(model, partial)
    except Exception as error:  # the hub raises from the hierarchies of four libraries
        raise InputError(f"model {model}: no such folder, and {_reason(error)}") from error
    missing = [name for name in names if not (partial / name).is_file()]
    if missing:
        raise InputError(f"model {model}: the download lacks {missing[0]}; run again to continue")
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    partial.rename(target)


def _fetch(model: str, partial: Path) -> list[str]:
    """Download the files that are needed; their names."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    # One commit for the list and the files. Asked for first, because snapshot_download takes a
    # folder that is there for the model when the hub does not answer.
    info = HfApi().model_info(model)
    names = files_to_fetch(file.rfilename for file in info.siblings or [])
    snapshot_download(model, revision=info.sha, local_dir=partial, allow_patterns=names)
    return names


def files_to_fetch(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that are needed: weights once, as safetensors if there are any.

    ["model.safetensors", "pytorch_model.bin", "onnx/model.onnx"] -> ["model.safetensors"]
    """
    own = [name for name in names if not _matches(name, DUPLICATES)]
    weights = SAFETENSORS if any(fnmatch(name, SAFETENSORS) for name in own) else PYTORCH
    is_other_index = re.compile(r"\.(bin|safetensors|h5|msgpack)\.index\.json$").search
    return [
        name
        for name in own
        if _matches(name, (weights, f"{weights}.index.json"))
        or (_matches(name, OTHER_FILES) and not is_other_index(name))
    ]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _reason(error: Exception) -> str:
    """What went wrong with a download, in one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to download it"
    if isinstance(error, GatedRepoError | LocalTokenNotFoundError):
        return "on the hub it is gated: ask for access on its page there and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model either, or only for those with access (set HF_TOKEN)"
    first_line = (str(error).splitlines() or [""])[0]
    return f"the download failed: {type(error).__name__}: {first_line}"
