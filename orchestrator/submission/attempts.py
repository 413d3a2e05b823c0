"""Jobs are attempts at a run, NAME-attemptN: one that lives is found again, and the next follows one that has ended."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.configuration.schema import nearest, shown
from orchestrator.errors import UserError
from orchestrator.submission.job_server import ExistsAlreadyError, Job, JobServer

_MOST_TRIES = 5


@dataclass(frozen=True)
class Started:
    """The job that works for a run."""

    id: str
    is_new: bool
    """Whether it was started now; otherwise it was running already."""
    previous: Job | None
    """The attempt before it."""


def start_or_find(server: JobServer, run: str, root: str, start: Callable[[str], None]) -> Started:
    """Start the next attempt at a run, unless one is pending or running.

    Args:
        run: Its name.
        root: Its storage root.
        start: Submits a job of the given id, and raises ExistsAlreadyError if somebody else was faster.

    Raises:
        UserError: a run of this name below another root has a job that is not over.
    """
    for _ in range(_MOST_TRIES):
        attempts = attempts_at(server.jobs(), run)
        newest = attempts[-1] if attempts else None
        if newest is not None and not newest.is_over:
            _check_root(newest, root)
            return Started(newest.id, is_new=False, previous=attempts[-2] if len(attempts) > 1 else None)
        job_id = f"{id_prefix(run)}{number_of(newest.id) + 1 if newest else 1}"
        try:
            start(job_id)
        except ExistsAlreadyError:
            continue  # another submission of the same run came first: it is found in the next round
        return Started(job_id, is_new=True, previous=newest)
    raise UserError(f"{run}: others keep submitting the same run; `orchestrator jobs` shows them")


def _check_root(job: Job, root: str) -> None:
    if job.root != root:
        raise UserError(
            f"run.name={job.run}: {job.id} runs under this name with storage.root={job.root}, and this one is to have "
            f"{root or 'none'}; choose another run.name, or stop that job"
        )


def attempts_at(jobs: Sequence[Job], run: str) -> list[Job]:
    """Return the jobs of a run in the order of their numbers."""
    return sorted((job for job in jobs if job.run == run and number_of(job.id)), key=lambda job: number_of(job.id))


def id_prefix(run: str) -> str:
    """Return what a run's job ids begin with; an id is part of a file's name and of an address."""
    return f"{run.replace('/', '.')}-attempt"


def number_of(job_id: str) -> int:
    """Return the number of an attempt; 0 for another job."""
    found = re.search(r"-attempt([1-9]\d*)$", job_id)
    return int(found[1]) if found else 0


def named(server: JobServer, name: str) -> Job:
    """Return the newest job of a run, or the job of that id.

    Raises:
        UserError: there is none.
    """
    jobs = server.jobs()
    found = [job for job in jobs if job.id == name] or attempts_at(jobs, name)
    if found:
        return found[-1]
    near = nearest(name, sorted({job.run or job.id for job in jobs}))
    remedy = f"did you mean {near}?" if near else "`orchestrator jobs` lists them" if jobs else "it has none"
    raise UserError(f"name={shown(name)}: no such job on the cluster; {remedy}")
