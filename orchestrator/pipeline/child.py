"""A stage's command as a child process: what a user would type, in a process group that dies with its driver."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from modules.child_process import child_environment, end_with_parent
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.errors import OrchestratorError
from orchestrator.pipeline.records import LOG
from orchestrator.runs.lease import end_at_once, ended_with_lease
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage

_VARIABLE = "ORCHESTRATOR_STAGE"
"""Tells a child who its driver is, and for which attempt at a stage it works."""
_COMMAND = [sys.executable, "-m", "orchestrator"]
_WATCH_SECONDS = 0.5
_UPLOAD_SECONDS = 30.0
_TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Order:
    """What a child is to do; plain data, so that it can be sent to another node."""

    root: str
    """The storage root, as the driver has it."""
    path: str
    """The stage's folder."""
    words: tuple[str, ...]
    """The command line after `orchestrator`."""
    attempt: Attempt
    num_threads: int
    """Of each of its workers."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further variables."""
    num_gpus: int = 0
    """That it takes."""
    folder: str = field(default_factory=os.getcwd)
    """The driver's current folder, to which paths in the words are relative."""


class RunningChild(Protocol):
    """A child process, here or on another node."""

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        ...

    def notify(self, number: int) -> None:
        """Pass a notice of termination on."""
        ...

    def kill(self) -> None:
        """End it and all that it has started."""
        ...


class Child:
    """A running command; its output goes to log.txt in the stage's folder."""

    def __init__(self, order: Order) -> None:
        """Start it; call this on a thread that outlives it, since Linux ends it with that thread."""
        self._log = _Log(Storage(order.root), f"{order.path}/{LOG}")
        self._log.add(_heading(order))
        about = {"root": order.root, "attempt": asdict(order.attempt), "driver": os.getpid()}
        threads = str(order.num_threads)
        environment = child_environment(
            OMP_NUM_THREADS=threads, **dict(order.environment), **{_VARIABLE: json.dumps(about)}
        )
        self._process = subprocess.Popen(
            [*_COMMAND, *order.words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log.file,
            stderr=subprocess.STDOUT,
            process_group=0,
            cwd=order.folder if os.path.isdir(order.folder) else None,  # another node may not have it
        )

    def wait(self) -> int:
        """Return its exit code once it has ended; nothing that it has started lives on."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=_UPLOAD_SECONDS)
                break
            self._log.upload()
        self.kill()
        self._log.close()
        return code

    def notify(self, number: int) -> None:
        """Pass a notice of termination on."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it and all that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


class _Log:
    """A log that grows with each attempt, in a local file or in a store that takes whole files alone."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        place = storage.local_path(name)
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            self.file: Any = open(place, "ab")  # noqa: SIM115
            return
        self.file = tempfile.NamedTemporaryFile("ab", suffix=".txt")  # noqa: SIM115
        with suppress(NotFoundError):
            self.file.write(storage.read_bytes(name))

    def add(self, line: str) -> None:
        self.file.write(f"{line}\n".encode())
        self.file.flush()

    def upload(self) -> None:
        if not self._storage.is_local:
            with suppress(OrchestratorError):  # a store in trouble must not end the stage
                self._storage.upload(Path(self.file.name), self._name)

    def close(self) -> None:
        self.upload()
        self.file.close()


def _heading(order: Order) -> str:
    now = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"--- {now}, attempt {order.attempt.number}: orchestrator {redact(shlex.join(order.words))}"


def last_error(storage: Storage, path: str) -> str:
    """Return the last message of a stage's log, in one line."""
    try:
        text = storage.read_bytes(f"{path}/{LOG}")[-_TAIL_BYTES:].decode(errors="replace")
    except (NotFoundError, OrchestratorError):
        return "its log cannot be read"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("--- ")]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it has written nothing"])[-1]


@contextmanager
def followed_driver() -> Iterator[None]:
    """Within a child of a pipeline, end this process when its driver has died or has lost the stage's lease."""
    about = json.loads(os.environ.pop(_VARIABLE))
    _die_with(about["driver"])
    with ended_with_lease(Storage(about["root"]), Attempt(**about["attempt"])):
        yield


def _die_with(driver: int) -> None:
    """End this process when its driver dies, even by SIGKILL: by the kernel on Linux, and everywhere by a watch."""
    end_with_parent()

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(_WATCH_SECONDS)
        end_at_once("the driver of this stage has ended, and so does this process")

    threading.Thread(target=watch, daemon=True, name="driver").start()
