"""The same run has one job at a time: the next attempt follows when the last one has ended, however it did."""

from collections.abc import Callable

import pytest
from stand_in_jobs import Details, StandInClient

from orchestrator.errors import UserError
from orchestrator.submission.attempts import attempts_at, id_prefix, named, number_of, start_or_find
from orchestrator.submission.job_server import ExistsAlreadyError, JobServer

ROOT = "s3://bucket/outputs"


def details(job_id: str, run: str, status: str = "FAILED", root: str = ROOT) -> Details:
    metadata = {"orchestrator_run": run, "orchestrator_root": root}
    return Details(job_id, status, end_time=None if status in ("PENDING", "RUNNING") else 2_000, metadata=metadata)


def starting(started: list[str]) -> Callable[[str], None]:
    return started.append


def test_first_submission_is_attempt_one() -> None:
    started: list[str] = []
    found = start_or_find(JobServer(StandInClient()), "base", ROOT, starting(started))
    assert (found.id, found.is_new, found.previous) == ("base-attempt1", True, None)
    assert started == ["base-attempt1"]


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_run_that_has_a_job_is_not_started_twice(status: str) -> None:
    started: list[str] = []
    server = JobServer(StandInClient(details("base-attempt1", "base"), details("base-attempt2", "base", status)))
    found = start_or_find(server, "base", ROOT, starting(started))
    assert (found.id, found.is_new) == ("base-attempt2", False)
    assert started == []


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_ended_job_is_followed_by_the_next_attempt_even_beyond_nine(status: str) -> None:
    started: list[str] = []
    before = [details(f"base-attempt{number}", "base", status) for number in (1, 9, 10)]
    found = start_or_find(JobServer(StandInClient(*before)), "base", ROOT, starting(started))
    assert started == ["base-attempt11"]
    assert found.previous is not None
    assert found.previous.id == "base-attempt10"


def test_jobs_of_other_runs_do_not_count() -> None:
    others = [
        details("base-2-attempt7", "base-2", "RUNNING"),
        details("base-attempt1-attempt3", "base-attempt1", "RUNNING"),
        Details("raysubmit_1", "RUNNING"),
    ]
    found = start_or_find(JobServer(StandInClient(*others)), "base", ROOT, lambda _: None)
    assert (found.id, found.is_new) == ("base-attempt1", True)


def test_two_submissions_at_the_same_moment_start_one_job() -> None:
    client = StandInClient()

    def slower(job_id: str) -> None:
        client._jobs.setdefault(job_id, details(job_id, "base", "PENDING"))  # what another terminal has just started
        raise ExistsAlreadyError(job_id)

    found = start_or_find(JobServer(client), "base", ROOT, slower)
    assert (found.id, found.is_new) == ("base-attempt1", False)


def test_run_of_the_same_name_elsewhere_is_not_taken_for_this_one() -> None:
    server = JobServer(StandInClient(details("base-attempt1", "base", "RUNNING", root="s3://other/outputs")))
    with pytest.raises(UserError, match=r"base-attempt1 runs under this name with storage.root=s3://other/outputs"):
        start_or_find(server, "base", ROOT, lambda _: None)


def test_stage_of_a_pipeline_has_an_id_without_a_slash() -> None:
    assert id_prefix("quickstart/base-12345678") == "quickstart.base-12345678-attempt"


@pytest.mark.parametrize("job_id", ["raysubmit_x", "base-attempt", "base-attempt0", "base-attempt1x"])
def test_foreign_ids_have_no_number(job_id: str) -> None:
    assert number_of(job_id) == 0


def test_a_name_means_the_newest_job_and_an_id_means_itself() -> None:
    server = JobServer(StandInClient(*(details(f"base-attempt{number}", "base") for number in (2, 10, 1))))
    assert [job.id for job in attempts_at(server.jobs(), "base")] == [f"base-attempt{number}" for number in (1, 2, 10)]
    assert named(server, "base").id == "base-attempt10"
    assert named(server, "base-attempt2").id == "base-attempt2"
    with pytest.raises(UserError, match=r"name=bas: no such job on the cluster; did you mean base\?"):
        named(server, "bas")


def test_id_that_is_taken_is_told_apart_from_other_refusals() -> None:
    client = StandInClient(details("base-attempt1", "base"))
    server = JobServer(client)
    with pytest.raises(KeyError):
        client.get_job_info("base-attempt2")
    assert server.job("base-attempt1").state == "failed"
