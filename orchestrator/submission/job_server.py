"""The only module that speaks to Ray's job server: jobs are sent, listed, followed and stopped over HTTP."""

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.cluster.ray_token import TOKEN_FILE, check_secure, host_and_port
from orchestrator.errors import MachineError, UserError
from orchestrator.storage.redaction import redact, without_secrets

State = Literal["pending", "running", "done", "failed", "stopped"]
_STATES: dict[str, State] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
_RUN, _ROOT, _COMMAND = "orchestrator_run", "orchestrator_root", "orchestrator_command"
_CONNECT_SECONDS = 5
_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""They print each upload."""
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables that Ray's client prefers to the address that it is given (ray 2.60.0)."""
_POLL_SECONDS = 1.0
_MOST_FAILURES = 10
"""Connections in a row that may be lost before anything new has come."""
_MOST_TRIES = 30
"""How often a job is offered to a cluster whose agents have not begun yet."""


@dataclass(frozen=True)
class Job:
    """A job as the job server describes it."""

    id: str
    run: str
    """The run that it works for; empty for a job that something else has submitted."""
    root: str
    """The storage root of that run."""
    command: str
    state: State
    began: float
    """In seconds since 1970."""
    ended: float | None
    message: str
    """What Ray says about its state: for a failed one the last lines of its log."""
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        return self.state not in ("pending", "running")


@dataclass(frozen=True)
class Labels:
    """What a job works for."""

    run: str
    root: str
    command: str


class ExistsAlreadyError(Exception):
    """A job of this id was submitted before."""


class JobServer:
    """The job server of one cluster.

    Args:
        client: A `JobSubmissionClient`.
        address: As the user has given it; None where Ray has found the cluster.
    """

    def __init__(self, client: Any, address: str | None = None) -> None:
        self._client, self.address = client, address

    def submit(self, job_id: str, labels: "Labels", entrypoint: str, package: Path, env: dict[str, Any]) -> None:
        """Send the package, and start a job in it; all but what is in the package is shown to whoever lists jobs.

        Args:
            env: The rest of Ray's `runtime_env`.

        Raises:
            ExistsAlreadyError: the id is taken.
        """
        job = {
            "entrypoint": entrypoint,
            "submission_id": job_id,
            "runtime_env": {**env, "working_dir": str(package)},
            "metadata": {_RUN: labels.run, _ROOT: labels.root, _COMMAND: labels.command},
        }
        with _errors(self.address, f"{job_id} was not submitted"):
            for tries_left in reversed(range(_MOST_TRIES)):
                try:
                    self._client.submit_job(**job)
                    return
                except RuntimeError as error:
                    if "already exists" in str(error):
                        raise ExistsAlreadyError(job_id) from None
                    # a cluster that has just begun: nothing was taken in yet
                    if "No available agent" not in str(error) or not tries_left:
                        raise
                time.sleep(_POLL_SECONDS)

    def jobs(self) -> list[Job]:
        """Return all submitted jobs, the oldest first."""
        with _errors(self.address, "the jobs cannot be listed"):
            found = [_job(one) for one in self._client.list_jobs() if one.submission_id]
        return sorted(found, key=lambda job: job.began)

    def job(self, job_id: str) -> Job:
        """Return the present state of a job."""
        with _errors(self.address, f"the state of {job_id} is not known"):
            return _job(self._client.get_job_info(job_id))

    def log(self, job_id: str) -> str:
        """Return all that a job has printed."""
        with _errors(self.address, f"the log of {job_id} cannot be read"):
            return self._client.get_job_logs(job_id)

    def follow(self, job_id: str) -> Iterator[str]:
        """Yield what a job prints, from its beginning until it is over; a lost connection is taken up again."""
        seen, failures = 0, 0
        while True:
            begun = 0
            try:
                for text in _tail(self._client, job_id):
                    new, begun = text[max(0, seen - begun) :], begun + len(text)
                    if new:
                        yield new
                    seen, failures = max(seen, begun), 0
            except (OSError, RuntimeError) as error:
                failures += 1
                if failures > _MOST_FAILURES:
                    raise MachineError(f"the log of {job_id} cannot be followed: {_short(error)}") from None
            if self.job(job_id).is_over:
                rest = self.log(job_id)[seen:]
                if rest:
                    yield rest
                return
            time.sleep(_POLL_SECONDS)

    def stop(self, job_id: str) -> bool:
        """Ask a job to stop; return whether it was running."""
        with _errors(self.address, f"{job_id} was not stopped"):
            return self._client.stop_job(job_id)

    def wait(self, job_id: str, waiting: Callable[[float], None] = lambda _: None) -> Job:
        """Return a job once it is over; `waiting` gets the seconds so far."""
        start = time.monotonic()
        while not (job := self.job(job_id)).is_over:
            waiting(time.monotonic() - start)
            time.sleep(_POLL_SECONDS)
        return job


