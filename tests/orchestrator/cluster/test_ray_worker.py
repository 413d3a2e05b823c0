"""Notices and events between a driver and its workers on Ray, without a cluster."""

import asyncio
import signal
import subprocess
import sys

import pytest

from orchestrator.distributed.runtime import MOVE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_notice_reaches_workers_that_are_started_after_it() -> None:
    from orchestrator.cluster.ray_mailbox import Mailbox

    async def conversation() -> list[int]:
        mailbox = Mailbox()
        early = asyncio.ensure_future(mailbox.stop_asked())
        await asyncio.sleep(0)
        assert not early.done()
        await mailbox.stop(signal.SIGTERM)
        return [await early, await mailbox.stop_asked()]

    assert asyncio.run(conversation()) == [signal.SIGTERM, signal.SIGTERM]


def test_events_arrive_in_their_order() -> None:
    from orchestrator.cluster.ray_mailbox import Mailbox

    async def conversation() -> list[str]:
        mailbox = Mailbox()
        await mailbox.put({"kind": "fault"}, {"kind": "restart"})
        await mailbox.put({"kind": "begin"})
        return [event["kind"] for event in [await mailbox.get() for _ in range(3)] if event]

    assert asyncio.run(conversation()) == ["fault", "restart", "begin"]


def test_notice_of_termination_is_stronger_than_a_move() -> None:
    from orchestrator.cluster.ray_worker import ReceivedNotice

    notice = ReceivedNotice()
    notice.receive(MOVE)
    assert notice.number == MOVE
    notice.receive(signal.SIGHUP)
    notice.receive(MOVE)
    assert notice.number == signal.SIGHUP
    notice.receive(signal.SIGINT)
    notice.receive(signal.SIGHUP)
    assert notice.number == signal.SIGINT


@pytest.mark.slow
def test_worker_ends_with_the_driver_on_its_host_and_outlives_others() -> None:
    script = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from orchestrator.cluster.ray_worker import end_with\n"
        "from orchestrator.runs.processes import ProcessId\n"
        "driver = ProcessId.of(int(sys.argv[1]))\n"
        "for other in ({'host': 'elsewhere'}, {'namespace': 'another'}, {'started': driver.started - 1}):\n"
        "    end_with(replace(driver, **other))\n"
        "print('watches', flush=True)\n"
        "end_with(driver)\n"
    )
    driver = subprocess.Popen(["sleep", "100"])
    command = [sys.executable, "-W", "ignore", "-c", script, str(driver.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        assert worker.stdout.readline() == "watches\n"
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(timeout=1)
        driver.kill()
        driver.wait()
        assert worker.wait(timeout=60) == 1


def test_worker_whose_torch_does_not_see_its_gpu_never_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cluster import ray_worker
    from orchestrator.errors import HardwareError

    monkeypatch.setattr(ray_worker.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ray_worker.ray, "get_gpu_ids", list)
    ray_worker.check_gpu()
    monkeypatch.setattr(ray_worker.ray, "get_gpu_ids", lambda: [0])
    with pytest.raises(HardwareError, match="torch sees none there"):
        ray_worker.check_gpu()
