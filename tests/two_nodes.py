"""A cluster of two nodes on this machine, each of whose processes can be found and killed.

Where the machine allows it the second node is a host of its own, in a network namespace behind a
pair of virtual interfaces, so that the link between the two can be cut; elsewhere both are on
loopback, and a cut stops every process of the second node instead. Left out: more nodes, GPUs.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
CPUS = 8
"""Logical ones of each node."""
PLACES = ("head", "worker")
MARK = "RFT_TEST_NODE"
START_S = 180
START_ATTEMPTS = 3


class Link:
    """The network between the two nodes: addresses, what runs a command on the second, and a cut.

    `address` and `interface` are by place.
    """

    def __init__(self) -> None:
        number = os.getpid() % 250
        self.namespace = f"rft{number}"
        self.interface = {"head": f"rft{number}h", "worker": f"rft{number}w"}
        self.address = {"head": f"10.203.{number}.1", "worker": f"10.203.{number}.2"}
        self.is_real = self._make()
        if not self.is_real:
            self.interface = dict.fromkeys(PLACES, "lo")
            self.address = dict.fromkeys(PLACES, "127.0.0.1")

    def command(self, place: str) -> list[str]:
        """What a command for a node starts with."""
        is_elsewhere = self.is_real and place == "worker"
        # unlike `ip netns exec` it leaves mounts as they are
        return ["nsenter", f"--net=/run/netns/{self.namespace}"] if is_elsewhere else []

    def _make(self) -> bool:
        if os.geteuid() or not (shutil.which("ip") and shutil.which("nsenter")):
            return False
        head, worker, name = self.interface["head"], self.interface["worker"], self.namespace
        self.remove()
        steps = (
            f"netns add {name}",
            f"link add {head} type veth peer name {worker} netns {name}",
            f"addr add {self.address['head']}/30 dev {head}",
            f"link set {head} up",
            f"-n {name} addr add {self.address['worker']}/30 dev {worker}",
            f"-n {name} link set {worker} up",
            f"-n {name} link set lo up",
            # for what asks by which address it reaches the world
            f"-n {name} route add default via {self.address['head']}",
        )
        is_made = all(_ip(step) for step in steps)
        if not is_made:
            self.remove()
        return is_made

    def set(self, state: str) -> None:
        """The link is `up` or `down`."""
        assert _ip(f"link set {self.interface['head']} {state}")

    def remove(self) -> None:
        """Leave the machine's network as it was."""
        if shutil.which("ip"):
            _ip(f"link del {self.interface['head']}")
            _ip(f"netns del {self.namespace}")


def _ip(step: str) -> bool:
    return subprocess.run(["ip", *step.split()], capture_output=True).returncode == 0


class TwoNodes:
    """The cluster; both nodes are labelled with their place."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="rft"))  # short: paths of sockets are limited
        self.link = Link()
        self.port = free_port()
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """What drivers join by."""
        return f"{self.link.address['head']}:{self.port}"

    def start(self, place: str) -> None:
        """Start a node and wait until it is one of the cluster's."""
        own = self.link.address[place]
        command = [*self.link.command(place), sys.executable, "-m", "ray.scripts.scripts", "start"]
        command += ["--block", f"--node-ip-address={own}", f"--num-cpus={CPUS}"]
        command += [f"--labels=place={place}", "--object-store-memory=500000000"]
        command += ["--disable-usage-stats"]
        if place == "head":
            command += ["--head", f"--port={self.port}", f"--temp-dir={self.home}/ray"]
            command += ["--include-dashboard=false"]
        else:
            command += [f"--address={self.address}"]
        log = self.home / f"{place}.log"
        for _ in range(START_ATTEMPTS):
            with log.open("w") as file:
                self.nodes[place] = subprocess.Popen(
                    command, env=self.environment(place), stdout=file, stderr=file,
                    process_group=0,
                )  # fmt: skip
            if self._is_up(place, log):
                return
            self.kill(place)
        raise AssertionError(log.read_text())

    def _is_up(self, place: str, log: Path) -> bool:
        """Whether a node came up: Ray gives up after half a minute, however busy the machine."""
        deadline = time.monotonic() + START_S
        while "To terminate the Ray runtime" not in log.read_text():
            if self.nodes[place].poll() is not None:
                assert "timed out during startup" in log.read_text(), log.read_text()
                return False
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        return True

    def environment(self, place: str) -> dict[str, str]:
        """Of a node, or of a driver, with nothing of the caller's Ray.

        Whatever is started there inherits the mark that it is found by.
        """
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return {
            **kept,
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": self.link.interface.get(place, self.link.interface["head"]),
            MARK: f"{self.home}:{place}",
            # a token in the home of the user would be asked for
            "RAY_AUTH_MODE": "disabled",
        }

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        """`rft-ray ...` as a driver on the head node, its output in one pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "rft_ray", *arguments],
            cwd=ROOT,
            env={**self.environment("driver"), "RAY_ADDRESS": self.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def processes(self, title: str = "", place: str = "") -> list[psutil.Process]:
        """The processes of one node, or of both, whose command line contains `title`.

        Those whose parents are dead are among them.
        """
        places = {f"{self.home}:{name}" for name in ([place] if place else PLACES)}
        return [own for own in psutil.process_iter() if mark_of(own) in places
                and title in title_of(own)]  # fmt: skip

    def kill(self, place: str) -> None:
        """Every process of a node dies at once, as with its machine."""
        for process in self.processes(place=place):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes.pop(place).wait()

    @contextmanager
    def stopped(self, place: str) -> Iterator[None]:
        """While the block runs, every process of a node does nothing."""
        own = self.processes(place=place)
        try:
            for process in own:
                process.suspend()
            yield
        finally:
            for process in own:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """While the block runs, the second node can not be reached, and reaches nobody."""
        if not self.link.is_real:
            with self.stopped("worker"):
                yield
            return
        self.link.set("down")
        try:
            yield
        finally:
            self.link.set("up")

    def close(self) -> None:
        """End both nodes and remove what they left."""
        for place in list(self.nodes):
            self.kill(place)
        self.link.remove()
        shutil.rmtree(self.home, ignore_errors=True)


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """The cluster, up while the block runs."""
    nodes = TwoNodes()
    try:
        for place in PLACES:
            nodes.start(place)
        yield nodes
    finally:
        nodes.close()


def mark_of(process: psutil.Process) -> str:
    """Which node of which cluster a process belongs to; nothing where it has ended or says not."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return process.environ().get(MARK, "")
    return ""


def title_of(process: psutil.Process) -> str:
    """What a process calls itself; nothing where it has just ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def kill_group(driver: subprocess.Popen[str]) -> None:
    """A driver dies with all processes of its own."""
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
