"""The files that make clusters: valid, and large enough for the configs they are for.

Run: pytest tests/test_cluster_files.py
"""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rft_ray.config_file import load_config
from rft_ray.placement import Room
from rft_ray.preflight import Node, find_shortages
from rft_ray.submit import IMAGE_HOME

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
GIB = 2**30
LAUNCHER = ("aws.yaml", "gcp.yaml")
KUBERAY = ("kuberay-job.yaml", "kuberay-service.yaml")
CONFIGS = ("llama2_7b_gsm8k.yaml", "llama2_70b_u13b_gsm8k.yaml")
# CPUs, GPUs and GiB of memory, as the clouds publish them.
MACHINES = {
    "m7i.2xlarge": (8, 0, 32),
    "g6e.12xlarge": (48, 4, 384),
    "p4de.24xlarge": (96, 8, 1152),
    "n2-standard-8": (8, 0, 32),
    "a2-ultragpu-4g": (48, 4, 680),
    "a2-ultragpu-8g": (96, 8, 1360),
}


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def documents(name: str) -> dict[str, Any]:
    return {own["kind"]: own for own in yaml.safe_load_all((CLUSTER / name).read_text())}


def node(cpus: float, gpus: float, memory_gib: float) -> Node:
    """As Ray would count it: 30% of the memory is the object store's."""
    memory = int(memory_gib * GIB)
    return Node("x", "x", Room(cpus, gpus), int(0.7 * memory), int(0.3 * memory))


