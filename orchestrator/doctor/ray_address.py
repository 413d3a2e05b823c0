"""Whether an existing Ray cluster answers, has our version and requires a token. Without an address, no Ray is used."""

import ipaddress
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.configuration.groups import ClusterConfig
from orchestrator.doctor.findings import Finding

CONNECT_SECONDS = 3
ANSWER_SECONDS = 50
_CLIENT_PORT = 10001
_TOKEN_FILE = ".ray/auth_token"  # noqa: S105  # its name alone
"""Below the home folder; the last path at which Ray looks for a token."""


def ray_cluster(config: ClusterConfig) -> Finding:
    """Query the version and the resources of the cluster at `cluster.address`."""
    address = config.address
    if address in (None, "local"):
        return Finding("ok", "embedded: cluster=ray starts one for each run")
    if _mode() == "token" and not _has_token():
        remedy = f"put the cluster's token into RAY_AUTH_TOKEN or ~/{_TOKEN_FILE}"
        return Finding("failure", "RAY_AUTH_MODE=token, and there is no token", remedy)
    endpoint = host_and_port(address)
    if endpoint and not _listens(*endpoint):
        remedy = "ray start --head there, correct cluster.address, or check the firewall"
        return Finding("failure", f"nothing listens at {address}", remedy)
    return _cluster_finding(address, ask_cluster(address))


def _cluster_finding(address: str, facts: dict[str, Any]) -> Finding:
    if "error" in facts:
        error = facts["error"]
        return Finding("failure", error if address in error else f"{address}: {error}", _remedy(error))
    resources, num_nodes = facts["resources"], facts["num_nodes"]
    nodes = f"{num_nodes} node{'s' if num_nodes != 1 else ''}"
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    text = f"{address}: Ray {facts['version']}, {nodes}, {cpus:g} CPUs, {gpus:g} GPUs"
    if _is_loopback(facts["address"]) or _uses_token(address):
        return Finding("ok", text)
    return Finding(
        "warning",
        f"{text}; without a token, anyone who reaches it can run code there (CVE-2023-48022)",
        "RAY_AUTH_MODE=token on the cluster and here, and keep its ports within a private network",
    )


def _remedy(error: str) -> str:
    if "ersion mismatch" in error:
        return "install the same versions of Python and Ray here and there"
    if _mode() is None:
        # a cluster that finds a token requires it (ray 2.60.0), and a client that sends none gets no reason
        return "set RAY_AUTH_MODE=token if it requires a token; ray status on its head node shows its state"
    return "ray status on its head node shows its state, and whether the token is the same"


def ask_cluster(address: str) -> dict[str, Any]:
    """Query it in a separate process: if the cluster does not answer, Ray's native code ends the process."""
    command = [sys.executable, "-m", "orchestrator.doctor.ask_ray", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {ANSWER_SECONDS} s"}
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else {"error": "it does not answer as Ray does"}


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return host and port; None where Ray finds them itself, as for `auto`."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    port = parts.port or (_CLIENT_PORT if parts.scheme == "ray" else None)
    return (parts.hostname, port) if parts.hostname and port else None


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    host = urlsplit(f"//{address}").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _mode() -> str | None:
    mode = os.environ.get("RAY_AUTH_MODE")
    return mode.lower() if mode else None


def _uses_token(address: str) -> bool:
    """Return whether Ray sends it a token; without RAY_AUTH_MODE only if Ray found the cluster itself (ray 2.60.0)."""
    return _mode() == "token" or (_mode() is None and address == "auto" and _has_token())


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / _TOKEN_FILE).expanduser()
    return path.is_file() and path.stat().st_size > 0
