"""A lease in a run's folder admits one driver at a time; it is renewed while the driver lives and expires soon after.

    runs/NAME/lease/0000000007.json    {"host": …, "pid": …, "process_started": …, "taken": …, "renewed": …}

The lease with the highest number is valid. A driver takes over by creating the next number, and only one of several
drivers succeeds in that.
"""

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

import psutil

from orchestrator.errors import LeaseError, OrchestratorError
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

RENEWAL_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
"""A lease that was not renewed for this long is free; the clocks of the hosts must differ by less."""


@contextmanager
def lease(storage: Storage, run_folder: str, on_loss: Callable[[], Any] | None = None) -> Iterator[None]:
    """Hold the lease of a run.

    Args:
        on_loss: Called when another driver has taken over; None ends this process and its children at once.

    Raises:
        LeaseError: another driver holds it.
    """
    folder = f"{run_folder}/lease"
    number = _take(storage, folder)
    renewal = _Renewal(storage, folder, number, on_loss or _end_at_once)
    renewal.start()
    try:
        yield
    finally:
        renewal.stop()


def holder(storage: Storage, run_folder: str) -> dict[str, Any] | None:
    """Return the live holder of a run's lease: host, pid, taken and more; None if there is none."""
    folder = f"{run_folder}/lease"
    number = _highest_number(storage, folder)
    if not number:
        return None
    try:
        found = _read(storage, folder, number)
    except NotFoundError:  # another driver has taken over in between
        return holder(storage, run_folder)
    return found if _is_alive(found) else None


class _Renewal(threading.Thread):
    def __init__(self, storage: Storage, folder: str, number: int, on_loss: Callable[[], Any]) -> None:
        super().__init__(name="lease", daemon=True)
        self._storage, self._folder, self._number, self._on_loss = storage, folder, number, on_loss
        self._taken = _read(storage, folder, number)["taken"]
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(RENEWAL_SECONDS):
            # a storage error must not end a run that no other driver has taken over
            with suppress(OrchestratorError):
                if _highest_number(self._storage, self._folder) > self._number:
                    self._on_loss()
                    return
                self._write(renewed=time.time())

    def stop(self) -> None:
        """Stop renewing and release the lease."""
        self._done.set()
        self.join()
        with suppress(OrchestratorError):
            self._write(renewed=0.0)

    def _write(self, renewed: float) -> None:
        data = _description(self._taken, renewed)
        self._storage.write_bytes(_name(self._folder, self._number), data)


def _take(storage: Storage, folder: str) -> int:
    held = _highest_number(storage, folder)
    if held:
        try:
            holder = _read(storage, folder, held)
        except NotFoundError:  # another driver has taken over in between
            return _take(storage, folder)
        if _is_alive(holder):
            raise LeaseError(_refusal(holder))
    now = time.time()
    if not storage.create_bytes(_name(folder, held + 1), _description(now, now)):
        raise LeaseError(_refusal(_read(storage, folder, held + 1)))
    for number in range(max(1, held - 1), held + 1):
        storage.remove(_name(folder, number))
    return held + 1


def _is_alive(holder: dict[str, Any]) -> bool:
    if time.time() - holder["renewed"] > EXPIRY_SECONDS:
        return False
    if holder["host"] != socket.gethostname():
        return True
    try:
        # by now the pid may belong to another process
        return abs(psutil.Process(holder["pid"]).create_time() - holder["process_started"]) < 1
    except psutil.NoSuchProcess:
        return False


def _refusal(holder: dict[str, Any]) -> str:
    since = datetime.fromtimestamp(holder["taken"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"another driver runs this run: process {holder['pid']} on {holder['host']}, since {since}; "
        "wait for it, stop it, or choose another run.name"
    )


def _end_at_once() -> NoReturn:
    """End this process and its workers before they write anything more into a run that another driver holds."""
    print("error: another driver has taken over this run; this driver ends", file=sys.stderr, flush=True)  # noqa: T201
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(1)


def _highest_number(storage: Storage, folder: str) -> int:
    found = (re.fullmatch(r"(\d{10})\.json", name) for name in storage.list(folder))
    return max((int(name[1]) for name in found if name), default=0)


def _name(folder: str, number: int) -> str:
    return f"{folder}/{number:010d}.json"


def _read(storage: Storage, folder: str, number: int) -> dict[str, Any]:
    """Return a lease; one that is damaged counts from its last change until it expires, whoever wrote it."""
    name = _name(folder, number)
    try:
        found = json.loads(storage.read_bytes(name))
        return {field: found[field] for field in ("host", "pid", "process_started", "taken", "renewed")}
    except (ValueError, TypeError, KeyError):
        changed = storage.modified_seconds(name)
        owner = {"host": "a host unknown, as its lease is damaged", "pid": 0, "process_started": 0.0}
        return {**owner, "taken": changed, "renewed": changed}


def _description(taken: float, renewed: float) -> bytes:
    process = psutil.Process()
    content = {
        "host": socket.gethostname(),
        "pid": process.pid,
        "process_started": process.create_time(),
        "taken": taken,
        "renewed": renewed,
    }
    return json.dumps(content, indent=1).encode()
