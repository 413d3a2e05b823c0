"""What is said about a job that has ended, and the exit code of who follows it."""

import pytest
from stand_in_jobs import Details, StandInClient

from orchestrator.submission.job_server import Job, JobServer
from orchestrator.submission.outcome import exit_code, why

FAILED = (
    "Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 chars):\n"
    "step    3/20  loss 5.1\n{line}\n"
)


def ended(status: str, code: int | None, message: str = "") -> Job:
    client = StandInClient(Details("x-attempt1", status, end_time=2_000, message=message, driver_exit_code=code))
    return JobServer(client).job("x-attempt1")


@pytest.mark.parametrize(
    ("status", "code", "message", "expected", "reason"),
    [
        ("SUCCEEDED", 0, "Job finished successfully.", 0, ""),
        ("STOPPED", None, "Job was intentionally stopped.", 143, "by request"),
        ("FAILED", 2, FAILED.format(code=2, line="error: model.nope=1: unknown"), 2, "model.nope=1: unknown"),
        ("FAILED", 1, FAILED.format(code=1, line="ValueError: no"), 1, "ValueError: no"),
        ("FAILED", -9, FAILED.format(code=-9, line="step 4"), 137, "its driver was ended by SIGKILL"),
        ("FAILED", 137, FAILED.format(code=137, line="step 4"), 137, "its driver was ended by SIGKILL"),
        ("FAILED", None, "runtime_env setup failed: no such package", 1, "runtime_env setup failed: no such package"),
        (
            "FAILED",
            None,
            "Job supervisor actor died: the node is lost",
            1,
            "Job supervisor actor died: the node is lost",
        ),
    ],
)
def test_exit_code_and_reason(status: str, code: int | None, message: str, expected: int, reason: str) -> None:
    job = ended(status, code, message)
    assert job.is_over
    assert (exit_code(job), why(job)) == (expected, reason)


def test_reason_holds_no_credentials() -> None:
    line = "error: cannot read https://user:hunter22@host/x?X-Amz-Signature=abcdef"
    assert "hunter22" not in why(ended("FAILED", 1, FAILED.format(code=1, line=line)))
    assert "abcdef" not in why(ended("FAILED", 1, FAILED.format(code=1, line=line)))
