"""Whether all nodes of a Ray cluster see the folder in which a run is kept: asked of the nodes themselves."""

import os
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
    """Return the hosts of the other nodes of the connected cluster that do not see a local root; none for a URL.

    A node is asked even if its host has this machine's name: containers that share a host's name share no folders.
    """
    folder = Storage(root).local_path()
    nodes = _elsewhere(ray.nodes()) if folder else []
    if not folder or not nodes:
        return []
    there = next(path for path in (folder, *folder.parents) if path.exists())
    with tempfile.NamedTemporaryFile(dir=there, prefix=".seen-by-all-") as probe:
        return sorted({node["NodeManagerHostname"] for node in _blind(nodes, Path(probe.name))})


def hosts_without_file(path: Path) -> list[str]:
    """Return the hosts of the other nodes of the connected cluster that do not see a local file."""
    nodes = _elsewhere(ray.nodes())
    return sorted({node["NodeManagerHostname"] for node in _blind(nodes, path)})


def _elsewhere(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the other nodes on which workers may run; of a large cluster a sample."""
    here = ray.get_runtime_context().get_node_id()
    usable = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    return [node for node in usable if node["NodeID"] != here][:_NUM_ASKED]


def _blind(nodes: Sequence[Mapping[str, Any]], path: Path) -> list[Mapping[str, Any]]:
    """Return the nodes that do not see a file; all are asked at once, since each starts a process for it."""

    def exists(name: str) -> bool:  # a function within a function is sent whole: the node may not have our code yet
        return os.path.exists(name)

    ask = ray.remote(num_cpus=0, max_retries=0)(exists)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    answers = [ask.options(scheduling_strategy=place).remote(str(path)) for place in places]
    return [node for node, sees in zip(nodes, ray.get(answers, timeout=_ANSWER_SECONDS), strict=True) if not sees]
