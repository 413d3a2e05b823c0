"""Two drivers on one run, dead drivers, and drivers that lost their lease."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from living_driver import living_driver
from store_requests import store_requests
from waiting import eventually

from orchestrator.errors import LeaseError, LeaseLostError
from orchestrator.runs import lease as leases
from orchestrator.runs.lease import lease
from orchestrator.runs.processes import ProcessId
from orchestrator.storage.store import Storage

RUN = "tiny"


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def held_by(storage: Storage, number: int = 1, **changes: object) -> None:
    """Write a lease as another driver writes it."""
    storage.write_bytes(f"runs/{RUN}/lease/{number:010d}.json", json.dumps(living_driver(**changes)).encode())


def test_second_driver_is_refused_with_process_host_and_time(storage: Storage) -> None:
    refused = pytest.raises(LeaseError, match=rf"process \d+ on {socket.gethostname()}, since 20")
    with lease(storage, RUN), refused, lease(storage, RUN):
        pass


def test_holder_is_returned_while_it_lives(storage: Storage) -> None:
    assert leases.holder(storage, RUN) is None
    with lease(storage, RUN):
        found = leases.holder(storage, RUN)
        assert found is not None
        assert (found["host"], found["pid"]) == (socket.gethostname(), psutil.Process().pid)
    assert leases.holder(storage, RUN) is None


def test_returned_lease_is_free(storage: Storage) -> None:
    for _ in range(3):
        with lease(storage, RUN):
            pass
    assert len(storage.list(f"runs/{RUN}/lease")) <= 2


def test_lease_of_a_dead_process_on_this_host_is_free_at_once(storage: Storage) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    held_by(storage, pid=dead.pid)
    with lease(storage, RUN):
        pass


def test_pid_of_a_dead_process_that_another_process_has_now_does_not_count(storage: Storage) -> None:
    held_by(storage, started=ProcessId.of(os.getpid()).started - 1)
    with lease(storage, RUN):
        pass


LONG_AGO = {"renewed": time.time() - 3600}


@pytest.mark.parametrize(
    "elsewhere",
    [{"host": "elsewhere"}, {"boot": "another"}, {"namespace": "pid:[1]"}],
    ids=lambda where: next(iter(where)),
)
def test_lease_from_elsewhere_counts_until_it_expires(storage: Storage, elsewhere: dict[str, str]) -> None:
    held_by(storage, pid=2**22, **elsewhere)
    with pytest.raises(LeaseError, match=f"process {2**22} on "), lease(storage, RUN):
        pass
    held_by(storage, **elsewhere, **LONG_AGO)
    with lease(storage, RUN):
        pass


def test_lease_of_an_earlier_version_counts_until_it_expires(storage: Storage) -> None:
    held_by(storage, **LONG_AGO)
    old = {"host": socket.gethostname(), "pid": 1, "process_started": 5.0, "taken": time.time(), "renewed": time.time()}
    storage.write_bytes(f"runs/{RUN}/lease/0000000001.json", json.dumps(old).encode())
    with pytest.raises(LeaseError), lease(storage, RUN):
        pass


@pytest.mark.parametrize("seconds", [-3600, -1, 1, 3600])
def test_living_driver_holds_its_lease_when_the_clock_is_stepped(
    storage: Storage, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lease(storage, RUN):
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + seconds)
        monkeypatch.setattr(psutil, "boot_time", lambda: 1.0 + seconds)
        with pytest.raises(LeaseError), lease(storage, RUN):
            pass


def test_stopped_driver_holds_its_lease_whatever_its_age(storage: Storage) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as driver:
        os.kill(driver.pid, signal.SIGSTOP)
        held_by(storage, **{**asdict(ProcessId.of(driver.pid)), **LONG_AGO})
        with pytest.raises(LeaseError, match=f"process {driver.pid}"), lease(storage, RUN):
            pass
        driver.kill()
    with lease(storage, RUN):
        pass


def test_removed_lease_is_created_anew_by_the_driver_that_lives(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
    with lease(storage, RUN):
        storage.remove(f"runs/{RUN}/lease")
        assert eventually(lambda: leases.holder(storage, RUN))
        with pytest.raises(LeaseError), lease(storage, RUN):
            pass


def test_driver_whose_lease_was_removed_ends_if_another_one_has_begun(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[bool] = []
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.3)
    with lease(storage, RUN, on_loss=lambda: lost.append(True)) as first:
        storage.remove(f"runs/{RUN}/lease")
        with lease(storage, RUN) as second:
            assert (first.number, first.token != second.token) == (second.number, True)
            assert eventually(lambda: lost)
            with pytest.raises(LeaseLostError):
                first.check(storage)
            second.check(storage)


def test_creation_whose_answer_was_lost_does_not_refuse_its_own_driver(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Storage.create_bytes
    monkeypatch.setattr(Storage, "create_bytes", lambda *values: create(*values) and False)
    with lease(storage, RUN):
        pass


def test_store_without_exclusive_creation_is_found_out(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "_SETTLE_SECONDS", 0.01)
    beaten = False

    def overwrite(self: Storage, name: str, data: bytes) -> bool:
        self.write_bytes(name, data)
        if beaten:
            held_by(storage, host="faster")
        return True

    monkeypatch.setattr(Storage, "create_bytes", overwrite)
    with lease(storage, RUN):
        assert "cannot create a file exclusively" in caplog.text
    storage.remove(f"runs/{RUN}/lease")
    beaten = True
    with pytest.raises(LeaseError, match="on faster"), lease(storage, RUN):
        pass


def test_only_one_of_two_takes_over(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    held_by(storage, host="elsewhere", renewed=0.0)
    create = Storage.create_bytes

    def beaten(self: Storage, name: str, data: bytes) -> bool:
        held_by(storage, number=2, host="faster")
        return create(self, name, data)

    monkeypatch.setattr(Storage, "create_bytes", beaten)
    with pytest.raises(LeaseError, match="on faster"), lease(storage, RUN):
        pass


def test_living_driver_renews(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
    with lease(storage, RUN):
        first = storage.read_bytes(f"runs/{RUN}/lease/0000000001.json")
        assert eventually(lambda: storage.read_bytes(f"runs/{RUN}/lease/0000000001.json") != first)


def test_renewal_and_check_of_a_lease_list_nothing(storage: Storage) -> None:
    attempt = leases._take(storage, RUN, "runs")
    with store_requests() as requests:
        leases._renew(storage, attempt, time.time())
        assert requests == ["read_bytes", "read_bytes", "write_bytes"]
        requests.clear()
        assert attempt.check(storage)
        assert requests == ["read_bytes", "read_bytes"]


@pytest.mark.parametrize("left", [(2,), (1, 2), (3,), (1, 2, 3)], ids=str)
def test_attempt_is_lost_whichever_leases_its_followers_have_left(storage: Storage, left: tuple[int, ...]) -> None:
    attempt = leases._take(storage, RUN, "runs")
    own = storage.read_bytes(attempt.lease_name)
    storage.remove(attempt.lease_name)
    for number in left:
        held_by(storage, number, token="theirs")
    if 1 in left:
        storage.write_bytes(attempt.lease_name, own)
    with pytest.raises(LeaseLostError):
        attempt.check(storage)


def test_driver_that_lost_its_lease_is_notified(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
    lost: list[bool] = []
    with lease(storage, RUN, on_loss=lambda: lost.append(True)):
        held_by(storage, number=2, host="elsewhere")
        assert eventually(lambda: lost)


@pytest.mark.slow
@pytest.mark.parametrize("hold", ["lease(storage, 'tiny')", "ended_with_lease(storage, Attempt('tiny', 1, ''))"])
def test_process_that_lost_its_lease_ends_with_its_children(tmp_path: Path, hold: str) -> None:
    script = f"""
