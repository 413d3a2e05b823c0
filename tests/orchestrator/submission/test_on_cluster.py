"""Commands on a real cluster: sent, followed, stopped with a checkpoint, killed and continued, without a secret."""

import json
import os
import re
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
from job_server import job_server
from tiny_run import TINY, write_text

from orchestrator.cli import main
from orchestrator.submission.attempts import named
from orchestrator.submission.job_server import JobServer, Labels, connect
from orchestrator.submission.package import ENTRY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
WAIT_SECONDS = 240
SECRETS = {
    "WANDB_API_KEY": "canary-wandb-0123456789abcdef",
    "AWS_ACCESS_KEY_ID": "AKIACANARY0123456789",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-0123456789abcdef",
    "HF_TOKEN": "canary-hf-0123456789abcdef",
}
SIGNED = "https://bucket.example.com/x.txt?X-Amz-Signature=canary-signature-0123456789"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with job_server(tmp_path_factory.mktemp("home")) as address:
        yield address


@pytest.fixture(scope="module")
def server(address: str) -> JobServer:
    return connect("address", address, allow_insecure=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(autouse=True)
def _project(empty_folder: Path) -> None:
    """The cluster's Python has the package, so the folder that is sent holds next to nothing."""
    (empty_folder / "notes.txt").write_text("sent")
    (empty_folder / ".env").write_text(f"WANDB_API_KEY={SECRETS['WANDB_API_KEY']}")


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_followed_command_gives_its_log_and_its_exit_code(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    at = ["submit", "--wait", "--address", address]
    assert main([*at, "runs", f"storage.root={tmp_path}/root"]) == 0
    said = capfd.readouterr().out
    assert f"no runs in {tmp_path}/root/runs" in said
    assert "not sent, since they may hold secrets: .env" in said
    assert main([*at, "export", "run.name=nope", f"storage.root={tmp_path}/root"]) == 2
    said = capfd.readouterr().out
    assert re.search(r"export-\w{8}-attempt1: failed after .* \(run.name=nope: no such run in ", said)


def test_stopped_or_killed_job_is_continued_by_the_next_submission(
    address: str, server: JobServer, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    settings = [*TINY, f"data.path={text}", f"storage.root={root}", "training.num_steps=100000", "run.name=tiny"]
    once = ["submit", "--address", address, "pretrain", *settings, "cluster=local", "checkpoint.interval_steps=100000"]

    def step() -> int:
        return max(map(int, re.findall(r"step +(\d+)/", server.log(named(server, "tiny").id))), default=0)

    def saved() -> list[int]:
        return sorted(int(file.parent.name[5:]) for file in root.glob("runs/tiny/checkpoints/*/COMMITTED"))

    assert main(once) == 0
    until(lambda: step() > 2)
    assert main(once) == 0
    assert "tiny-attempt1 runs already, so nothing was started" in capfd.readouterr().out
    assert main(["stop", "tiny", "--address", address]) == 0
    assert "tiny-attempt1: stopped" in capfd.readouterr().out
    (stopped_at,) = saved()
    assert stopped_at > 2

    assert main([*once, "checkpoint.interval_steps=10"]) == 0
    assert "submitted tiny-attempt2; tiny-attempt1 was stopped" in capfd.readouterr().out
    until(lambda: max(saved()) > stopped_at)
    assert min(map(int, re.findall(r"step +(\d+)/", server.log("tiny-attempt2")))) > stopped_at
    drivers = [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] and ENTRY in one.info["cmdline"]]
    for driver in drivers:
        os.kill(driver.pid, signal.SIGKILL)
    until(lambda: named(server, "tiny").is_over)
    killed_at = max(saved())
    assert main(["jobs", "--address", address]) == 0
    shown = " ".join(capfd.readouterr().out.split())  # a narrow table wraps the reason
    assert re.search(r"tiny-attempt2 tiny failed \d+ \w+ its driver was ended by SIGKILL", shown)

    assert main(once) == 0
    until(lambda: step() > killed_at)
    assert named(server, "tiny").id == "tiny-attempt3"
    assert min(map(int, re.findall(r"step +(\d+)/", server.log("tiny-attempt3")))) > killed_at
    assert main(["stop", "tiny", "--address", address]) == 0


@pytest.mark.long  # that a stopped job saves is shown above
def test_stopped_job_has_the_time_that_its_checkpoint_may_take(server: JobServer, tmp_path: Path) -> None:
    saving = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    time.sleep(5)\n    pathlib.Path(sys.argv[1]).touch()\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, save)\nprint('ready', flush=True)\ntime.sleep(100)\n"
    )
    package = tmp_path / "package.zip"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("slow.py", saving)
    env = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}}
    server.submit("slow-attempt1", Labels("slow", "", "x"), f"exec python slow.py {tmp_path}/saved", package, env)
    until(lambda: "ready" in server.log("slow-attempt1"))
    server.stop("slow-attempt1")
    assert server.wait("slow-attempt1").state == "stopped"
    assert (tmp_path / "saved").exists()


def test_no_secret_is_where_the_job_server_shows_it_and_nothing_is_shown_without_the_token(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    sent = ["submit", "--wait", "--address", address, "runs", f"storage.root={tmp_path}/secret-free"]
    assert main(sent) == 0
    for secret in (f"data.path={SIGNED}", f"run.name={SECRETS['HF_TOKEN']}"):
        assert main(["submit", "--address", address, "pretrain", "data=files", f"storage.root={tmp_path}", secret]) == 2
    said = "".join(capfd.readouterr())
    monkeypatch.undo()
    token = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    shown = requests.get(f"{address}/api/jobs/", headers=token, timeout=30)
    assert f"{tmp_path}/secret-free" in shown.text
    for value in (*SECRETS.values(), "canary-signature-0123456789"):
        assert value not in shown.text
    assert "canary-signature-0123456789" not in said
    (job,) = [one for one in shown.json() if f"{tmp_path}/secret-free" in json.dumps(one["metadata"])]
    assert set(job["runtime_env"]) <= {"working_dir", "env_vars", "config", "_ray_commit"}
    assert set(job["runtime_env"]["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S"}
    for headers in ({}, {"Authorization": "Bearer " + "0" * 64}):
        refused = requests.get(f"{address}/api/jobs/", headers=headers, timeout=30)
        assert refused.status_code in (401, 403)
    assert requests.post(f"{address}/api/jobs/", json={"entrypoint": "id"}, timeout=30).status_code == 401
