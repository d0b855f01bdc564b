"""A run as a job: what is uploaded, which id it gets, what is refused before anything is sent."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.cli import main
from rft_ray.config import RunConfig
from rft_ray.config_file import load_config
from rft_ray.errors import InputError
from rft_ray.submit import (
    WORKING_DIR,
    Submission,
    choose_job,
    connect,
    job_result,
    lock_of,
    pip_settings,
    prepare,
)
from rft_ray.upload import MAX_FILE_BYTES, MAX_UPLOAD_BYTES, check_reachable, list_upload

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
URL = "http://127.0.0.1:8265"


def fill(folder: Path, files: dict[str, int]) -> Path:
    """A folder with files of these sizes; big ones are holes."""
    for name, size in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
    return folder


def config_with(**overrides: object) -> RunConfig:
    return load_config(QUICKSTART, [f"{key}={value}" for key, value in overrides.items()])


ODD = ("plain.txt", "with space.txt", "star*.txt", "[x].txt", "#hash", "!bang", "back\\slash")


def test_what_is_listed_is_what_ray_would_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.runtime_env.packaging import create_package

    kept = {"pyproject.toml", "configs/a.yaml", "data/x.jsonl", "rft_ray/models.py", "runs.txt"}
    files = dict.fromkeys([*kept, *ODD], 3)
    files |= {f"big/{name}": MAX_FILE_BYTES + 1 for name in ODD} | {"big/small": 1}
    files |= {".venv/lib/a.py": 1, "runs/a/x": 1, "deep/models/w.bin": 1, "b.egg-info/PKG": 1}
    fill(tmp_path, files)
    (tmp_path / ".gitignore").write_text("data/\n")

    upload = list_upload(tmp_path)
    assert set(upload.files) == {*kept, *ODD, "big/small", ".gitignore"}
    assert set(upload.big) == {f"big/{name}" for name in ODD}
    package = tmp_path.parent / "package.zip"
    create_package(str(tmp_path), package, include_gitignore=False, excludes=upload.excludes)
    names = {name for name in ZipFile(package).namelist() if not name.endswith("/")}
    assert names == set(upload.files)


def test_an_upload_that_is_too_large_is_refused_with_the_largest_files(tmp_path: Path) -> None:
    parts = {f"part-{n}": MAX_FILE_BYTES for n in range(MAX_UPLOAD_BYTES // MAX_FILE_BYTES)}
    list_upload(fill(tmp_path, parts))
    fill(tmp_path, {"more": 5})
    with pytest.raises(InputError, match=r"100 MiB would be uploaded.*the largest: part-4 \(20"):
        list_upload(tmp_path)


def test_a_run_that_would_miss_its_files_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"data/train.jsonl": 5, "data/big.jsonl": MAX_FILE_BYTES + 1, "models/m/w": 1})
    fill(tmp_path, {"base/config.json": 5, "huge/w.safetensors": MAX_FILE_BYTES + 1, "huge/c": 1})
    upload = list_upload(tmp_path)

    def check(model: str = "owner/name", path: str = "data/train.jsonl") -> None:
        sets = {"format": "gsm8k", "path": path}
        policies = [{"name": "a", "model": model}]
        target = {"model": "owner/name"}
        raw = {"run_dir": "/x", "problems": {"train": sets, "heldout": {**sets, "path": "/y"}}}
        check_reachable(
            RunConfig.model_validate({**raw, "policies": policies, "target": target}), upload
        )

    check()
    check("/mnt/models/m")
    check("base")
    for model in ("models/m", "huge", "huge/w.safetensors"):
        with pytest.raises(InputError, match=r"policies\.0\.model: .* is not uploaded"):
            check(model)
    with pytest.raises(InputError, match=r"problems\.train\.path: data/big\.jsonl is not uploaded"):
        check(path="data/big.jsonl")
    with pytest.raises(InputError, match=r"problems\.train\.path: no data/none\.jsonl in"):
        check(path="data/none.jsonl")


def test_the_lock_goes_along_to_the_letter() -> None:
    settings = pip_settings(ROOT / "requirements" / "gpu.txt")
    packages = settings["packages"]
    assert "ray==2.60.0" in packages and "vllm==0.29.0" in packages
    assert packages[-1] == WORKING_DIR and all("==" in own for own in packages[:-1])
    assert "--no-deps" in settings["pip_install_options"]


def test_the_lock_is_the_one_for_the_devices_that_are_asked_for() -> None:
    assert lock_of(config_with(), ROOT).name == "cpu.txt"
    for field in ("trainer.gpus_per_worker", "sampler.gpus_per_replica"):
        assert lock_of(config_with(**{field: 1}), ROOT).name == "gpu.txt"
    with pytest.raises(InputError, match=r"cpu\.txt: no such file; submit from a checkout"):
        lock_of(config_with(), ROOT / "configs")


def test_ray_accepts_what_a_submission_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.runtime_env import RuntimeEnv

    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://wheels.example/cpu")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@wheels.example/simple")
    own = prepare(str(QUICKSTART), ["run_dir=/mnt/a", "seed=3"], ROOT, None, True)
    assert own.command == "rft-ray run configs/quickstart.yaml run_dir=/mnt/a seed=3"
    assert own.runtime_env["env_vars"] == {"PIP_EXTRA_INDEX_URL": "https://wheels.example/cpu"}
    parsed = RuntimeEnv(**{**own.runtime_env, "working_dir": "gcs://_ray_pkg_0.zip"})
    assert parsed.pip_config()["packages"] == own.runtime_env["pip"]["packages"]
    assert "secret" not in json.dumps(own.runtime_env)

    image = prepare(str(QUICKSTART), ["run_dir=/mnt/a"], ROOT, "me/rft:1", True)
    assert RuntimeEnv(**image.runtime_env).image_uri() == "me/rft:1"
    assert image.command.startswith("cd /rft_ray && rft-ray run configs/")
    assert "pip" not in prepare(str(QUICKSTART), ["run_dir=/a"], ROOT, None, False).runtime_env


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(QUICKSTART), "--address", URL], "run_dir: 'runs/quickstart' is relative"),
        ([str(QUICKSTART), "--address", "auto", "run_dir=/x"], "--address auto: expected the URL"),
        ([str(QUICKSTART), "--address", URL, "sampling.kk=1"], "unknown key 'sampling.kk'"),
        (["/dev/null", "--address", URL, "run_dir=/x"], "a config is a mapping"),
        ([str(QUICKSTART), "--address", "http://127.0.0.1:9", "run_dir=/x"], "no cluster answers"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_sent(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    # The address that was given counts, not the environment's.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:10")
    assert main(["submit", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("rft-ray: error: ") and message in last and ":10" not in last


def test_a_config_from_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(QUICKSTART.read_text())
    with pytest.raises(InputError, match=r"not in .*, which is what the cluster gets to see"):
        prepare(str(path), ["run_dir=/x"], ROOT, None, True)


def job(name: str | None, status: str, command: str = "rft-ray run c.yaml", **fields: Any) -> Any:
    from ray.job_submission import JobDetails, JobStatus

    kind = {"type": "SUBMISSION", "submission_id": name, "entrypoint": command}
    return JobDetails(**kind, status=JobStatus(status), **fields)


OWN = Submission("rft-ray run c.yaml", {}, "/mnt/runs/my run")


def test_each_attempt_on_a_run_directory_has_the_next_id() -> None:
    prefix = OWN.job_prefix
    assert prefix.startswith("rft-my-run-")
    assert choose_job(OWN, []) == (f"{prefix}1", False)
    other = Submission(OWN.command, {}, "/mnt/other/my run")
    past = [job(f"{prefix}2", "FAILED"), job(f"{prefix}10", "STOPPED"), job(None, "RUNNING")]
    past += [job(f"{other.job_prefix}40", "RUNNING"), job(f"{prefix}x", "RUNNING")]
    assert choose_job(OWN, past) == (f"{prefix}11", False)


def test_a_run_directory_has_one_job_at_a_time() -> None:
    name = f"{OWN.job_prefix}1"
    for status in ("RUNNING", "PENDING"):
        assert choose_job(OWN, [job(name, status)]) == (name, True)
        with pytest.raises(InputError, match=r"run_dir: /mnt/runs/my run is being written by"):
            choose_job(OWN, [job(name, status, "rft-ray run c.yaml seed=2")])


@settings(deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_ids_are_short_plain_and_differ_by_run_directory(one: str, other: str) -> None:
    ids = [Submission("", {}, f"/{text}").job_prefix for text in (one, other)]
    assert all(len(own) <= 55 and own.replace("-", "").isalnum() for own in ids)
    assert (ids[0] == ids[1]) == (one == other)


def test_a_jobs_end_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert job_result(job("a", "SUCCEEDED", driver_exit_code=0)) == 0
    assert job_result(job("a", "FAILED", driver_exit_code=2, message="exit\ncode 2")) == 2
    repeated = "exit code 1, last available logs (truncated to 20,000 chars):\nTraceback"
    assert job_result(job("a", "FAILED", driver_exit_code=1, message=repeated)) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert job_result(job("a", "FAILED", message="no node could set up the environment")) == 1
    assert job_result(job("a", "STOPPED")) == 130
    assert "no node could set up the environment" in capsys.readouterr().err


@pytest.fixture
def guarded_dashboard() -> Iterator[str]:
    """A server that asks for a token as Ray's dashboard does: 401 without one, 403 for another."""

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("authorization")
            self.send_response({None: 401, "Bearer right": 200}.get(given, 403))
            self.end_headers()
            self.wfile.write(b'{"ray_version": "2.60.0", "version": "4"}')

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Guard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_token_that_is_found_is_sent_and_a_refusal_says_how_to_get_one(
    guarded_dashboard: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray._raylet import AuthenticationTokenLoader

    def attempt(**environment: str) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        AuthenticationTokenLoader.instance().reset_cache()
        connect(guarded_dashboard)

    with pytest.raises(InputError, match=r"asks for a token \(401\); print .*ray get-auth-token"):
        attempt()
    with pytest.raises(InputError, match=r"refuses the token found here \(403\)"):
        attempt(RAY_AUTH_TOKEN="wrong")
    with pytest.raises(InputError, match="cannot be opened"):
        attempt(RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))
    attempt(RAY_AUTH_TOKEN="right")
    (tmp_path / "token").write_text("right\n")
    attempt(RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("right")
    attempt()
    AuthenticationTokenLoader.instance().reset_cache()
