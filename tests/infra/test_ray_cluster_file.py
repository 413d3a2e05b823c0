"""The cluster file of Ray's autoscaler against Ray's own schema, and its commands against Ray's own parser."""

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.scripts.scripts import start

FILE = Path(__file__).resolve().parents[2] / "infra/ray/aws.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def test_ray_takes_the_file(cluster: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 1}, schema)


def test_node_types_are_within_the_limits_and_the_head_trains_nothing(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["max_workers"] == cluster["max_workers"]
    assert set(types["gpu"]["resources"]) == {"CPU", "GPU"}


@pytest.mark.parametrize("which", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_start_takes_the_arguments(cluster: dict[str, Any], which: str) -> None:
    stop, command = cluster[which]
    assert stop == "ray stop"
    words = shlex.split(command)
    assert words[:2] == ["ray", "start"]
    context = start.make_context("start", words[2:])
    assert context.params["head"] == (which == "head_start_ray_commands")
    assert context.params["address"] == (None if context.params["head"] else "$RAY_HEAD_IP:6379")
    if context.params["head"]:
        assert (context.params["port"], context.params["dashboard_host"]) == (6379, "127.0.0.1")


def test_every_node_demands_the_token_and_no_file_holds_one(cluster: dict[str, Any]) -> None:
    options = cluster["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    (path,) = cluster["file_mounts"]
    assert f"--env RAY_AUTH_TOKEN_PATH={path}" in options
    assert not any("RAY_AUTH_TOKEN=" in option or "SECRET" in option for option in options)
