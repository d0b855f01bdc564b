"""Joining a Ray cluster, or starting a local one; and leaving it.

Inside a cluster (RAY_ADDRESS set, or a Ray job) the driver joins it as it is. Otherwise it starts
a local cluster of its own: a bare `ray.init()` might attach to somebody else's. A local cluster is
given more logical CPUs than the machine has cores, because samplers, trainer and stream take turns
on a laptop and would otherwise wait for each other's reservations for ever.

The terminal shows the run: what Ray, the engines and the trainer have to say is in files under
`log_folder()`, which every error that passes `naming_logs` points to.
"""

import logging
import os
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rft_ray.config import cluster_address
from rft_ray.console import say

LOCAL_LOGICAL_CPUS = 16
START_ATTEMPTS = 3
HEAD_CHECK_S = 5.0
HEAD_CHECKS = 2
"""So many in a row without an answer."""


def start_ray(job: str = "rft-ray") -> None:
    """Connect this process to Ray; a second call in the same process changes nothing.

    `job` is the name of the driver's job in Ray's pages; a submitted job has its own already.
    """
    if cluster_address() is None:
        # Otherwise a local cluster listens on the machine's public address; Ray reads this name,
        # which speaks of other systems, when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Ray's C++ side writes two harmless complaints to the terminal, or the job's log, in every run:
    # that the stream's actors may restart, and that there are more processes than cores.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
    import ray
    import ray.data

    if ray.is_initialized():
        return
    _keep_engines_off_the_terminal()
    settings = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "job_config": ray.job_config.JobConfig(metadata={"job_name": job}),
    }
    if address := cluster_address():
        with stderr_held_back():
            ray.init(address=address, **settings)
        watch_head(ray.get_runtime_context().gcs_address, ray.is_initialized)
    else:
        _start_local(ray, settings)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _start_local(ray: ModuleType, settings: dict[str, Any]) -> None:
    # Ray's workers are by default nicer than anything else of this user, an engine among them: it
    # gave way to the driver and to Ray's own daemons wherever they met on a core.
    os.environ.setdefault("RAY_worker_niceness", "0")
    num_cpus = max(LOCAL_LOGICAL_CPUS, os.cpu_count() or 1)
    for attempt in range(START_ATTEMPTS):
        try:
            with stderr_held_back():
                ray.init(
                    address="local", num_cpus=num_cpus, include_dashboard=False, **settings
                )
            return
        except Exception as error:
            # Ray gives its processes 30 seconds to come up, which a busy machine may not manage;
            # it says so with no type of its own.
            if "timed out during startup" not in str(error) or attempt == START_ATTEMPTS - 1:
                raise
            ray.shutdown()


@contextmanager
def stderr_held_back() -> Iterator[None]:
    """What is written to file descriptor 2 in the block is shown only where the block raises.

    Ray's C++ side says there which log level it was given, before it takes it to heart.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def watch_head(address: str, is_connected: Callable[[], bool]) -> threading.Thread:
    """Say so, once, when the head of the cluster does not answer while we are connected.

    Ray waits for it for a minute and then ends the process, without an exception.
    """
    host, _, port = address.rpartition(":")

    def watch() -> None:
        missed = 0
        while missed < HEAD_CHECKS:
            time.sleep(HEAD_CHECK_S)
            if not is_connected():
                return
            try:
                socket.create_connection((host.strip("[]"), int(port)), HEAD_CHECK_S).close()
                missed = 0
            except OSError:
                missed += 1
        say(
            f"the head of the cluster ({address}) does not answer; if it stays away the run ends, "
            "and the same command goes on from what is there when there is a cluster again"
        )

    watcher = threading.Thread(target=watch, name="watch head", daemon=True)
    watcher.start()
    return watcher


def log_folder() -> Path:
    """Where Ray's processes of this node write: `worker-*.err`, `serve/`, `train/`, `ray-data/`."""
    from ray._private import worker

    return Path(worker._global_node.get_logs_dir_path())


@contextmanager
def naming_logs() -> Iterator[None]:
    """Whatever the block raises is told where the logs are."""
    folder = log_folder()
    try:
        yield
    except Exception as error:  # whatever it is: it gets a note and goes on
        error.add_note(f"logs of Ray, the engines and the trainer, on each node: {folder}")
        raise


def _keep_engines_off_the_terminal() -> None:
    """Logs go to files under Ray's session folder; the terminal shows the run."""
    # vLLM sets its logger up when it is imported, from this variable.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    for name in ("ray", "ray.serve", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


def stop_ray() -> None:
    """Leave the cluster; a local one ends with it."""
    import ray

    ray.shutdown()
