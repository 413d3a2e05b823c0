"""The Kubernetes files against KubeRay's schemas and Kubernetes' own, and rules that no schema holds."""

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from orchestrator.cli.command import COMMANDS
from orchestrator.configuration.groups import CheckpointConfig

FOLDER = Path(__file__).resolve().parents[2] / "infra/kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
KUBERNETES = "1.33"


def documents() -> Iterator[dict[str, Any]]:
    for file in FILES:
        yield from yaml.safe_load_all(file.read_text())


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents() if document["kind"] == kind)
    return found


def cluster_specs() -> list[dict[str, Any]]:
    return [of_kind("RayCluster")["spec"], of_kind("RayJob")["spec"]["rayClusterSpec"]]


def pods() -> Iterator[dict[str, Any]]:
    for spec in cluster_specs():
        yield spec["headGroupSpec"]["template"]["spec"]
        yield from (group["template"]["spec"] for group in spec["workerGroupSpecs"])


def filled(value: Any, schema: dict[str, Any]) -> Any:
    """Return `value` with the schema's defaults, as the API server fills them in before it validates."""
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        missing = {name: field["default"] for name, field in fields.items() if "default" in field and name not in value}
        return missing | {name: filled(item, fields.get(name, {})) for name, item in value.items()}
    return [filled(item, schema.get("items", {})) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberay_1_7_takes_the_resource_and_no_misspelt_field(kind: str, shared_file: Callable[[str], Path]) -> None:
    schema = json.loads(shared_file(f"kubernetes/{kind.lower()}_v1_kuberay_1.7.0.schema.json").read_text())
    validator, resource = jsonschema.Draft7Validator(schema), filled(of_kind(kind), schema)
    assert [error.message for error in validator.iter_errors(resource)] == []
    resource["spec"]["rayClusterSpecs"] = {}
    assert ["rayClusterSpecs" in error.message for error in validator.iter_errors(resource)] == [True]


def test_kubernetes_takes_its_own_kinds() -> None:
    own = [document for document in documents() if not document["apiVersion"].startswith("ray.io/")]
    assert [document["kind"] for document in own] == ["NetworkPolicy", "ConfigMap"]
    for document in own:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_kubernetes_takes_the_pods_of_every_group() -> None:
    specs = list(pods())
    assert len(specs) == 4
    for spec in specs:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("spec", cluster_specs(), ids=["RayCluster", "RayJob"])
def test_cluster_has_our_ray_a_token_by_reference_and_workers_that_come_and_go(spec: dict[str, Any]) -> None:
    import ray

    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token", "secretName": "gpt-ray-token"}
    assert spec["enableInTreeAutoscaling"]
    (group,) = spec["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert not set(spec) & {"networkPolicy", "tlsOptions", "historyServerOptions", "gcsFaultToleranceOptions"}  # alpha


def test_no_value_of_a_variable_is_a_secret() -> None:
    for pod in pods():
        for container in pod["containers"]:
            assert container["envFrom"] == [{"secretRef": {"name": "gpt-keys", "optional": True}}]
            assert {one["name"] for one in container.get("env", [])} <= {"RAY_PROMETHEUS_HOST", "RAY_GRAFANA_HOST"}


def test_pods_have_no_root_and_time_to_save() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]
        assert pod["terminationGracePeriodSeconds"] > CheckpointConfig().grace_seconds


def test_pod_of_a_worker_tells_ray_before_it_goes_and_has_time_for_that(tmp_path: Path) -> None:
    from ray.scripts.scripts import drain_node

    raylet = tmp_path / "cmdline"
    raylet.write_bytes(b"raylet\0--node_name=x\0--node_id=" + b"a1" * 28 + b"\0--node-ip-address=10.0.0.7\0")
    hooks = [(pod, pod["containers"][0]["lifecycle"]) for pod in pods() if "lifecycle" in pod["containers"][0]]
    assert [pod["containers"][0]["name"] for pod, _ in hooks] == ["ray-worker", "ray-worker"]
    for pod, hook in hooks:
        shell, login, script = hook["preStop"]["exec"]["command"]
        assert (shell, login) == ("bash", "-lc")
        assert script.startswith("ray drain-node --node-id ")
        find_node, _, rest = script.partition('"$(')[2].partition(')"')
        node = subprocess.run(
            ["bash", "-c", f"{find_node.split(' /proc')[0]} {raylet}"], capture_output=True, text=True
        )
        assert node.stdout.strip() == "a1" * 28
        words = shlex.split(f"ray drain-node --node-id {node.stdout} {rest.partition(';')[0]}")
        assert words[:2] == ["ray", "drain-node"]
        told = drain_node.make_context("drain-node", words[2:]).params
        assert told["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
        assert (
            CheckpointConfig().grace_seconds < told["deadline_remaining_seconds"] < pod["terminationGracePeriodSeconds"]
        )


def test_job_is_given_time_to_save_and_its_retries_time_for_the_lease() -> None:
    spec = of_kind("RayJob")["spec"]
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > CheckpointConfig().grace_seconds
    assert list(variables) == ["RAY_JOB_STOP_WAIT_TIME_S"]
    assert spec["backoffLimit"] > 0


def test_deletion_rules_are_those_that_the_operator_takes() -> None:
    """KubeRay 1.7, validation.go: the schema does not hold these rules."""
    spec = of_kind("RayJob")["spec"]
    rules = spec["deletionStrategy"]["deletionRules"]
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & set(spec)
    assert not {"onSuccess", "onFailure"} & set(spec["deletionStrategy"])
    for rule in rules:
        assert len({"jobStatus", "jobDeploymentStatus"} & set(rule["condition"])) == 1
        assert rule["policy"] != "DeleteWorkers"  # refused with autoscaling
    keys = [(str(sorted(rule["condition"].items() - {("ttlSeconds", 0)})), rule["policy"]) for rule in rules]
    assert len(set(keys)) == len(keys)


def test_settings_of_the_job_compose_into_a_run_on_its_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.cli import main

    job, pod = of_kind("RayJob"), list(pods())[2]
    command = shlex.split(job["spec"]["entrypoint"])
    mount = next(one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "settings")
    (volume,) = (one for one in pod["volumes"] if one["name"] == "settings")
    settings = of_kind("ConfigMap")
    assert volume["configMap"]["name"] == settings["metadata"]["name"]
    for name, text in settings["data"].items():
        file = tmp_path / mount["mountPath"].lstrip("/") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert command[0] == "orchestrator"
    assert command[1] in COMMANDS
    words = [str(tmp_path) + word if word.startswith("/") else word for word in command[1:]]
    assert main([*words, "--cfg", "job"]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    assert (made["cluster"]["name"], made["cluster"]["address"], made["strategy"]["name"]) == ("ray", "auto", "zero2")
    fewest, most = made["cluster"]["num_workers"]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (fewest, most)
    assert made["cluster"]["lease_wait_seconds"] > 60  # a lease that nobody renews expires
