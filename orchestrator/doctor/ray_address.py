"""Whether an existing Ray cluster answers, has our version and requires a token. Without an address, no Ray is used."""

import json
import socket
import subprocess
import sys
from typing import Any

from orchestrator.cluster.not_seen import not_seen
from orchestrator.cluster.ray_token import TOKEN_FILE, auth_mode, has_token, host_and_port, is_loopback, sends_token
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.doctor.findings import Finding
from orchestrator.storage.access import is_local

CONNECT_SECONDS = 3
ANSWER_SECONDS = 50


def ray_cluster(config: ClusterConfig, root: str) -> Finding:
    """Query the version and the resources of the cluster at `cluster.address`, and who there sees the storage root."""
    address = config.address
    if address in (None, "local"):
        return Finding("ok", "embedded: cluster=ray starts one for each run")
    if auth_mode() == "token" and not has_token():
        remedy = f"put the cluster's token into RAY_AUTH_TOKEN or ~/{TOKEN_FILE}"
        return Finding("failure", "RAY_AUTH_MODE=token, and there is no token", remedy)
    endpoint = host_and_port(address)
    if endpoint and not _listens(*endpoint):
        remedy = "ray start --head there, correct cluster.address, or check the firewall"
        return Finding("failure", f"nothing listens at {address}", remedy)
    return _cluster_finding(address, ask_cluster(address, root if is_local(root) else ""), root)


def _cluster_finding(address: str, facts: dict[str, Any], root: str) -> Finding:
    if "error" in facts:
        error = facts["error"]
        return Finding("failure", error if address in error else f"{address}: {error}", _remedy(error))
    if hosts := facts["hosts_without_root"]:
        problem, _, remedy = not_seen(root, hosts).partition("; ")
        return Finding("failure", problem, remedy)
    resources, num_nodes = facts["resources"], facts["num_nodes"]
    nodes = f"{num_nodes} node{'s' if num_nodes != 1 else ''}"
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    text = f"{address}: Ray {facts['version']}, {nodes}, {cpus:g} CPUs, {gpus:g} GPUs"
    if is_loopback(facts["address"]) or sends_token(address):
        return Finding("ok", text)
    return Finding(
        "warning",
        f"{text}; without a token, anyone who reaches it can run code there (CVE-2023-48022)",
        "RAY_AUTH_MODE=token on the cluster and here, and keep its ports within a private network",
    )


def _remedy(error: str) -> str:
    if "ersion mismatch" in error:
        return "install the same versions of Python and Ray here and there"
    if auth_mode() is None:
        # a cluster that finds a token requires it (ray 2.60.0), and a client that sends none gets no reason
        return "set RAY_AUTH_MODE=token if it requires a token; ray status on its head node shows its state"
    return "ray status on its head node shows its state, and whether the token is the same"


def ask_cluster(address: str, root: str) -> dict[str, Any]:
    """Query it in a separate process: if the cluster does not answer, Ray's native code ends the process."""
    command = [sys.executable, "-m", "orchestrator.doctor.ask_ray", address, root]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {ANSWER_SECONDS} s"}
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else {"error": "it does not answer as Ray does"}


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