import subprocess, sys, time
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.runs import lease as leases
from orchestrator.runs.lease import ended_with_lease, lease
from orchestrator.storage.store import Storage
leases.RENEWAL_SECONDS = 0.05
storage = Storage({str(tmp_path)!r})
with {hold}:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    print(child.pid, flush=True)
    time.sleep(100)
"""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    held_by(Storage(str(tmp_path)), number=2, host="elsewhere")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "another driver has taken over this run" in said
    assert not psutil.wait_procs([child], timeout=10)[1]


@pytest.mark.parametrize("damage", [b"", b'{"host": ', b"null", b"{}"])
def test_damaged_lease_holds_until_it_expires(storage: Storage, damage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"runs/{RUN}/lease/0000000001.json", damage)
    with pytest.raises(LeaseError, match=r"\d\.json is damaged, and counts for 60 s"), lease(storage, RUN):
        pass
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", -1.0)
    with lease(storage, RUN):
        assert storage.list(f"runs/{RUN}/lease") == ["0000000002.json"]


def test_restart_waits_for_the_lease_of_the_driver_before_it(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    waited, said = list[float](), list[str]()
    with ExitStack() as held:
        held.enter_context(lease(storage, RUN))

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                held.close()

        monkeypatch.setattr(leases.time, "sleep", sleep)
        with lease(storage, RUN, wait_seconds=60, on_wait=said.append) as attempt:
            assert attempt.number == 2
    assert len(waited) == 3
    (line,) = said
    assert line.startswith(f"another driver runs this run: process {os.getpid()} on ")
    assert line.endswith("this one waits up to 60 s for it to end (if it was killed, its lease ends within 60 s)")


def test_waiting_for_a_lease_has_an_end(storage: Storage) -> None:
    with lease(storage, RUN), pytest.raises(LeaseError), lease(storage, RUN, wait_seconds=0.01):
        pass
