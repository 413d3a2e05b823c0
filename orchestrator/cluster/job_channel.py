"""How rank 0 hands its job to the other processes that torchrun has started, and how each knows that the other lives.

The channel is torch's own key-value store at MASTER_ADDR:MASTER_PORT, over which workers find one another as well. Who
reaches that port can write into it, so a message is JSON, is validated, and is never code:
    {"exit_code": 0}                         rank 0 has ended without a job
    {"job": …, "meeting_port": null}         the job, and where the workers find one another
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Annotated

from pydantic import Field, TypeAdapter
from torch.distributed import DistNetworkError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from modules.errors import InputError
from orchestrator.cluster.job_data import data_of_job, job_of_data
from orchestrator.errors import MachineError, StoppedError, UserError, exit_code
from orchestrator.runs.run import Job

_BEAT, _MESSAGE, _NUM_READ = "beat", "message", "num_read"
_BEAT_SECONDS = 5.0
"""How often rank 0 shows that it lives, which it does from a thread while it prepares the data."""
_POLL_SECONDS = 0.5
"""So often even thousands of processes are little work for the store; a notice of termination waits as long."""
_READ_SECONDS = 60
"""The processes of a large run start within this time of one another."""
_MOST_NAMED = 8
"""Ranks in a message."""
_EXIT_CODE = TypeAdapter(Annotated[int, Field(ge=0, le=255, strict=True)])
_PORT = TypeAdapter(Annotated[int | None, Field(ge=1, le=65535, strict=True)])


class JobChannel:
    """A channel from rank 0 to all other processes.

    Args:
        limit_seconds: A process that shows no sign of life for so long is given up.

    Raises:
        MachineError: rank 0 cannot be reached, or rank 0 cannot listen at its address.
    """

    def __init__(self, rank: int, world_size: int, limit_seconds: float) -> None:
        self._rank, self._world_size, self._limit_seconds = rank, world_size, limit_seconds
        self._where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        # torchrun's agent holds it for its processes; without an agent rank 0 does, and torch finds it again there
        self._holds_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self._has_sent = False
        self._store = self._open()
        self._store.set(_place(rank), socket.gethostname())

    def _open(self) -> Store:
        try:
            store = TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                self._world_size,
                is_master=self._holds_store,
                timeout=timedelta(seconds=self._limit_seconds),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            if not self._holds_store:
                raise self._no_sign(reason) from None
            text = f"cluster=torchrun: rank 0 cannot listen at {self._where} ({reason}); choose another MASTER_PORT"
            raise MachineError(text) from None
        # the agent's store outlives the processes, which torchrun may start anew
        attempt = f"{os.environ.get('TORCHELASTIC_RUN_ID')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
        return PrefixStore(f"orchestrator/{attempt}", store)

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Show the others that rank 0 lives; at the end tell those that still wait for a job how it ended."""
        done = threading.Event()
        thread = threading.Thread(target=self._show_life, args=[done], daemon=True, name="sign of life")
        thread.start()
        code = 0
        try:
            yield
        except BaseException as error:
            code = _code(error)
            raise
        finally:
            done.set()
            thread.join()
            if not self._has_sent:
                with suppress(RuntimeError):  # the store has ended with torchrun's agent, as the others do
                    self._tell_end(code)

    def _show_life(self, done: threading.Event) -> None:
        with suppress(RuntimeError):
            while not self._has_sent:
                self._store.set(_BEAT, str(time.time()))
                if done.wait(_BEAT_SECONDS):
                    return

    def _tell_end(self, code: int) -> None:
        """Tell the others the exit code; where the store ends with this process, stay until they have read it."""
        self._store.set(_MESSAGE, json.dumps({"exit_code": code}))
        if not self._holds_store:
            return
        # after a notice of termination nobody else comes any more
        num_readers = self._world_size - 1 - (len(self._missing()) if code > 128 else 0)
        deadline = time.monotonic() + min(_READ_SECONDS, self._limit_seconds)
        while self._store.add(_NUM_READ, 0) < num_readers and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _missing(self) -> list[int]:
        return [rank for rank in range(1, self._world_size) if not self._store.check([_place(rank)])]

    def send(self, job: Job) -> None:
        """Hand the job to all others, once all are there.

        Raises:
            MachineError: some did not come in time.
        """
        deadline = time.monotonic() + self._limit_seconds
        others = [_place(rank) for rank in range(1, self._world_size)]
        while others and not self._store.check(others):
            if time.monotonic() > deadline:
                raise MachineError(self._absence(self._missing()))
            time.sleep(_POLL_SECONDS)
        self._has_sent = True
        self._store.set(_MESSAGE, json.dumps({"job": data_of_job(job), "meeting_port": self._new_meeting_port()}))

    def _new_meeting_port(self) -> int | None:
        """Return the port of a store of this attempt alone, where the workers find one another; None without an agent.

        In the agent's store a worker that is started anew may find the addresses of the workers before it, and fails
        (torch 2.13: "Connection refused"). torch finds this one again by its port, in this process.
        """
        if self._holds_store:
            return None
        self._meeting = TCPStore(
            os.environ["MASTER_ADDR"], 0, is_master=True, multi_tenant=True, wait_for_workers=False
        )
        _meet_at(self._meeting.port)
        return self._meeting.port

    def _absence(self, missing: list[int]) -> str:
        named = ", ".join(map(str, missing[:_MOST_NAMED])) + (", …" if len(missing) > _MOST_NAMED else "")
        return (
            f"cluster=torchrun: {len(missing)} of {self._world_size} processes did not come to {self._where} within "
            f"cluster.hang_timeout_seconds={self._limit_seconds:g}: rank {named}; look at the output of their nodes, "
            "and raise that setting if they start so slowly"
        )

    def receive(self) -> Job:
        """Wait for the job, as long as rank 0 lives.

        Raises:
            SystemExit: rank 0 has ended without a job, with this exit code.
            MachineError: rank 0 shows no sign of life.
        """
        try:
            self._wait_for_message()
            text = self._store.get(_MESSAGE)
            self._store.add(_NUM_READ, 1)
        except DistNetworkError:
            raise self._no_sign("it has ended") from None
        job, port = self._understood(text)
        if port is not None:
            _meet_at(port)
        return job

    def _understood(self, text: bytes) -> tuple[Job, int | None]:
        """Return the job and the port where the workers meet; raise SystemExit if there is none."""
        try:
            message = json.loads(text)
            if "exit_code" in message:
                raise SystemExit(_EXIT_CODE.validate_python(message["exit_code"]))
            return job_of_data(message["job"]), _PORT.validate_python(message["meeting_port"])
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise MachineError(
                f"cluster=torchrun: at {self._where} lies no message of rank 0 of this version ({reason:.200}); "
                "start the same version everywhere, and let nobody else reach MASTER_PORT"
            ) from None

    def _wait_for_message(self) -> None:
        beat, seen = b"", time.monotonic()
        while not self._store.check([_MESSAGE]):
            found = self._store.get(_BEAT) if self._store.check([_BEAT]) else b""
            if found != beat:
                beat, seen = found, time.monotonic()
            elif time.monotonic() - seen > self._limit_seconds:
                raise self._no_sign("it has stopped or hangs")
            time.sleep(_POLL_SECONDS)

    def _no_sign(self, reason: str) -> MachineError:
        return MachineError(
            f"cluster=torchrun: rank {self._rank} gets no sign of life from rank 0 at {self._where} ({reason}); it "
            f"waits up to cluster.hang_timeout_seconds={self._limit_seconds:g}; look at the output of rank 0, and "
            "whether MASTER_ADDR and MASTER_PORT can be reached from here"
        )


def _meet_at(port: int) -> None:
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="False")


def _place(rank: int) -> str:
    return f"rank/{rank}"


def _code(error: BaseException) -> int:
    """Return the exit code with which the program ends after `error`."""
    if isinstance(error, StoppedError):
        return exit_code(error.signal_number)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, UserError | InputError) else 1
