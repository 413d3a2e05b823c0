"""What is shown about jobs: a table, where one is, its log as it grows, and how it ended."""

import shlex
import time
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from orchestrator.display.terminal import new_console, print_line, write_text
from orchestrator.display.units import age, duration
from orchestrator.storage.redaction import redact
from orchestrator.submission.attempts import Started
from orchestrator.submission.job_server import Job, JobServer
from orchestrator.submission.outcome import exit_code, why

_STYLES = {"pending": "yellow", "running": "bold green", "done": "green", "failed": "red", "stopped": "yellow"}


def show_jobs(jobs: Sequence[Job]) -> None:
    """Show one line per job: id, run, state, since when, and why it ended."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("job", overflow="fold")
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("since", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for job in jobs:
        since = age(time.time() - (job.ended or job.began))
        table.add_row(job.id, job.run or "-", Text(job.state, style=_STYLES[job.state]), since, Text(why(job)))
    new_console().print(table)


def show_started(started: Started, run: str, address: str | None) -> None:
    """Say which job works for a run, whether it is new, and how to follow and stop it."""
    if started.is_new:
        print_line(f"submitted {started.id}" + (f"; {_before(started.previous)}" if started.previous else ""))
    else:
        print_line(f"{started.id} runs already, so nothing was started")
    print_line(f"  follow it: {command_line('logs', run, address)} follow")
    print_line(f"  stop it:   {command_line('stop', run, address)}")


def _before(previous: Job) -> str:
    verb = {"done": "is done", "failed": "failed", "stopped": "was stopped"}[previous.state]
    reason = f" ({why(previous)})" if previous.state == "failed" else ""
    return f"{previous.id} {verb}{reason}, and this one goes on from there"


def command_line(command: str, run: str, address: str | None) -> str:
    """Return what to type about a run's job."""
    where = f" --address {shlex.quote(redact(address))}" if address else ""
    return f"orchestrator {command} {shlex.quote(run)}{where}"


def follow(server: JobServer, job_id: str) -> None:
    """Print what a job prints until it is over.

    Raises:
        SystemExit: with the job's exit code if that is not 0, or with that of an interruption, which leaves the job.
    """
    console = new_console()
    try:
        for text in server.follow(job_id):
            write_text(console, text)
        job = server.job(job_id)
    except (KeyboardInterrupt, SystemExit) as interruption:
        print_line(f"\n{job_id} goes on without you")
        print_line(f"  follow it: {command_line('logs', job_id, server.address)} follow")
        print_line(f"  stop it:   {command_line('stop', job_id, server.address)}")
        raise SystemExit(130 if isinstance(interruption, KeyboardInterrupt) else interruption.code) from None
    show_end(job)
    if code := exit_code(job):
        raise SystemExit(code)


def show_end(job: Job) -> None:
    """Say how a job ended."""
    seconds = duration(max(0.0, job.ended - job.began)) if job.ended else ""
    reason = why(job)
    print_line(f"{job.id}: {job.state}{f' after {seconds}' if seconds else ''}{f' ({reason})' if reason else ''}")
