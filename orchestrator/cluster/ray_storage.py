"""Whether all nodes of a Ray cluster see the folder in which a run is kept: asked of the nodes themselves."""

import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.not_seen import not_seen
from orchestrator.errors import UserError
from orchestrator.storage.store import Storage

_ANSWER_SECONDS = 60
_NUM_ASKED = 64


def check_shared(root: str) -> None:
    """Refuse a local root that other machines of the connected cluster do not see.

    Raises:
        UserError: workers there would read and write folders of their own.
    """
    if blind := hosts_without(root):
        raise UserError(not_seen(root, blind))


def hosts_without(root: str) -> list[str]:
    """Return the other hosts of the connected cluster that do not see a local root; none for a URL."""
    folder = Storage(root).local_path()
    nodes = _elsewhere(ray.nodes()) if folder else []
    if not folder or not nodes:
        return []
    there = next(path for path in (folder, *folder.parents) if path.exists())
    with tempfile.NamedTemporaryFile(dir=there, prefix=".seen-by-all-") as probe:
        return sorted(node["NodeManagerHostname"] for node in nodes if not _sees(node, Path(probe.name)))


def _elsewhere(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return a node of each other host on which workers may run; of a large cluster a sample."""
    here = socket.gethostname()
    usable = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    return [*{node["NodeManagerHostname"]: node for node in usable if node["NodeManagerHostname"] != here}.values()][
        :_NUM_ASKED
    ]


def _sees(node: Mapping[str, Any], path: Path) -> bool:
    def exists(name: str) -> bool:  # a function within a function is sent whole: the node may not have our code yet
        return os.path.exists(name)

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(exists).options(scheduling_strategy=there)
    return ray.get(task.remote(str(path)), timeout=_ANSWER_SECONDS)
