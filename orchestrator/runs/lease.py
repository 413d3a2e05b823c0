"""A lease in a run's folder admits one driver at a time; it is renewed while the driver lives and expires soon after.

    runs/NAME/lease/0000000007.json    {"token": …, "host": …, "boot": …, "namespace": …, "pid": …, "started": …,
                                        "taken": …, "renewed": …}

The lease with the highest number is valid. A driver takes over by creating the next number, and only one of several
drivers succeeds in that. A driver that can be seen from here holds its lease as long as it lives, even if it is
stopped; any other one until its lease expires.
"""

import itertools
import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

import psutil

from orchestrator.checkpoints.attempt import RUNS, Attempt, lease_name, newest_number
from orchestrator.errors import LeaseError, LeaseLostError, OrchestratorError
from orchestrator.runs.processes import ProcessId
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

log = logging.getLogger(__name__)
RENEWAL_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
"""A lease that was not renewed for this long is free; the clocks of the hosts must differ by less."""
_RENEWALS_A_CALL = 6
"""So many renewals are a minute."""
_RETRY_SECONDS = 2.0
_SETTLE_SECONDS = 2.0
"""Where a store cannot create exclusively, a driver waits this long for the lease of another one to appear."""


@contextmanager
def lease(
    storage: Storage,
    run_name: str,
    on_loss: Callable[[], Any] | None = None,
    on_renewal: Callable[[], Any] = lambda: None,
    wait_seconds: float = 0,
    on_wait: Callable[[str], Any] = lambda _: None,
    above: str = RUNS,
) -> Iterator[Attempt]:
    """Hold the lease of a run, and yield the attempt that it admits.

    Args:
        on_loss: Called when another driver has taken over; None ends this process and its children at once.
        on_renewal: Called once a minute and at the end, to write what somebody has removed from the run's folder.
        wait_seconds: How long to wait for another driver: the one before a restart may hold it until it expires.
        on_wait: Called once, with a line that says for whom, if there is another one to wait for.
        above: The folder that holds the run's.

    Raises:
        LeaseError: another driver holds it.
    """
    attempt, taken = _taken_within(storage, run_name, above, wait_seconds, on_wait), time.time()
    renewals = itertools.count(1)

    def renew() -> None:
        _renew(storage, attempt, taken)
        if next(renewals) % _RENEWALS_A_CALL == 0:
            on_renewal()

    renewal = _Watch(renew, on_loss or end_at_once)
    renewal.start()
    try:
        yield attempt
    finally:
        renewal.stop()
        with suppress(OrchestratorError):
            _renew(storage, attempt, taken)
            on_renewal()
            storage.write_bytes(attempt.lease_name, _description(attempt.token, taken, renewed=0.0))


@contextmanager
def ended_with_lease(storage: Storage, attempt: Attempt) -> Iterator[None]:
    """End this worker and its children when another driver has taken over: its own driver may be stopped or cut off.

    Raises:
        LeaseLostError: that is so already.
    """
    attempt.check(storage)
    watch = _Watch(partial(attempt.check, storage), end_at_once)
    watch.start()
    try:
        yield
    finally:
        watch.stop()


def holder(storage: Storage, run_name: str, above: str = RUNS) -> dict[str, Any] | None:
    """Return the live holder of a run's lease: host, pid, taken and more; None if there is none."""
    number = newest_number(storage, run_name, above)
    if not number:
        return None
    try:
        found = _read(storage, lease_name(run_name, number, above))
    except NotFoundError:  # another driver has taken over in between
        return holder(storage, run_name, above)
    return found if _is_alive(found) else None


class _Watch(threading.Thread):
    """Calls `check` every few seconds until it finds that the lease is lost."""

    def __init__(self, check: Callable[[], Any], on_loss: Callable[[], Any]) -> None:
        super().__init__(name="lease", daemon=True)
        self._check, self._on_loss = check, on_loss
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(RENEWAL_SECONDS):
            try:
                self._check()
            except LeaseLostError:
                self._on_loss()
                return
            except OrchestratorError:  # a storage error must not end a run that no other driver has taken over
                continue

    def stop(self) -> None:
        """Stop checking."""
        self._done.set()
        self.join()


