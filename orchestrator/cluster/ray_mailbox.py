"""The mailbox to and from the driver of a run on Ray.

It is an actor, whose process imports this file; so nothing here may import torch or Ray Train, which take it seconds in
which the others start.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.distributed.runtime import Event

MailboxActor = Any
"""A handle to a `Mailbox` actor."""
_LAST_EVENT = None


class Mailbox:
    """An actor for one run: events of workers and Ray Train's controller to the driver, its notice to the workers."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._stopped = asyncio.Event()
        self._number = 0

    async def put(self, *events: Event | None) -> None:
        for event in events:
            self._events.put_nowait(event)

    async def get(self) -> Event | None:
        return await self._events.get()

    async def stop(self, number: int) -> None:
        """Ask the run to stop as if by signal `number`."""
        self._number = number
        self._stopped.set()

    async def stop_asked(self) -> int:
        """Wait for the notice, and return its signal number; workers that start later receive it as well."""
        await self._stopped.wait()
        return self._number


@contextmanager
def open_mailbox(emit: Callable[[Event], None]) -> Iterator[MailboxActor]:
    """Yield a mailbox whose events are passed to `emit`, on a thread of this process."""
    # on the driver's own node, so that the mailbox survives the loss of another node
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: MailboxActor = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()

    def forward() -> None:
        event: Any
        while (event := ray.get(mailbox.get.remote())) is not _LAST_EVENT:
            emit(event)

    thread = threading.Thread(target=forward, daemon=True, name="events")
    thread.start()
    try:
        yield mailbox
    finally:
        ray.get(mailbox.put.remote(_LAST_EVENT))
        thread.join(timeout=10)
        ray.kill(mailbox)
