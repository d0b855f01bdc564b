"""A disk without room, for real where the machine lets one be made.

Run: pytest tests/test_full_disk.py
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rft_ray.full_disk import is_disk_full, naming_full_disk

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
@pytest.mark.parametrize("name", ["graded.parquet", "graded.jsonl"])
def test_a_full_disk_is_one_line_and_leaves_no_half_a_file(small_disk: Path, name: str) -> None:
    groups = small_disk.parent / "groups.jsonl"
    with groups.open("w") as file:
        for number in range(200):
            text = os.urandom(500).hex()
            rollouts = [{"policy": "a", "completion": f"{text} #### 4"}]
            problem = {"id": str(number), "prompt": "2+2?", "answer": "4"}
            file.write(json.dumps({"problem": problem, "rollouts": rollouts}) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "rft_ray", "verify", str(groups), "-o", str(small_disk / name)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("rft-ray: error: the disk is full; make room")
    assert list(small_disk.iterdir()) == []


def test_it_is_found_behind_other_exceptions_and_nowhere_else() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert is_disk_full(full)
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = RuntimeError(f"SafetensorError: IoError: {full.strerror}")
    assert is_disk_full(wrapped)
    assert not is_disk_full(RuntimeError("a task failed"))
    assert not is_disk_full(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_what_fails_beside_a_full_disk_is_told_so(small_disk: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised, naming_full_disk(tmp_path):
        raise RuntimeError("a rank died")
    assert not is_disk_full(raised.value)
    with pytest.raises(RuntimeError) as raised, naming_full_disk(small_disk):
        raise RuntimeError("a rank died")
    assert is_disk_full(raised.value)