def _renew(storage: Storage, attempt: Attempt, taken: float) -> None:
    is_stored = attempt.check(storage)
    data = _description(attempt.token, taken, renewed=time.time())
    if is_stored:
        storage.write_bytes(attempt.lease_name, data)
    else:
        # somebody has removed it: of several drivers one creates it anew
        _create(storage, attempt, data)


def _taken_within(
    storage: Storage, run_name: str, above: str, seconds: float, on_wait: Callable[[str], Any]
) -> Attempt:
    deadline, is_told = time.monotonic() + seconds, False
    while True:
        try:
            return _take(storage, run_name, above)
        except LeaseError as error:
            if time.monotonic() >= deadline:
                raise
            if not is_told:
                on_wait(
                    f"{str(error).partition(';')[0]}; this one waits up to {seconds:g} s for it to end (if it was "
                    f"killed, its lease ends within {EXPIRY_SECONDS:g} s)"
                )
                is_told = True
        time.sleep(min(_RETRY_SECONDS, seconds))


def _take(storage: Storage, run_name: str, above: str) -> Attempt:
    held = newest_number(storage, run_name, above)
    if held:
        try:
            found = _read(storage, lease_name(run_name, held, above))
        except NotFoundError:  # another driver has taken over in between
            return _take(storage, run_name, above)
        if _is_alive(found):
            raise LeaseError(_refusal(found))
    attempt, now = Attempt(run_name, held + 1, secrets.token_hex(8), above), time.time()
    try:
        _create(storage, attempt, _description(attempt.token, now, now))
    except LeaseLostError:
        raise LeaseError(_refusal(_read(storage, attempt.lease_name))) from None
    for number in range(max(1, held - 1), held + 1):
        storage.remove(lease_name(run_name, number, above))
    return attempt


def _create(storage: Storage, attempt: Attempt, data: bytes) -> None:
    """Create the lease; raise LeaseLostError if another driver was faster.

    A refused creation may be this driver's own, whose answer was lost: what is there is read back. A second creation
    shows whether the store refuses any at all.
    """
    storage.create_bytes(attempt.lease_name, data)
    if storage.create_bytes(attempt.lease_name, data):
        log.warning(
            "%s cannot create a file exclusively: of two drivers that start the same run within the same %g seconds, "
            "it may stop only the first",
            storage.url(),
            _SETTLE_SECONDS,
        )
        time.sleep(_SETTLE_SECONDS)
    attempt.check(storage)


def _is_alive(holder: dict[str, Any]) -> bool:
    process = ProcessId(**{field.name: holder[field.name] for field in fields(ProcessId)})
    # a lease that was given back is no longer renewed, though its process lives
    return bool(holder["renewed"]) and (
        process.is_alive if process.is_visible else time.time() - holder["renewed"] <= EXPIRY_SECONDS
    )


def _refusal(holder: dict[str, Any]) -> str:
    since = datetime.fromtimestamp(holder["taken"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"another driver runs this run: process {holder['pid']} on {holder['host']}, since {since}; "
        "wait for it, stop it, or choose another run.name"
    )


def end_at_once(reason: str = "another driver has taken over this run; this process ends") -> NoReturn:
    """End this process and its children before they write anything more into what another driver holds."""
    print(f"error: {reason}", file=sys.stderr, flush=True)  # noqa: T201
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(1)


def _read(storage: Storage, name: str) -> dict[str, Any]:
    """Return a lease; one that is damaged counts from its last change until it expires, whoever wrote it."""
    owner = {"boot": "", "namespace": "", "started": 0, "token": ""}  # as in a lease of an earlier version
    try:
        found = {**owner, **json.loads(storage.read_bytes(name))}
        return {field: found[field] for field in (*owner, "host", "pid", "taken", "renewed")}
    except (ValueError, TypeError, KeyError):
        changed = storage.modified_seconds(name)
        reason = f"{storage.url(name)} is damaged, and counts for {EXPIRY_SECONDS:g} s after its last change"
        unknown = {"host": f"a host unknown ({reason})", "pid": 0}
        return {**owner, **unknown, "taken": changed, "renewed": changed}


def _description(token: str, taken: float, renewed: float) -> bytes:
    content = {"token": token, **asdict(ProcessId.of(os.getpid())), "taken": taken, "renewed": renewed}
    return json.dumps(content, indent=1).encode()