def connect(field: str, address: str | None, allow_insecure: bool) -> JobServer:
    """Return the job server at an address, or that of the environment or of this machine's cluster.

    Args:
        field: The setting that holds the address; `allow_insecure` stands beside it.

    Raises:
        UserError: nothing answers there as a job server does, or it demands another token, or it would be unsafe.
    """
    found = address or next(filter(None, map(os.environ.get, _ADDRESSES)), None)
    if not address and found:
        field = "RAY_ADDRESS"
    allowing = "allow_insecure" if field == "address" else "submit.allow_insecure"
    check_secure(field, found, allow_insecure, allowing)
    what = f"{field}={redact(found)}" if found else "no address is given, and on this machine"
    endpoint = host_and_port(found) if found else None
    if found and endpoint and not _listens(*endpoint):
        raise UserError(f"{what}: nothing listens there; {_WHERE}")
    from ray.job_submission import JobSubmissionClient

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _without_addresses():
            return JobServer(JobSubmissionClient(found or "auto"), address)
    except Exception as error:
        raise UserError(_refusal(what, error)) from None


_WHERE = "a cluster's job server is at http://HOST:8265 of its head node, where its dashboard is"


def _refusal(what: str, error: Exception) -> str:
    if _is_about_a_token(error):
        return (
            f"{what}: the cluster demands a token, and got none or another one; set RAY_AUTH_MODE=token, and put the "
            f"cluster's token into RAY_AUTH_TOKEN or ~/{TOKEN_FILE}"
        )
    return f"{what}: no Ray job server answers ({_short(error)}); {_WHERE}"


def _is_about_a_token(error: Exception) -> bool:
    return type(error).__name__ == "AuthenticationError" or bool(re.search(r"\b40[13]\b", str(error)))


@contextmanager
def _without_addresses() -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ |= before


@contextmanager
def _errors(address: str | None, what: str) -> Iterator[None]:
    """Turn what Ray's client raises into one line of ours."""
    try:
        yield
    except (ExistsAlreadyError, UserError):
        raise
    except Exception as error:
        where = f" ({redact(address)})" if address else ""
        raise MachineError(f"{what}{where}: {_short(error)}") from None


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _tail(client: Any, job_id: str) -> Iterator[str]:
    """Yield the parts of a log from Ray's asynchronous iterator; Ctrl-C ends the wait for the next."""
    parts = client.tail_job_logs(job_id)

    async def next_part() -> str | None:
        return await anext(parts, None)

    with asyncio.Runner() as runner:
        while (text := runner.run(next_part())) is not None:
            yield text


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id,
        run=metadata.get(_RUN, ""),
        root=metadata.get(_ROOT, ""),
        command=metadata.get(_COMMAND, ""),
        state=_STATES.get(str(details.status), "running"),
        began=(details.start_time or 0) / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        message=redact(without_secrets(details.message or "")),
        exit_code=details.driver_exit_code,
    )


def _short(error: Exception) -> str:
    """Return the last line of an error of Ray's, which is often a whole traceback of the server's."""
    lines = redact(without_secrets(str(error))).strip().splitlines()
    return lines[-1][:300] if lines else type(error).__name__
