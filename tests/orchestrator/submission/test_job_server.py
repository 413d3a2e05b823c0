"""What is asked of a job server: logs that survive a lost connection, and addresses that are safe."""

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from stand_in_jobs import INTERRUPTED, Details, StandInClient

from orchestrator.errors import MachineError, UserError
from orchestrator.submission import job_server
from orchestrator.submission.job_server import JobServer, Labels, connect
from orchestrator.submission.report import follow


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "parts", [["a\n", "b\nc", "\nd\n"], ["a\n", "b\n", None, "c\nd\n"], [None, "a\nb\n", None, "c\nd\n"]]
)
def test_followed_log_is_whole_and_said_once_though_the_connection_is_lost(
    parts: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_server.time, "sleep", lambda _: None)
    client = StandInClient(Details("x-attempt1"))
    client.log = parts
    assert "".join(JobServer(client).follow("x-attempt1")) == "a\nb\nc\nd\n"


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(
    capsys: pytest.CaptureFixture[str], usual_ctrl_c: None
) -> None:
    client = StandInClient(Details("x-attempt1"))
    client.log = ["a\n", INTERRUPTED, "b\n"]
    with pytest.raises(SystemExit) as stopped:
        follow(JobServer(client, "http://127.0.0.1:8265"), "x-attempt1")
    assert stopped.value.code == 130
    assert capsys.readouterr().out.splitlines() == [
        "a",
        "",
        "x-attempt1 goes on without you",
        "  follow it: orchestrator logs x-attempt1 --address http://127.0.0.1:8265 follow",
        "  stop it:   orchestrator stop x-attempt1 --address http://127.0.0.1:8265",
    ]
    assert (client.stopped, client.get_job_info("x-attempt1").status) == ([], "RUNNING")


@pytest.mark.parametrize(("num_refusals", "is_taken"), [(3, True), (99, False)])
def test_a_job_is_offered_again_to_a_cluster_that_has_just_begun(
    num_refusals: int, is_taken: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(job_server.time, "sleep", lambda _: None)
    answers = [RuntimeError("Request failed: No available agent to submit job")] * num_refusals + ["x-attempt1"]
    client = Mock(submit_job=Mock(side_effect=answers))

    def offer() -> None:
        JobServer(client).submit("x-attempt1", Labels("x", "/x", "pretrain"), "true", tmp_path / "package.zip", {})

    if is_taken:
        offer()
        assert client.submit_job.call_count == num_refusals + 1
    else:
        with pytest.raises(MachineError, match="No available agent"):
            offer()


@pytest.fixture
def usual_ctrl_c() -> Iterator[None]:
    """Handle Ctrl-C as a program does that has just begun: what ran before in this process may have left a handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("address", ["http://10.0.0.7:8265", "https://ray.example.com", "ray://10.0.0.7:10001"])
@pytest.mark.parametrize("field", ["address", "submit.address"])
def test_address_beyond_this_machine_needs_a_token_or_leave(address: str, field: str) -> None:
    with pytest.raises(UserError) as refused:
        connect(field, address, allow_insecure=False)
    said = str(refused.value)
    assert said.startswith(f"{field}={address}: ")
    assert "RAY_AUTH_MODE=token" in said
    assert ("submit.allow_insecure=true" if field == "submit.address" else "allow_insecure=true") in said


def test_address_of_the_environment_is_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.7:8265")
    with pytest.raises(UserError, match="RAY_ADDRESS=http://10.0.0.7:8265: not on this machine"):
        connect("address", None, allow_insecure=False)


def test_nothing_that_listens_is_said_within_seconds() -> None:
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(UserError, match=f"submit.address={address}: nothing listens there"):
        connect("submit.address", address, allow_insecure=False)
