"""A Ray cluster of one node with a job server, on loopback, with the tests' token, in processes of its own."""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def job_server(home: Path) -> Iterator[str]:
    """Yield the address of a job server, whose environment names `home` as the user's home folder.

    Of the dashboard only what the job server needs is started, which saves seven processes.
    """
    from ray._private import ray_constants, services
    from ray._private.utils import write_ray_address
    from ray.cluster_utils import Cluster

    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # loopback in this process, and in those that it starts
    environment = {"HOME": str(home), "PATH": path, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    before, on_network = dict(os.environ), ray_constants.ENABLE_RAY_CLUSTER
    wait_seconds = ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S
    start = services.start_ray_process

    def start_fewer(command: list[str], *others: Any, **settings: Any) -> Any:
        is_dashboard = any(str(word).endswith("dashboard/dashboard.py") for word in command)
        return start([*command, "--modules-to-load=JobHead,NodeHead"] if is_dashboard else command, *others, **settings)

    os.environ.update(environment)
    ray_constants.ENABLE_RAY_CLUSTER, services.start_ray_process = False, start_fewer
    ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = 240  # on a busy machine its minute is too short
    try:
        # of its own, since the agent of the cluster before may still hold the usual one, and jobs need the agent
        agent_port = {"dashboard_agent_listen_port": _free_port()}
        head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": 0, **agent_port}
        # Ray gives a job the address that the folder of its cluster names, else that of any cluster of the machine
        temp_dir = tempfile.mkdtemp(prefix="ray-")
        cluster = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": temp_dir})
        try:
            write_ray_address(cluster.address, temp_dir)
            yield f"http://{cluster.head_node.address_info['webui_url']}"
        finally:
            cluster.shutdown()
            shutil.rmtree(temp_dir, ignore_errors=True)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, services.start_ray_process = on_network, start
        ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = wait_seconds
        os.environ.clear()
        os.environ.update(before)
