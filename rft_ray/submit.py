"""`rft-ray submit`: a run as a Ray job, from any machine that reaches the cluster's dashboard.

The same as `ray job submit -- rft-ray run CONFIG` with what that needs filled in: the working
directory, the lock (or an image), the token, and a name that tells which run directory the job
writes, so that two jobs never write the same one and the next attempt continues it. Left out:
starting a cluster (`cluster/`), and secrets, which a job's page would show: they belong into the
environment of the cluster's nodes.
"""

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rft_ray.config import RunConfig, package_index_settings
from rft_ray.config_file import load_config
from rft_ray.console import say
from rft_ray.errors import InputError, one_line
from rft_ray.parts import list_samplers
from rft_ray.run_dir import check_outlives_job, run_label
from rft_ray.upload import check_reachable, list_upload, say_left_out

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

IMAGE_HOME = "/rft_ray"
"""Where `cluster/Dockerfile.*` put the project."""
SETUP_SECONDS = 1800
"""What a node may take to install the lock, which for GPUs is several GB."""
WORKING_DIR = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
"""How Ray tells pip where the uploaded working directory is."""
AGENT_SECONDS = 120.0
RECONNECT_SECONDS = 2.0
MAX_RECONNECTS = 30
EXIT_FAILED, EXIT_STOPPED = 1, 130


@dataclass(frozen=True, slots=True)
class Submission:
    """What is asked of a cluster: which command, in which environment, for which run directory."""

    command: str
    runtime_env: dict[str, Any]
    run_dir: str

    @property
    def job_name(self) -> str:
        """What the dashboard's list of jobs shows, as for a run that joins the cluster itself."""
        return f"rft-ray {Path(self.run_dir).name}"

    @property
    def job_prefix(self) -> str:
        """What the ids of all jobs for this run directory begin with; the attempt follows."""
        return f"rft-{run_label(self.run_dir)}-"


def submit_run(
    config_path: str,
    overrides: list[str],
    address: str,
    *,
    image: str | None = None,
    install: bool = True,
    detach: bool = False,
) -> int:
    """Submit a run and follow its log; the exit code of the job, or 0 once it is detached.

    A job that already runs the same command for the same run directory is followed instead. Raises
    InputError where one runs another, where the cluster does not answer or wants another token, and
    where the run would not find its files there.
    """
    address = check_address(address)
    submission = prepare(config_path, overrides, Path.cwd(), image, install)
    client = connect(address)
    job_id = start_or_find(client, submission)
    say(f"dashboard: {address}/#/jobs/{job_id}")
    say(f"follow:    ray job logs --follow --address {address} {job_id}")
    say(f"stop:      ray job stop --address {address} {job_id}")
    return 0 if detach else follow(client, job_id)


def check_address(address: str) -> str:
    """The dashboard's URL without a slash at its end; InputError for anything else."""
    if not re.fullmatch(r"https?://[^\s/]+.*", address):
        raise InputError(
            f"--address {address}: expected the URL of the dashboard, like http://127.0.0.1:8265"
        )
    return address.rstrip("/")


def prepare(
    config_path: str, overrides: list[str], root: Path, image: str | None, install: bool
) -> Submission:
    """The submission of a run from a working directory; nothing is sent yet."""
    config = load_config(config_path, overrides)
    check_outlives_job(config.run_dir)
    place = Path(config_path).resolve()
    if not place.is_relative_to(root.resolve()):
        raise InputError(f"{config_path}: not in {root}, which is what the cluster gets to see")
    inside = str(place.relative_to(root.resolve()))
    command = shlex.join(["rft-ray", "run", inside, *overrides])
    if image:
        command = f"cd {IMAGE_HOME} && {command}"
        return Submission(command, _environment(image_uri=image), config.run_dir)
    upload = list_upload(root)
    check_reachable(config, upload)
    say_left_out(upload)
    if inside not in upload.files:
        raise InputError(f"{config_path}: is in a folder that is not uploaded")
    environment = _environment(working_dir=str(upload.root), excludes=upload.excludes)
    if install:
        environment["pip"] = pip_settings(lock_of(config, root))
    return Submission(command, environment, config.run_dir)


def _environment(**fields: Any) -> dict[str, Any]:
    """A Ray runtime_env with these fields, and what pip needs to know of package indices."""
    env_vars = package_index_settings()
    for name in [name for name, value in env_vars.items() if "@" in value]:
        say(f"{name} holds a password and is not sent: set it on the cluster's nodes")
        del env_vars[name]
    config = {"setup_timeout_seconds": SETUP_SECONDS}
    return {**fields, "env_vars": env_vars, "config": config}


def lock_of(config: RunConfig, root: Path) -> Path:
    """The lock that a run needs: for GPUs where any part of it asks for one.

    Raises InputError where the working directory has none.
    """
    samplers = [sampler for _, sampler in list_samplers(config).values()]
    on_gpu = config.trainer.gpus_per_worker > 0 or any(own.gpus_per_replica for own in samplers)
    lock = root / "requirements" / ("gpu.txt" if on_gpu else "cpu.txt")
    for needed in (lock, root / "pyproject.toml"):
        if not needed.is_file():
            raise InputError(
                f"{needed}: no such file; submit from a checkout of rft_ray, or name an --image, "
                "or say --no-install where every node has the packages"
            )
    return lock


