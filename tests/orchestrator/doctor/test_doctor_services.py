"""`orchestrator doctor`: storage, Ray and W&B, and the command as a whole."""

import errno
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from orchestrator.cli import main
from orchestrator.configuration.groups import ClusterConfig, TrackingConfig
from orchestrator.distributed.compile_folder import own_folder
from orchestrator.doctor import ray_address, storage_root, wandb_account
from orchestrator.doctor.findings import Finding, run_checks
from orchestrator.storage import local
from orchestrator.storage.store import Storage

ROOT = Path(__file__).resolve().parents[3]
SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the keys and tokens that the machine has."""
    for name in ("WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def s3_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"doctor-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    yield f"s3://{bucket}/root"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


# storage


def found(root: str) -> Finding:
    """Check a root as the command does."""
    ((_, finding),) = run_checks({"storage": lambda: storage_root.storage_root(root)}, 60)
    return finding


def test_local_root_is_tried_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_root, "LEAST_FREE_BYTES", 0)
    finding = found(str(tmp_path / "not" / "there" / "yet"))
    assert finding.status == "ok"
    assert "free" in finding.text
    assert list(tmp_path.iterdir()) == []


def test_root_that_is_in_use_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    found(str(tmp_path))
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_root.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    finding = found(str(tmp_path))
    assert finding.status == "warning"
    assert "1.00 GB free" in finding.text


def test_store_in_memory_is_tried_and_nothing_is_left() -> None:
    assert found("memory://doctor/root").status == "ok"
    assert [path for path in fsspec.filesystem("memory").store if "doctor" in path] == []


def test_bucket_is_tried_and_nothing_is_left(s3_root: str) -> None:
    finding = found(s3_root)
    assert finding.status == "ok", finding
    assert fsspec.filesystem("s3", use_listings_cache=False).find(s3_root.removesuffix("/root")) == []


def test_missing_bucket_has_failed_and_its_key_is_not_shown(s3_root: str) -> None:
    finding = found("s3://no-such-bucket-of-doctor/root")
    assert finding.status == "failure"
    assert "no such file, folder or bucket" in finding.text
    assert SECRET not in finding.text


def test_root_with_a_password_has_failed_and_is_not_shown() -> None:
    finding = found(f"s3://user:{SECRET}@bucket/root")
    assert finding.status == "failure"
    assert "put it into the environment" in finding.text
    assert SECRET not in finding.text


def test_root_below_a_file_has_failed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = found(str(tmp_path / "file" / "outputs"))
    assert finding.status == "failure"
    assert "a file stands where a folder should be" in finding.text


@pytest.mark.parametrize(("number", "said"), [(errno.EACCES, "permission denied"), (errno.ENOSPC, "the disk is full")])
def test_root_that_cannot_be_written_has_failed_and_nothing_is_left(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local, "sync", refuse)
    finding = found(str(tmp_path / "outputs"))
    assert finding.status == "failure"
    assert said in finding.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("create_bytes", True, "does not refuse to create a file that exists"),
        ("create_bytes", False, "refuses to create a file that does not exist"),
        ("list", [], "a listing does not show"),
        ("read_bytes", b"first", "does not return its new content"),
        ("exists", True, "a removed file still exists"),
    ],
)
def test_store_that_silently_does_something_else_has_failed(
    method: str, answer: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, method, lambda *_, **__: answer)
    finding = found("memory://doctor/root")
    assert finding.status == "failure"
    assert said in finding.text


# Ray

FACTS = {
    "version": "2.60.0",
    "address": "10.0.0.1:6379",
    "num_nodes": 2,
    "resources": {"CPU": 8.0, "GPU": 2.0},
    "hosts_without_root": [],
}


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def answered(monkeypatch: pytest.MonkeyPatch, asked: str, **facts: Any) -> Finding:
    """Check a cluster that answers with `facts`."""
    monkeypatch.setattr(ray_address, "ask_cluster", lambda *_: {**FACTS, **facts})
    return ray_address.ray_cluster(ClusterConfig(name="ray", address=asked), "outputs")


@pytest.mark.parametrize("name", ["local", "ray"])
def test_without_an_address_nothing_is_queried(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "ask_cluster", lambda *_: pytest.fail("it asks"))
    finding = ray_address.ray_cluster(ClusterConfig(name=name), "outputs")
    assert finding.status == "ok"
    assert "embedded" in finding.text


def test_address_where_nothing_listens_has_failed_without_ray(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    monkeypatch.setattr(ray_address, "ask_cluster", lambda *_: pytest.fail("it asks"))
    finding = ray_address.ray_cluster(ClusterConfig(name="ray", address=f"127.0.0.1:{closed}"), "outputs")
    assert finding.status == "failure"
    assert f"nothing listens at 127.0.0.1:{closed}" in finding.text


def test_cluster_that_answers_is_reported_with_its_resources(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = answered(monkeypatch, f"127.0.0.1:{port}", address=f"127.0.0.1:{port}")
    assert finding == Finding("ok", f"127.0.0.1:{port}: Ray 2.60.0, 2 nodes, 8 CPUs, 2 GPUs")


def test_cluster_that_is_open_to_the_network_without_a_token_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "CVE-2023-48022" in answered(monkeypatch, "auto").text
    assert answered(monkeypatch, "auto").status == "warning"
    assert answered(monkeypatch, "auto", address="[::1]:6379").status == "ok"
    (tmp_path / "token").write_text(SECRET)
    assert answered(monkeypatch, "auto").status == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert answered(monkeypatch, "auto").status == "warning"


def test_hosts_that_do_not_see_the_storage_root_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = answered(monkeypatch, "auto", hosts_without_root=["b", "c", "d", "e"])
    assert finding.status == "failure"
    assert (
        finding.text
        == "storage.root=outputs: a folder of this machine, which b, c, d and 1 other of the cluster do not see"
    )
    assert "s3://bucket/outputs" in finding.remedy


def test_token_mode_needs_a_token_and_never_shows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    lacking = answered(monkeypatch, f"127.0.0.1:{port}")
    assert lacking.status == "failure"
    assert "RAY_AUTH_TOKEN" in lacking.remedy
    (tmp_path / "token").write_text(SECRET)
    assert answered(monkeypatch, f"127.0.0.1:{port}").status == "ok"
    (tmp_path / "token").unlink()
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    finding = answered(monkeypatch, f"127.0.0.1:{port}")
    assert finding.status == "ok"
    assert SECRET not in finding.text + finding.remedy


@pytest.mark.parametrize(
    ("error", "mode", "remedy"),
    [
        ("Version mismatch: The cluster was started with: Ray: 2.55.0", "disabled", "the same versions"),
        ("no Ray cluster answers there", None, "RAY_AUTH_MODE=token if it requires a token"),
        ("no Ray cluster answers there", "disabled", "ray status on its head node"),
    ],
)
def test_refusal_of_a_cluster_is_reported_with_the_remedy(
    error: str, mode: str | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    finding = answered(monkeypatch, "auto", error=error)
    assert finding.status == "failure"
    assert error in finding.text
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        (subprocess.CompletedProcess([], 0, stdout='noise\n{"num_nodes": 1}\n'), {"num_nodes": 1}),
        (subprocess.CompletedProcess([], -6, stdout="noise\n"), {"error": "it does not answer as Ray does"}),
        (subprocess.TimeoutExpired([], 40), {"error": "no answer within 50 s"}),
    ],
    ids=["answers", "aborts", "hangs"],
)
def test_cluster_is_asked_in_a_process_that_may_end_or_hang(
    answer: Any, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray_address.subprocess, "run", run)
    assert ray_address.ask_cluster("auto", "outputs") == facts


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("auto", None),
        ("head:6379", ("head", 6379)),
        ("[::1]:6379", ("::1", 6379)),
        ("ray://head", ("head", 10001)),
        ("ray://head:1234", ("head", 1234)),
    ],
)
def test_host_and_port_of_an_address(address: str, endpoint: tuple[str, int] | None) -> None:
    assert ray_address.host_and_port(address) == endpoint


# W&B


class _Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_without_a_key_wandb_is_offline_and_nothing_is_queried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_account, "_answers", lambda url: pytest.fail("it asks"))
    assert wandb_account.wandb_account(TrackingConfig()).status == "ok"
    assert "offline" in wandb_account.wandb_account(TrackingConfig()).text
    assert wandb_account.wandb_account(TrackingConfig(mode="disabled")).status == "ok"
    wanted = wandb_account.wandb_account(TrackingConfig(mode="online"))
    assert (wanted.status, "WANDB_API_KEY" in wanted.remedy) == ("warning", True)


def test_source_of_the_key_is_reported_and_never_the_key(
    api: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text(f"machine {api.removeprefix('http://')}\n  login user\n  password {SECRET}\n")
    finding = wandb_account.wandb_account(TrackingConfig())
    assert finding == Finding("ok", f"online, key from netrc, {api} answers")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    finding = wandb_account.wandb_account(TrackingConfig())
    assert finding == Finding("ok", f"online, key from WANDB_API_KEY, {api} answers")


def test_service_that_cannot_be_reached_is_a_warning(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    finding = wandb_account.wandb_account(TrackingConfig())
    assert finding.status == "warning"
    assert "does not answer" in finding.text
    assert "tracking.mode=offline" in finding.remedy
    assert SECRET not in finding.text + finding.remedy
    assert wandb_account.wandb_account(TrackingConfig(mode="offline")).status == "ok"


# the command

SCRIPT = """
import json, sys
from orchestrator.cli import main
code = main(["doctor", *sys.argv[1:]])
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_doctor_checks_everything_leaves_nothing_and_imports_neither_ray_nor_wandb_nor_deepspeed(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    folder = tmp_path / "here"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=folder, env=environment, check=True
    )
    *lines, last = done.stdout.splitlines()
    code, loaded = json.loads(last)
    assert code == 0, done.stdout + done.stderr
    names = ["processors", "GPUs", "shared", "versions", "compiler", "ninja", "compile", "extensions", "storage"]
    assert [line.split()[1] for line in lines] == [*names, "Ray", "W&B"]
    assert set(loaded) & {"ray", "wandb", "deepspeed", "pytorch_lightning"} == set()
    assert list(tmp_path.rglob("*")) == [folder]


def test_doctor_exits_1_and_names_the_checks_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    lock = own_folder() / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (tmp_path / "file").touch()
    assert main(["doctor", f"storage.root={tmp_path}/file/outputs", "tracking=disabled"]) == 1
    said = capsys.readouterr()
    assert "remedy: orchestrator doctor fix=true" in said.out
    assert said.err == "error: 2 checks failed: compile locks, storage\n"
    assert main(["doctor", "fix=true", f"storage.root={tmp_path}/outputs", "tracking=disabled"]) == 0
    assert not lock.exists()
