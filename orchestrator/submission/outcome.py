"""How a job ended: its exit code as the command would have given it here, and why, in one line."""

import re
import signal

from orchestrator.submission.job_server import Job

_LONGEST = 400


def exit_code(job: Job) -> int:
    """Return the exit code of a job that is over."""
    if job.state == "stopped":
        return 128 + signal.SIGTERM
    if job.exit_code is None:  # it never started
        return 0 if job.state == "done" else 1
    return 128 - job.exit_code if job.exit_code < 0 else job.exit_code


def why(job: Job) -> str:
    """Return why a job ended, or what it waits for; empty where there is nothing to say."""
    if job.state in ("done", "running"):
        return ""
    if job.state == "pending":
        return "waits for its environment on the head node"
    if job.state == "stopped":
        return "by request"
    signals = (-(job.exit_code or 0), (job.exit_code or 0) - 128)
    killed = next((number for number in signals if number in (signal.SIGKILL, signal.SIGTERM)), None)
    if killed:
        return f"its driver was ended by {signal.Signals(killed).name}"
    return _error_line(job.message)[:_LONGEST]


def _error_line(message: str) -> str:
    """Return the command's own error of the last lines of its log, which Ray gives as the reason."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    own = [line for line in lines if re.match(r"(error|\w+Error|\w+Exception): ", line)]
    return (own or lines or ["unknown"])[-1].removeprefix("error: ")
