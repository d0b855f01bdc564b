"""Joining a Ray cluster, or starting a local one; and leaving it.

Inside a cluster (RAY_ADDRESS set, or a Ray job) the driver joins it as it is. Otherwise it starts
a local cluster of its own: a bare `ray.init()` might attach to somebody else's. A local cluster is
given more logical CPUs than the machine has cores, because samplers, trainer and stream take turns
on a laptop and would otherwise wait for each other's reservations for ever.
"""

import logging
import os
import warnings
from types import ModuleType

from rft_ray.config import cluster_address

LOCAL_LOGICAL_CPUS = 16
START_ATTEMPTS = 3


def start_ray() -> None:
    """Connect this process to Ray; a second call in the same process changes nothing."""
    if cluster_address() is None:
        # Otherwise a local cluster listens on the machine's public address; Ray reads this name,
        # which speaks of other systems, when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Ray's C++ side writes two harmless complaints to the terminal in every run: that the
        # stream's actors may restart, and that there are more processes than cores.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
    import ray
    import ray.data

    if ray.is_initialized():
        return
    _keep_engines_off_the_terminal()
    if address := cluster_address():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        _start_local(ray)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _start_local(ray: ModuleType) -> None:
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(
                address="local",
                num_cpus=max(LOCAL_LOGICAL_CPUS, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:
            # Ray gives its processes 30 seconds to come up, which a busy machine may not manage;
            # it says so with no type of its own.
            if "timed out during startup" not in str(error) or attempt == START_ATTEMPTS - 1:
                raise
            ray.shutdown()


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
