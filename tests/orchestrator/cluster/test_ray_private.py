"""A cluster that is started for a run listens on loopback, demands a token, and leaves no trace of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, psutil
from orchestrator.cluster import ray_cluster
from orchestrator.configuration.groups import ClusterConfig
import ray
before = {name: value for name, value in os.environ.items() if "AUTH" in name}
with ray_cluster.connected(ClusterConfig(name="ray")):
    mode, token = os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    connections = [one for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
                   for one in process.net_connections() if one.status == "LISTEN"]
    from ray._raylet import GcsClient, AuthenticationTokenLoader
    address = ray.get_runtime_context().gcs_address
    os.environ["RAY_AUTH_TOKEN"] = "0" * 64
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        GcsClient(address=address).internal_kv_get(b"x", None)
        refused = ""
    except Exception as error:
        refused = type(error).__name__
    os.environ["RAY_AUTH_TOKEN"] = token
    AuthenticationTokenLoader.instance().reset_cache()
after = {name: value for name, value in os.environ.items() if "AUTH" in name}
print("\\n" + json.dumps({"ips": sorted({one.laddr.ip for one in connections}), "mode": mode, "token": token,
                        "refused": refused, "restored": before == after}))
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("mode", [pytest.param("disabled", marks=pytest.mark.long), None])
def test_embedded_cluster_is_on_loopback_with_a_token_of_its_own(mode: str | None, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    environment |= {"RAY_AUTH_MODE": mode} if mode else {}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {*found["ips"]} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert found["ips"]
    assert (found["mode"], len(found["token"]), found["restored"]) == ("token", 64, True)
    assert found["refused"] == "AuthenticationError"
    assert not (tmp_path / ".ray").exists()
