"""A stand-in for Ray's client of a job server, whose jobs tests end as they like."""

import asyncio
import json
import signal
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

INTERRUPTED = "Ctrl-C"
"""In a stand-in's log: here the user presses it."""


@dataclass
class Details:
    """A job as Ray's client returns it."""

    submission_id: str
    status: str = "RUNNING"
    start_time: int = 1_000
    end_time: int | None = None
    message: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    driver_exit_code: int | None = None
    runtime_env: dict[str, Any] = field(default_factory=dict)
    entrypoint: str = ""


class StandInClient:
    """Keeps jobs in memory. `log` is cut into parts, between which the connection is lost where None stands."""

    def __init__(self, *jobs: Details) -> None:
        self._jobs = {job.submission_id: job for job in jobs}
        self.settings: dict[str, Any] = {}
        self.names: dict[str, list[str]] = {}
        self.log: list[str | None] = []
        self.stopped: list[str] = []

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: Any, metadata: Any) -> str:
        if submission_id in self._jobs:
            raise RuntimeError(f"Request failed: ValueError: Job with submission_id {submission_id} already exists.")
        with zipfile.ZipFile(runtime_env["working_dir"]) as package:
            self.names[submission_id] = sorted(package.namelist())
            self.settings[submission_id] = json.loads(package.read("_submission/settings.json"))
        self._jobs[submission_id] = Details(
            submission_id, "PENDING", metadata=metadata, runtime_env=runtime_env, entrypoint=entrypoint
        )
        return submission_id

    def list_jobs(self) -> list[Details]:
        return [*self._jobs.values()]

    def get_job_info(self, job_id: str) -> Details:
        return self._jobs[job_id]

    def get_job_logs(self, job_id: str) -> str:
        return "".join(filter(None, self.log))

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for part in self.log:
            if part == INTERRUPTED:
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(60)
            if part is None:
                self.log.remove(None)
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield part
        self.end(job_id, "SUCCEEDED", 0)

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        self.end(job_id, "STOPPED", None)
        return True

    def end(self, job_id: str, status: str, code: int | None, message: str = "") -> None:
        """End a job, unless it has ended."""
        job = self._jobs[job_id]
        if job.end_time is None:
            job.status, job.driver_exit_code, job.message, job.end_time = status, code, message, 5_000
