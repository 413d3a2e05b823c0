"""A Ray cluster of several nodes on this machine, whose nodes are added and removed while a run trains on it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from broken_run import RECORDING, words_of

_ROOT = Path(__file__).resolve().parents[2]


class RayNodes:
    """A head node without CPUs, for drivers, and nodes for one worker each; to be used only on the main thread."""

    def __init__(self, num_nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address = self._cluster.address
        self.nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add()

    def add(self, **environment: str) -> None:
        """Add a node; its processes, the workers among them, have these variables."""
        self.nodes.append(self._cluster.add_node(num_cpus=1, env_vars=environment or None))

    def add_apart(self, folder: Path) -> None:
        """Add a node whose workers keep their copies and their temporary files in folders of its own."""
        for name in ("cache", "tmp"):
            (folder / name).mkdir(parents=True)
        self.add(XDG_CACHE_HOME=str(folder / "cache"), TMPDIR=str(folder / "tmp"))

    def remove(self, node: Any) -> None:
        """Remove a node as its owner does: its processes are asked to end."""
        self.nodes.remove(node)
        self._cluster.remove_node(node)

    def lose(self, node: Any) -> None:
        """Kill all processes of a node at once."""
        raylet = self.raylet(node)
        for process in [raylet, *raylet.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_raylet(self, node: Any) -> None:
        """Kill the raylet of a node alone."""
        os.kill(self.raylet(node).pid, signal.SIGKILL)

    def drain(self, node: Any, seconds: int) -> None:
        """Notify Ray that a node will be preempted in `seconds`."""
        import time

        from ray._raylet import GcsClient

        deadline = int((time.time() + seconds) * 1000)
        preemption = 2  # autoscaler.proto: DRAIN_NODE_REASON_PREEMPTION
        accepted, why = GcsClient(address=self.address).drain_node(node.node_id, preemption, "test", deadline)
        assert accepted, why

    @staticmethod
    def raylet(node: Any) -> psutil.Process:
        (info,) = node.all_processes["raylet"]
        return psutil.Process(info.process.pid)

    def workers(self, node: Any) -> list[psutil.Process]:
        """Return the training processes on a node."""
        children = self.raylet(node).children(recursive=True)
        return [child for child in children if any("RayTrainWorker" in word for word in words_of(child))]

    def end(self) -> None:
        self._cluster.shutdown()


@contextmanager
def ray_nodes(num_nodes: int) -> Iterator[RayNodes]:
    """Yield a cluster whose processes can import the code."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [RECORDING, str(_ROOT), before]))
    nodes = RayNodes(num_nodes)
    try:
        yield nodes
    finally:
        nodes.end()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
