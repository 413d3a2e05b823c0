"""Two drivers on one run, dead drivers, and drivers that lost their lease."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from living_driver import living_driver
from waiting import eventually

from orchestrator.errors import LeaseError
from orchestrator.runs import lease as leases
from orchestrator.runs.lease import lease
from orchestrator.storage.store import Storage

RUN = "runs/tiny"


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def held_by(storage: Storage, number: int = 1, **changes: object) -> None:
    """Write a lease as another driver writes it."""
    storage.write_bytes(f"{RUN}/lease/{number:010d}.json", json.dumps(living_driver(**changes)).encode())


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
    assert len(storage.list(f"{RUN}/lease")) <= 2


def test_lease_of_a_dead_process_on_this_host_is_free_at_once(storage: Storage) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    held_by(storage, pid=dead.pid)
    with lease(storage, RUN):
        pass


def test_pid_of_a_dead_process_that_another_process_has_now_does_not_count(storage: Storage) -> None:
    held_by(storage, process_started=1.0)
    with lease(storage, RUN):
        pass


def test_lease_of_another_host_counts_until_it_expires(storage: Storage) -> None:
    held_by(storage, host="elsewhere", pid=1)
    with pytest.raises(LeaseError, match="process 1 on elsewhere"), lease(storage, RUN):
        pass
    held_by(storage, host="elsewhere", pid=1, renewed=time.time() - leases.EXPIRY_SECONDS - 1)
    with lease(storage, RUN):
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
        first = storage.read_bytes(f"{RUN}/lease/0000000001.json")
        assert eventually(lambda: storage.read_bytes(f"{RUN}/lease/0000000001.json") != first)


def test_driver_that_lost_its_lease_is_notified(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
    lost: list[bool] = []
    with lease(storage, RUN, on_loss=lambda: lost.append(True)):
        held_by(storage, number=2, host="elsewhere")
        assert eventually(lambda: lost)


def test_driver_that_lost_its_lease_ends_with_its_workers(tmp_path: Path) -> None:
    script = f"""
import subprocess, sys, time
from orchestrator.runs import lease as leases
from orchestrator.storage.store import Storage
leases.RENEWAL_SECONDS = 0.05
with leases.lease(Storage({str(tmp_path)!r}), {RUN!r}):
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    print(worker.pid, flush=True)
    time.sleep(100)
"""
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = psutil.Process(int(driver.stdout.readline()))
    held_by(Storage(str(tmp_path)), number=2, host="elsewhere")
    _, said = driver.communicate(timeout=30)
    assert driver.returncode == 1
    assert "another driver has taken over this run" in said
    assert not psutil.wait_procs([worker], timeout=10)[1]


@pytest.mark.parametrize("damage", [b"", b'{"host": ', b"null", b"{}"])
def test_damaged_lease_holds_until_it_expires(storage: Storage, damage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{RUN}/lease/0000000001.json", damage)
    with pytest.raises(LeaseError, match="its lease is damaged"), lease(storage, RUN):
        pass
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", -1.0)
    with lease(storage, RUN):
        assert storage.list(f"{RUN}/lease") == ["0000000002.json"]
