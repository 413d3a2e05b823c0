"""Functions on the nodes of a Ray cluster, each in a process of its own, and who has reserved what of the cluster.

Ray Train of 2.60 can schedule two runs onto the same capacity (ray #66002). So whoever starts stages reserves what they
need with an actor that all drivers of a cluster share. A driver that is no longer heard of holds nothing.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray._private import state as ray_state
from ray.exceptions import RayActorError

from orchestrator.cluster.ray_cluster import connected
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.errors import LostNodeError

Order = TypeVar("Order", contravariant=True)
_NAMESPACE, _ADMISSION = "gpt-orchestrator", "admission"
BEAT_SECONDS, EXPIRY_SECONDS = 5.0, 60.0


class Running(Protocol):
    """What runs on a node."""

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        ...

    def notify(self, number: int) -> None:
        """Pass a notice of termination on."""
        ...


class _Host(Generic[Order]):
    """An actor that starts one function's work and waits for it; it reserves nothing, since the work does so itself."""

    def __init__(self, start: Callable[[Order], Running]) -> None:
        self._start = start
        self._running: Running | None = None
        self._notice = 0

    def run(self, order: Order) -> int:
        self._running = self._start(order)
        if self._notice:
            self._running.notify(self._notice)
        return self._running.wait()

    def notify(self, number: int) -> None:
        self._notice = number
        if self._running is not None:
            self._running.notify(number)


class RayTask(Generic[Order]):
    """Work on a node."""

    def __init__(self, start: Callable[[Order], Running], order: Order, num_gpus: int = 0) -> None:
        """Start it on the node that has most room.

        Args:
            start: Starts the work, on the node.
            order: What it is given.
            num_gpus: GPUs that it sees.
        """
        host: Any = ray.remote(num_cpus=0)(_Host)
        once = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2, "scheduling_strategy": "SPREAD"}
        self._host = host.options(num_gpus=num_gpus, **once).remote(start)
        self._code = self._host.run.remote(order)

    def wait(self) -> int:
        """Return the exit code.

        Raises:
            LostNodeError: its node is gone.
        """
        try:
            return ray.get(self._code)
        except RayActorError as error:
            raise LostNodeError(f"the node of this stage is gone ({str(error).splitlines()[0]})") from None
        finally:
            self.kill()

    def notify(self, number: int) -> None:
        """Pass a notice of termination on."""
        self._host.notify.remote(number)

    def kill(self) -> None:
        """End it and all that it has started."""
        with suppress(Exception):  # it has ended
            ray.kill(self._host)


class Admission:
    """An actor, one for each cluster: which driver has reserved how many CPUs and GPUs for what.

    After the loss of its node it is started anew, and learns from the drivers' beats what they hold.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[float, float]] = {}
        self._heard: dict[str, float] = {}
        self._knows_all_at = time.monotonic() + 2 * BEAT_SECONDS if _is_started_anew() else 0.0

    def left(self) -> tuple[float, float]:
        """Return the CPUs and GPUs that nobody has reserved."""
        self._forget_the_dead()
        total = ray.cluster_resources()
        return tuple(
            total.get(kind, 0.0) - sum(held[number] for held in self._held.values())
            for number, kind in enumerate(("CPU", "GPU"))
        )  # type: ignore[return-value]

    def take(self, driver: str, what: str, cpus: float, gpus: float) -> bool:
        """Reserve, unless that is more than is left; asked again, since an answer was lost, it answers the same."""
        self._heard[driver] = time.monotonic()
        (left_cpus, left_gpus), (own_cpus, own_gpus) = self.left(), self._held.get((driver, what), (0.0, 0.0))
        if time.monotonic() < self._knows_all_at or cpus > left_cpus + own_cpus or gpus > left_gpus + own_gpus:
            return False
        self._held[driver, what] = cpus, gpus
        return True

    def give_back(self, driver: str, what: str) -> None:
        self._held.pop((driver, what), None)

    def beat(self, driver: str, held: Mapping[str, tuple[float, float]]) -> None:
        """Take note that a driver lives, and of all that it holds."""
        self.leave(driver)
        self._heard[driver] = time.monotonic()
        self._held |= {(driver, what): resources for what, resources in held.items()}

    def leave(self, driver: str) -> None:
        """Give back all that a driver has reserved."""
        self._heard.pop(driver, None)
        self._held = {key: held for key, held in self._held.items() if key[0] != driver}

    def _forget_the_dead(self) -> None:
        """Give back what drivers held that Ray knows to have ended, or that have not been heard of for too long."""
        now = time.monotonic()
        late = {driver: now - heard for driver, heard in self._heard.items() if now - heard > 2 * BEAT_SECONDS}
        ended = _ended_jobs() if late else set()
        for driver, seconds in late.items():
            if seconds > EXPIRY_SECONDS or driver.partition("-")[0] in ended:
                self.leave(driver)


def _is_started_anew() -> bool:
    return ray.is_initialized() and bool(ray.get_runtime_context().was_current_actor_reconstructed)


def _ended_jobs() -> set[str]:
    """Return the ids of the drivers that have ended, even by SIGKILL."""
    return {job["JobID"] for job in ray_state.jobs() if job["IsDead"]}


class SharedLedger:
    """One driver's view of what all drivers of the cluster have reserved."""

    def __init__(self) -> None:
        actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Admission)
        options = {"name": _ADMISSION, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True}
        self._actor = actor.options(**options).remote()
        self._driver = f"{ray.get_runtime_context().get_job_id()}-{secrets.token_hex(8)}"
        self._held: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()
        """A beat must not undo what was reserved after it was made up."""
        self._done = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="admission").start()

    def left(self) -> tuple[float, float]:
        """Return the CPUs and GPUs that nobody has reserved."""
        return ray.get(self._actor.left.remote())

    def take(self, what: str, cpus: float, gpus: float) -> bool:
        """Reserve, unless that is more than is left; return whether it was."""
        with self._lock:
            answer: Any = ray.get(self._actor.take.remote(self._driver, what, cpus, gpus))
            if answer:
                self._held[what] = cpus, gpus
            return answer

    def give_back(self, what: str) -> None:
        """Give back what was reserved under a name."""
        with self._lock:
            self._held.pop(what, None)
            self._actor.give_back.remote(self._driver, what)

    def close(self) -> None:
        """Give back everything."""
        self._done.set()
        with suppress(Exception):  # a cluster that is gone holds nothing
            ray.get(self._actor.leave.remote(self._driver), timeout=BEAT_SECONDS)

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with suppress(Exception), self._lock:  # the cluster is gone
                self._actor.beat.remote(self._driver, dict(self._held))


@contextmanager
def ray_stages(config: ClusterConfig) -> Iterator[tuple[str, tuple[float, float], SharedLedger]]:
    """Connect to a cluster, or start one here; yield its address, its CPUs and GPUs, and the shared ledger."""
    with connected(config):
        resources = ray.cluster_resources()
        shared = SharedLedger()
        try:
            address = ray.get_runtime_context().gcs_address
            yield address, (resources.get("CPU", 0.0), resources.get("GPU", 0.0)), shared
        finally:
            shared.close()
