"""Where the children of a pipeline or a sweep run: this machine, or a Ray cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.configuration.groups import ClusterConfig
from orchestrator.pipeline.admission import Ledger, Resources, machine
from orchestrator.pipeline.child import Child, Order, RunningChild
from orchestrator.pipeline.places import TRAINS


@dataclass(frozen=True)
class Place:
    """Where the children run."""

    name: str
    ledger: Ledger
    start: Callable[[Order], RunningChild]
    address: str | None = None


@contextmanager
def place(config: ClusterConfig) -> Iterator[Place]:
    """Yield this machine, or the Ray cluster that is chosen; only then is Ray imported."""
    if config.name == "local":
        yield Place("this machine", Ledger(machine()), Child)
        return
    from orchestrator.cluster.ray_tasks import RayTask, ray_stages

    with ray_stages(config) as (address, (cpus, gpus), shared):
        ledger = Ledger(Resources(cpus, int(gpus)), shared)
        yield Place("the cluster", ledger, lambda order: RayTask(Child, order, _own_gpus(order)), address)


def _own_gpus(order: Order) -> int:
    """Return the GPUs that Ray sets aside for a child itself; the workers of a training have theirs."""
    return 0 if order.words[0] in TRAINS else order.num_gpus