def launcher_nodes(name: str, kinds: set[str]) -> list[Node]:
    config = read(name)
    nodes = []
    for kind, own in config["available_node_types"].items():
        machine = own["node_config"].get("InstanceType") or own["node_config"]["machineType"]
        cpus, gpus, memory = MACHINES[machine]
        assert own["resources"] == {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        if kind in kinds:
            copies = 1 if kind == config["head_node_type"] else own["max_workers"]
            nodes += [node(cpus, gpus, memory)] * copies
    return nodes


def ray_spec(document: Any) -> Any:
    return document["spec"].get("rayClusterSpec") or document["spec"]["rayClusterConfig"]


def amount(text: str) -> float:
    units = {"Gi": 1, "Ti": 1024}
    return float(text[:-2]) * units[text[-2:]]


def pods(spec: Any) -> list[tuple[int, Any]]:
    """How many there may be of each pod, and its specification."""
    groups = [(own["maxReplicas"], own) for own in spec["workerGroupSpecs"]]
    both = [(1, spec["headGroupSpec"]), *groups]
    return [(count, own["template"]["spec"]) for count, own in both]


def kuberay_nodes(name: str) -> list[Node]:
    nodes = []
    for count, pod in pods(ray_spec(documents(name)["RayJob"])):
        limits = pod["containers"][0]["resources"]["limits"]
        gpus = float(limits.get("nvidia.com/gpu", 0))
        nodes += [node(float(limits["cpu"]), gpus, amount(limits["memory"]))] * count
    return nodes


def slurm_nodes() -> list[Node]:
    text = (CLUSTER / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", text, re.MULTILINE))
    one = node(float(options["cpus-per-task"]), float(options["gpus-per-node"]), 1000)
    return [one] * int(options["nodes"])


def skypilot_nodes() -> list[Node]:
    task = read("skypilot.yaml")
    need = task["resources"]
    gpus = float(need["accelerators"].split(":")[1])
    return [node(float(need["cpus"][:-1]), gpus, float(need["memory"][:-1]))] * task["num_nodes"]


OFFERS = {
    "aws.yaml": lambda: launcher_nodes("aws.yaml", {"head", "target"}),
    "gcp.yaml": lambda: launcher_nodes("gcp.yaml", {"head", "target"}),
    "kuberay-job.yaml": lambda: kuberay_nodes("kuberay-job.yaml"),
    "slurm.sh": slurm_nodes,
    "skypilot.yaml": skypilot_nodes,
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", OFFERS)
def test_a_cluster_has_what_the_configs_ask_for(name: str, config: str) -> None:
    asked = load_config(ROOT / "configs" / config)
    nodes = OFFERS[name]()
    assert find_shortages(asked, nodes) == []
    # and no more than it needs: half the GPU machines of the largest config would not do
    if config == CONFIGS[1]:
        largest = max(own.room.gpus for own in nodes)
        fewer = [own for own in nodes if own.room.gpus < largest] + nodes[-1:]
        assert find_shortages(asked, fewer)


@pytest.mark.parametrize("name", LAUNCHER)
def test_small_policies_fit_on_the_machines_for_samplers(name: str) -> None:
    asked = load_config(ROOT / "configs" / CONFIGS[1], ["trainer.num_workers=1"])
    assert find_shortages(asked, launcher_nodes(name, {"head", "sampler"})) == []


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_launcher_accepts_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(name)
    prepared = prepare_config(config)
    validate_config(prepared)
    types = config["available_node_types"]
    assert config["max_workers"] == sum(own.get("max_workers", 0) for own in types.values())
    with pytest.raises(Exception, match="nonsense"):
        validate_config({**prepared, "nonsense": 1})


@pytest.mark.parametrize("name", LAUNCHER)
def test_launched_clusters_ask_for_a_token_and_listen_on_loopback(name: str) -> None:
    config = read(name)
    for role in ("head", "worker"):
        start = config[f"{role}_start_ray_commands"][-1]
        assert "RAY_AUTH_MODE=token" in start and "ulimit -n 65536" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("/mnt/cluster" in own for own in config["docker"]["run_options"])
    for kind, own in config["available_node_types"].items():
        machine = own["node_config"].get("InstanceType") or own["node_config"]["machineType"]
        role = "head" if kind == "head" else "worker"
        options = own.get("docker", config["docker"])[f"{role}_run_options"]
        (shm,) = (int(text[11:-1]) for text in options if text.startswith("--shm-size="))
        assert 0.3 * MACHINES[machine][2] <= shm < 0.35 * MACHINES[machine][2]


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_are_whole(name: str) -> None:
    document = next(own for kind, own in documents(name).items() if kind.startswith("Ray"))
    spec = ray_spec(document)
    assert f"ray=={spec['rayVersion']}" in (ROOT / "requirements" / "gpu.txt").read_text()
    assert spec["authOptions"] == {"mode": "token", "secretName": "rft-secrets"}
    for _, pod in pods(spec):
        (container,) = pod["containers"]
        resources, volumes = container["resources"], {own["name"]: own for own in pod["volumes"]}
        assert resources["requests"] == resources["limits"]
        mounts = {own["mountPath"]: own["name"] for own in container["volumeMounts"]}
        assert set(mounts) == {"/mnt/cluster", "/dev/shm"}
        claim = documents("kuberay-storage.yaml")["PersistentVolumeClaim"]
        shared = volumes[mounts["/mnt/cluster"]]["persistentVolumeClaim"]["claimName"]
        assert shared == claim["metadata"]["name"]
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        shm = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert shm["medium"] == "Memory"
        memory = amount(resources["limits"]["memory"])
        assert 0.3 * memory <= amount(shm["sizeLimit"]) < 0.4 * memory
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_service_is_one_that_serve_and_its_pods_can_run() -> None:
    from ray.serve.schema import ServeDeploySchema

    service = documents("kuberay-service.yaml")["RayService"]
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = deployed.applications
    (model,) = application.args["llm_configs"]
    devices = model["placement_group_config"]["bundles"]
    assert len(devices) == model["engine_kwargs"]["tensor_parallel_size"]
    (group,) = ray_spec(service)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert float(limits["nvidia.com/gpu"]) == sum(own["GPU"] for own in devices)
    replicas = model["deployment_config"]["autoscaling_config"]["max_replicas"]
    assert replicas <= group["maxReplicas"]


INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "ARG", "COPY", "ENV", "VOLUME"}


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_images_are_made_of_what_is_there(name: str) -> None:
    text = re.sub(r"^#.*\n", "", (CLUSTER / name).read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    steps = [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]
    assert {step[0] for step in steps} <= INSTRUCTIONS
    assert steps[0] == ("FROM", "python:3.11-slim-bookworm")
    assert ("WORKDIR", IMAGE_HOME) in steps
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [own for word, rest in steps if word == "COPY" for own in rest.split()[:-1]]
    for source in copied:
        assert (ROOT / source).exists() and f"!{source.split('/')[0]}" in kept
    lock = f"requirements/{name.removeprefix('Dockerfile.')}.txt"
    assert lock in copied and any(lock in rest for word, rest in steps if word == "RUN")
    assert any("RAY_AUTH_MODE=token" in rest for word, rest in steps if word == "ENV")


FAKE = """#!/bin/bash
echo "$(basename "$0") $*" >> "$LOG"
case "$(basename "$0") $*" in
    scontrol*) printf 'n1\\nn2\\nn3\\n' ;;
    *"hostname --ip-address") echo "10.0.0.1 192.168.0.1" ;;
    rft-ray*)
        # a run lasts longer than what was started beside it takes to come up
        until [ "$(grep -c "ray start" "$LOG")" = "$STARTS" ]; do /bin/sleep 0.05; done
        echo "$RAY_ADDRESS $RAY_AUTH_MODE $(wc -c < "$RAY_AUTH_TOKEN_PATH")" >> "$LOG"
        exit 7 ;;
esac
"""


def dry_run(tmp_path: Path, nodes: int) -> list[str]:
    """What the Slurm script would have run on so many nodes, in order."""
    log = tmp_path / "log"
    for name in ("srun", "scontrol", "ray", "rft-ray", "sleep"):
        path = tmp_path / ".venv" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE)
        path.chmod(0o755)
    facts = {"SUBMIT_DIR": str(tmp_path), "JOB_ID": "5", "JOB_NODELIST": "n[1-3]"}
    facts |= {"JOB_NUM_NODES": str(nodes), "CPUS_PER_TASK": "96", "GPUS_ON_NODE": "8"}
    done = subprocess.run(
        ["bash", str(CLUSTER / "slurm.sh"), "c.yaml", "run_dir=/s/a b"],
        env={
            **os.environ,
            **{f"SLURM_{key}": value for key, value in facts.items()},
            "LOG": str(log),
            "STARTS": "1" if nodes == 1 else "2",
        },
        timeout=60,
    )
    assert done.returncode == 7  # the run's own
    assert not list(tmp_path.glob("*.token"))
    return log.read_text().splitlines()


def test_the_slurm_script_starts_a_head_then_the_others_then_the_run(tmp_path: Path) -> None:
    lines = dry_run(tmp_path, 3)
    (head,) = (line for line in lines if "ray start --head" in line)
    assert "-w n1" in head and "--node-ip-address=10.0.0.1 --port=6379" in head
    assert "--dashboard-host=127.0.0.1" in head and "--num-cpus=96 --num-gpus=8 --block" in head
    (others,) = (line for line in lines if "ray start --address" in line)
    assert "--nodes=2 --ntasks=2" in others and "--exclude=n1" in others
    assert "--address=10.0.0.1:6379 --num-cpus=96 --num-gpus=8" in others
    assert "rft-ray run c.yaml run_dir=/s/a b --wait 600" in lines
    assert "10.0.0.1:6379 token 65" in lines


def test_on_one_node_there_are_no_others(tmp_path: Path) -> None:
    assert not any("ray start --address" in line for line in dry_run(tmp_path, 1))


def test_the_skypilot_task_is_shell_and_knows_its_variables() -> None:
    task = read("skypilot.yaml")
    known = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "setup", "run"}
    assert set(task) == known
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        used = {name for name in re.findall(r"\$\{?([A-Z_]+)", script) if name != "PWD"}
        own = {*task["envs"], *task["secrets"], "PATH", "PYTHON"}
        assert all(name in own or name.startswith("SKYPILOT_") for name in used)
    assert "--dashboard-host=127.0.0.1" in task["run"] and "RAY_AUTH_MODE=token" in task["run"]


FILES = [*OFFERS, *KUBERAY, "kuberay-storage.yaml", "Dockerfile.cpu", "Dockerfile.gpu"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_at_its_head_how_it_is_run(name: str) -> None:
    head = []
    for line in (CLUSTER / name).read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    assert f"cluster/{name}" in "\n".join(head)
    assert f"`{name}`" in (CLUSTER / "README.md").read_text()


def test_every_run_that_is_named_has_a_valid_config() -> None:
    text = "\n".join((CLUSTER / name).read_text() for name in FILES)
    text = re.sub(r"\\\n#? *", " ", text).replace(IMAGE_HOME + "/", "")
    word = r"--[a-z]+(?: +(?:\d+|http\S+))?|[\w.]+=\S+"
    commands = re.findall(rf"rft-ray (?:run|submit) +(configs/\S+\.yaml)((?:\s+(?:{word}))*)", text)
    assert len(commands) >= 3
    for config, rest in commands:
        load_config(ROOT / config, [own for own in shlex.split(rest) if re.match(r"[\w.]+=", own)])
    load_config(ROOT / read("skypilot.yaml")["envs"]["CONFIG"])
    assert any("problems.heldout.path=/mnt/cluster" in rest for _, rest in commands)
