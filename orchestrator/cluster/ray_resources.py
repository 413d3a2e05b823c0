"""What a Ray cluster has, whether it can grow, and which of it a run's workers get."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.state import state as cluster_state
from ray._raylet import GCS_AUTOSCALER_STATE_NAMESPACE as STATE  # type: ignore[attr-defined]  # compiled
from ray._raylet import GCS_AUTOSCALER_V2_ENABLED_KEY as V2_ENABLED  # type: ignore[attr-defined]
from ray.experimental.internal_kv import _internal_kv_get

from modules.cores import num_cores
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.errors import HardwareError

_FIXED_NODE = "node_"
"""The autoscaler names the type of a node that it has not started after the node (ray 2.60.0)."""


@dataclass(frozen=True)
class Resources:
    """What there is for workers, by Ray's names."""

    present: Mapping[str, float]
    can_grow: bool = False
    """Whether an autoscaler may add nodes."""


def of_this_machine(with_gpus: bool) -> Resources:
    """Return the resources that an embedded Ray will have, which need not start for that; GPUs only on request."""
    return Resources({"CPU": float(num_cores()), "GPU": _num_gpus() if with_gpus else 0.0})


def _num_gpus() -> float:
    import torch  # which takes seconds, and is not needed where nobody asks

    return float(torch.cuda.device_count())


def of_the_cluster() -> Resources:
    """Return the resources of the cluster to which this process is connected."""
    return Resources(ray.cluster_resources(), _can_grow())


def _can_grow() -> bool:
    """Return whether an autoscaler of the present kind or of the one before it has types of nodes to start."""
    config: Any = cluster_state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    if groups:
        return any(group.max_count == -1 or group.max_count > group.min_count for group in groups)
    if _internal_kv_get(V2_ENABLED, namespace=STATE) == b"1":
        return True
    return has_node_types(_internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS))


def has_node_types(status: bytes | None) -> bool:
    """Return whether the autoscaler's report names a type of node that it can start; without a report it cannot."""
    report = (json.loads(status).get("autoscaler_report") or {}) if status else {}
    types = {
        *(report.get("active_nodes") or ()),
        *(report.get("idle_nodes") or ()),
        *(report.get("pending_launches") or ()),
    }
    return any(not name.startswith(_FIXED_NODE) for name in types)


def check_resources(config: ClusterConfig, fewest: int, resources: Resources) -> None:
    """Refuse fewer resources than the fewest workers need; a cluster that can grow may have them later.

    Raises:
        HardwareError: there is not enough, or it is not clear whether to train on GPUs.
    """
    use_gpu(config, fewest, resources)
    wanted = {"CPU": fewest * config.cpus_per_worker, "GPU": float(fewest * (config.gpus_per_worker or 0))}
    for kind, number in wanted.items():
        if number > resources.present.get(kind, 0) and not resources.can_grow:
            raise HardwareError(
                f"cluster.num_workers={fewest}: the workers need {number:g} {kind}s, and the cluster has "
                f"{resources.present.get(kind, 0):g}; lower cluster.num_workers or cluster.{kind.lower()}s_per_worker"
            )


def use_gpu(config: ClusterConfig, fewest: int, resources: Resources) -> bool:
    """Return whether each worker gets a GPU.

    Unless that is set, it is so where there are enough. Nobody has asked for the CPU of a cluster with GPUs.

    Raises:
        HardwareError: it is not set, and there are GPUs, but too few, or a cluster that can grow has none yet.
    """
    if config.gpus_per_worker is not None:
        return bool(config.gpus_per_worker)
    num_gpus = resources.present.get("GPU", 0)
    if num_gpus >= fewest or (num_gpus and resources.can_grow):
        return True
    if num_gpus:
        raise HardwareError(
            f"cluster.num_workers={fewest}: the cluster has {num_gpus:g} GPU{'s' if num_gpus > 1 else ''}, too few for "
            "a GPU each; lower cluster.num_workers, or train on CPU with cluster.gpus_per_worker=0"
        )
    if resources.can_grow:
        raise HardwareError(
            "cluster.gpus_per_worker=null: the cluster has no GPU now and can grow, so it cannot be known whether to "
            "train on GPUs; set cluster.gpus_per_worker=1, or 0 for CPU"
        )
    return False