def pip_settings(lock: Path) -> dict[str, Any]:
    """The `pip` field of a runtime_env: the lock to the letter, and the project itself.

    The project is installed, not only on the path, since vLLM finds our weight loader through an
    entry point.
    """
    lines = (line.partition("#")[0].strip() for line in lock.read_text("utf-8").splitlines())
    return {
        "packages": [*(line for line in lines if line), WORKING_DIR],
        "pip_install_options": ["--no-deps", "--disable-pip-version-check"],
        "pip_check": False,
    }


def connect(address: str) -> "JobSubmissionClient":
    """A client of the cluster whose dashboard is at this URL, with the token that Ray finds here.

    Raises InputError where nothing answers or the token is not the cluster's.
    """
    # Ray would let the environment's address win over the one that was given.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    # What is uploaded is `upload.py`'s rule, not .gitignore's.
    os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"

    import requests
    from ray._raylet import AuthenticationTokenLoader
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # It says what it packs and sends, as we do already; these have levels since their import.
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    headers: dict[str, str] = {}
    try:
        # RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.
        token = AuthenticationTokenLoader.instance()
        headers = token.get_token_for_http_header(ignore_auth_mode=True)
        return JobSubmissionClient(address, headers=headers)
    except AuthenticationError as error:
        raise InputError(explain_refusal(address, bool(headers), error.message)) from None
    except (ConnectionError, requests.RequestException) as error:
        raise InputError(
            f"{address}: no cluster answers ({one_line(str(error), 120)}); is it up, and the "
            "tunnel to its dashboard?"
        ) from None


def explain_refusal(address: str, has_token: bool, reason: str) -> str:
    """One line on what to do where a cluster wants a token, or another one than was sent."""
    if not has_token and "cannot be opened" in reason:
        return reason
    what = "refuses the token found here (403)" if has_token else "asks for a token (401)"
    return (
        f"{address}: the cluster {what}; print its token with `ray get-auth-token` on the head "
        "node, then set RAY_AUTH_TOKEN to it here or save it as ~/.ray/auth_token"
    )


def start_or_find(client: "JobSubmissionClient", submission: Submission) -> str:
    """The id of a new job, or of the one that runs the same command already."""
    job_id, is_running = choose_job(submission, client.list_jobs())
    if is_running:
        say(f"{submission.run_dir} is being written by a job of this command already: {job_id}")
        return job_id
    say(f"submit: {submission.command}")
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return client.submit_job(
                entrypoint=submission.command,
                submission_id=job_id,
                runtime_env=submission.runtime_env,
                metadata={"run_dir": submission.run_dir, "job_name": submission.job_name},
            )
        except RuntimeError as error:
            # A cluster answers before the agents that take jobs are up.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(RECONNECT_SECONDS)


def choose_job(submission: Submission, jobs: Iterable["JobDetails"]) -> tuple[str, bool]:
    """The id for the next attempt on a run directory, or that of the job now running, and which.

    Raises InputError where a job with another command is writing it.
    """
    prefix, attempts = submission.job_prefix, [0]
    for job in jobs:
        name = job.submission_id or ""
        if not (name.startswith(prefix) and name.removeprefix(prefix).isdigit()):
            continue
        if not job.status.is_terminal():
            if job.entrypoint == submission.command:
                return name, True
            raise InputError(
                f"run_dir: {submission.run_dir} is being written by the job {name} "
                f"({job.entrypoint}); stop that first, or choose another run_dir"
            )
        attempts.append(int(name.removeprefix(prefix)))
    return f"{prefix}{max(attempts) + 1}", False


def follow(client: "JobSubmissionClient", job_id: str) -> int:
    """Print a job's log until it ends; its exit code. The job outlives an interrupt of this."""
    import requests

    shown = 0
    try:
        for _ in range(MAX_RECONNECTS):
            shown = asyncio.run(_show_log(client, job_id, shown))
            try:
                job = client.get_job_info(job_id)
            except (ConnectionError, requests.RequestException):
                job = None
            if job and job.status.is_terminal():
                return job_result(job)
            time.sleep(RECONNECT_SECONDS)
    except KeyboardInterrupt:
        say(f"the job {job_id} goes on")
        raise
    say(f"the connection is lost; the job {job_id} goes on: submit again to follow it")
    return EXIT_FAILED


async def _show_log(client: "JobSubmissionClient", job_id: str, shown: int) -> int:
    """Print what a log has beyond `shown` characters, as it grows; how many it has in the end."""
    import aiohttp

    seen = 0
    try:
        async for text in client.tail_job_logs(job_id):
            # A connection that broke starts again from the beginning.
            print(text[max(0, shown - seen) :], end="", flush=True)
            seen += len(text)
    except (RuntimeError, aiohttp.ClientError, ConnectionError):
        pass  # closed before the end: whether that was the job's is asked next
    return max(seen, shown)


def job_result(job: "JobDetails") -> int:
    """The exit code that stands for how a job ended; its message is shown where it failed."""
    status = str(job.status.value)
    if status == "SUCCEEDED":
        return 0
    # Ray repeats the end of the log, which was shown as it came.
    reason, *_ = (job.message or "").split(", last available logs")
    say(f"job {job.submission_id} {status.lower()}: {one_line(reason, 500)}")
    return EXIT_STOPPED if status == "STOPPED" else job.driver_exit_code or EXIT_FAILED
