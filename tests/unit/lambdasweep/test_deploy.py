"""The files that start lambdasweep elsewhere pass Ray's own validation, and our command line takes their commands.

None of them was run on a cloud, on Kubernetes or under Slurm.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.modules.job.cli import submit as job_submit

from lambdasweep import cli, flags
from lambdasweep.config import SweepConfig
from ray_jobs.prometheus import SERIES
from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
CLUSTERS = (ROOT / "cluster.yaml", EXAMPLES / "cluster-onprem.yaml")
FILES = (*CLUSTERS, EXAMPLES / "rayjob.yaml", EXAMPLES / "slurm.sbatch")


def joined(file: Path) -> list[str]:
    """Return the lines of a shell script, or of a comment that holds one; continued lines become one."""
    lines = [re.sub(r"^#\s+", "", line) for line in file.read_text().splitlines()]
    return "\n".join(lines).replace("\\\n", " ").split("\n")


def commands(file: Path) -> Iterator[list[str]]:
    """Yield every `lambdasweep …` command of a file, in its words."""
    if file.name == "rayjob.yaml":
        yield shlex.split(yaml.safe_load(file.read_text())["spec"]["entrypoint"])
        return
    for line in joined(file):
        if match := re.search(r"(?:^|\s)(lambdasweep (?:run|plan|status|report|demo)\b.*)", line):
            yield shlex.split(match[1])


def parse(words: list[str]) -> SweepConfig:
    """Parse a `lambdasweep run` with the real command line, up to the checked config."""
    assert words[:2] == ["lambdasweep", "run"]
    command = typer.main.get_command(cli.app).commands["run"]  # type: ignore[attr-defined]
    config: SweepConfig = flags.asked(**command.make_context("run", words[2:]).params)
    return config


def check_shell(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def parse_ray(line: str) -> None:
    """Parse what a shell line gives to `ray`, with Ray's own command line."""
    from ray.scripts.scripts import cli as ray_command

    words = shlex.split(line.rpartition(";")[2])
    assert words[0].rpartition("/")[2] == "ray"
    ray_command.commands[words[1]].make_context(words[1], words[2:])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_commands_are_ours(file: Path) -> None:
    (config,) = [parse(words) for words in commands(file)]
    assert config.address == "auto"
    assert len(config.lambdas) == 31


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("--lambda 0,1", "No such option"),
        ("--lambdas 0:1:x", "cannot be set up"),
        ("--tp 0", "cannot be set up"),
        ("--task arc", "cannot be set up"),
    ],
)
def test_a_wrong_command_is_found(bad: str, says: str) -> None:
    words = shlex.split(f"lambdasweep run --base a --aligned b --out r --task t=t.jsonl --lambdas 0,1 {bad}")
    with pytest.raises(Exception, match=says):
        parse(words)


def cluster_config(file: Path) -> dict[str, Any]:
    """Return the config as `ray up` completes and checks it."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(file.read_text()))
    validate_config(config)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("file", CLUSTERS, ids=lambda file: file.name)
def test_ray_takes_the_cluster(file: Path) -> None:
    config = cluster_config(file)
    for name in ("initialization_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[name]
        check_shell("\n".join(config[name]))
    for role in ("head", "worker"):
        check_shell("\n".join(config[f"{role}_start_ray_commands"]))
        for line in config[f"{role}_start_ray_commands"]:
            parse_ray(line)
        assert "RAY_AUTH_MODE=token" in config[f"{role}_start_ray_commands"][-1]
    assert any(place.endswith("/.ray/auth_token") for place in config["file_mounts"])
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    (line,) = [line for line in joined(file) if "ray job submit" in line]
    words = shlex.split(line)
    submitted = job_submit.make_context("submit", words[words.index("submit") + 1 :]).params
    assert submitted["entrypoint"][:2] == ("lambdasweep", "run")


def test_the_cluster_on_aws_scales_to_nothing() -> None:
    config = cluster_config(CLUSTERS[0])
    types = config["available_node_types"]
    head, worker = types[config["head_node_type"]], types["h100"]
    assert "GPU" not in head["resources"]
    assert (worker["min_workers"], worker["resources"]["GPU"]) == (0, 8)
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["max_workers"] <= config["max_workers"]


def test_the_ray_job_of_kubernetes() -> None:
    """The file has what the RayJob resource requires; its schema does not come with Ray."""
    job = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"]
    spec = job["spec"]
    assert spec.keys() == {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    pinned = re.search(r'"ray\[default\]==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pinned
    assert cluster["rayVersion"] == pinned[1]
    gpus = 0
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            gpus += int(container["resources"]["limits"].get("nvidia.com/gpu", 0)) * group.get("replicas", 1)
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    config = parse(next(commands(EXAMPLES / "rayjob.yaml")))
    assert config.replicas is not None
    assert config.replicas * config.tp == gpus


def test_the_slurm_script() -> None:
    from ray.scripts.scripts import cli as ray_command
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    file = EXAMPLES / "slurm.sbatch"
    check_shell(file.read_text())
    (line,) = [line for line in joined(file) if "ray symmetric-run" in line and "lambdasweep run" in line]
    words = [re.sub(r"\$\w+", "8", word) for word in shlex.split(line)]
    words = words[words.index("symmetric-run") + 1 :]
    separator = words.index("--")
    assert words[separator + 1] == "lambdasweep"
    context = symmetric_run.make_context("symmetric-run", words[:separator])
    assert (context.params["address"], context.params["min_nodes"]) == ("8:6379", 8)
    start = curate_and_validate_ray_start_args(words[:separator])
    assert start  # the remaining words are for `ray start`
    ray_command.commands["start"].make_context("start", start)


def test_the_dashboard_shows_what_there_is() -> None:
    board = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    labels = {one.exported: set(one.labels) for one in SERIES}
    used: set[str] = set()
    for panel in board["panels"]:
        for target in panel["targets"]:
            names = set(re.findall(r"\bray_\w+", target["expr"]))
            assert names
            assert names <= labels.keys(), target["expr"]
            used |= names
            for by in re.findall(r"by \((\w+)\)", target["expr"]):
                assert all(by in labels[name] for name in names), target["expr"]
                assert target["legendFormat"] == f"{{{{{by}}}}}"
    assert used == labels.keys()  # nothing is measured that nobody sees
    places = [panel["gridPos"] for panel in board["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert all(x < 24 for x, _ in cells)
