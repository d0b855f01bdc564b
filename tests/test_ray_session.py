"""What reaches the terminal when Ray starts. Run: pytest tests/test_ray_session.py"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rft_ray import ray_session
from rft_ray.ray_session import stderr_held_back, watch_head

ROOT = Path(__file__).parents[1]


def test_what_a_block_says_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with stderr_held_back():
        os.write(2, b"chatter\n")
    os.write(2, b"ours\n")
    assert capfd.readouterr().err == "ours\n"


def test_what_a_block_that_fails_says_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="no"), stderr_held_back():
        os.write(2, b"the reason\n")
        raise OSError("no")
    os.write(2, b"ours\n")
    assert capfd.readouterr().err == "the reason\nours\n"


def test_a_head_that_does_not_answer_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "HEAD_CHECK_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        watcher = watch_head(address, lambda: True)
        left = watch_head(address, lambda: False)
        left.join(timeout=10)
        watcher.join(timeout=0.5)
        assert watcher.is_alive() and not left.is_alive()
    watcher.join(timeout=10)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"the head of the cluster ({address}) does not answer; ")


@pytest.mark.engine
def test_a_session_starts_and_ends_without_a_word() -> None:
    code = (
        "from rft_ray.ray_session import log_folder, naming_logs, start_ray, stop_ray\n"
        "start_ray('rft-ray test')\n"
        "import ray\n"
        "assert ray.get(ray.remote(lambda: 2).remote()) == 2\n"
        "assert list(log_folder().glob('raylet.*'))\n"
        "try:\n"
        "    with naming_logs():\n"
        "        raise RuntimeError('x')\n"
        "except RuntimeError as error:\n"
        "    assert str(log_folder()) in error.__notes__[0]\n"
        "stop_ray()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
