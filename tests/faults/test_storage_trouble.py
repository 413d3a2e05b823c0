"""A run whose store is an object store that throttles, fails and is slow: S3 by a server of our own."""

import secrets
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from broken_run import BrokenRun
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from tiny_run import arguments, write_text
from waiting import eventually

from orchestrator.checkpoints.names import committed_steps
from orchestrator.storage.store import Storage


class Trouble(ThreadingHTTPServer):
    """Stands between a run and its store: passes requests on, refuses every so many of them, and takes its time."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.count, self.refused = target, 0, 0
        self.refuse_every = 0
        self.status = 503
        self.delay_seconds = 0.0
        self.refused_path = ""
        """Each write to a path that holds this is refused with `status`."""
        self.held_path = ""
        """Each write to a path that holds this is passed on when `release` is set; `holds` tells that there is one."""
        self.holds, self.release = threading.Event(), threading.Event()
        self.root = ""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Trouble
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self._body()
        trouble = self.server
        trouble.count += 1
        time.sleep(trouble.delay_seconds)
        if self._is_refused():
            trouble.refused += 1
            self._answer(trouble.status, {}, b"")
            return
        if self._writes_to(trouble.held_path):
            trouble.holds.set()
            trouble.release.wait(60)
        dropped = ("host", "transfer-encoding", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection = HTTPConnection(trouble.target.removeprefix("http://"))
        try:
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            self._answer(reply.status, dict(reply.headers), reply.read())
        finally:
            connection.close()

    def _is_refused(self) -> bool:
        trouble = self.server
        its_turn = trouble.refuse_every and trouble.count % trouble.refuse_every == 0
        return bool(its_turn) or self._writes_to(trouble.refused_path)

    def _writes_to(self, part_of_path: str) -> bool:
        return bool(part_of_path) and part_of_path in self.path and self.command in ("PUT", "POST")

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep silent."""


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Trouble]:
    """An S3 server with a bucket, and what stands before it; a run finds it by the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    moto = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    moto.start()
    between = Trouble(f"http://127.0.0.1:{port}")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": between.url,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    # the one of an earlier test would go to the server that it had then
    S3FileSystem.clear_instance_cache()
    # moto keeps what its servers hold for the life of the process
    between.root = f"s3://runs-{secrets.token_hex(4)}/outputs"
    boto3.client("s3", endpoint_url=between.target).create_bucket(Bucket=between.root.split("/")[2])
    yield between
    between.shutdown()
    between.server_close()
    moto.stop()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def on_s3(text: Path, trouble: Trouble, *others: str) -> list[str]:
    settings = ["run.name=tiny", "tracking.mode=disabled", f"storage.root={trouble.root}"]
    return arguments(text, Path("unused"), *settings, *others)


def weights(storage: Storage) -> bytes:
    return storage.read_bytes("runs/tiny/model/model.safetensors")


@pytest.fixture(scope="module")
def expected(text: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the same run on a local disk."""
    root = tmp_path_factory.mktemp("local")
    with BrokenRun(arguments(text, root, "run.name=tiny", "tracking.mode=disabled")) as run:
        assert run.end() == 0, run.said
    return weights(Storage(str(root)))


def test_a_store_that_throttles_fails_and_is_slow_gives_the_same_run(
    text: Path, trouble: Trouble, expected: bytes
) -> None:
    trouble.refuse_every, trouble.delay_seconds = 7, 0.005
    with BrokenRun(on_s3(text, trouble)) as run:
        assert run.end() == 0, run.said
    assert trouble.refused > 3
    trouble.refuse_every = 0
    assert weights(Storage(trouble.root)) == expected


def committed(trouble: Trouble) -> list[int]:
    return committed_steps(Storage(trouble.root), "tiny")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_run_killed_in_mid_upload_goes_on_from_the_checkpoint_before(
    text: Path, trouble: Trouble, expected: bytes, workers: int
) -> None:
    same = on_s3(text, trouble)
    where = ["strategy=ddp", f"cluster.num_workers={workers}"]
    trouble.held_path = "step_00000020/rank_00000"
    with BrokenRun([*same, *where]) as run:
        assert trouble.holds.wait(120), run.said
        run.process.kill()
        run.process.wait()
    trouble.held_path = ""
    trouble.release.set()
    assert committed(trouble) == [10]
    with BrokenRun(same) as run:
        assert run.end() == 0, run.said
    assert "continues from the checkpoint after step 10" in run.said
    if workers == 1:
        assert weights(Storage(trouble.root)) == expected


def test_denied_writes_fail_the_run_when_too_many_saves_have_failed_and_harm_no_checkpoint(
    text: Path, trouble: Trouble, expected: bytes
) -> None:
    often = ["checkpoint.interval_steps=5", "checkpoint.max_failed_saves=1"]
    trouble.status, trouble.refused_path = 403, "step_00000010/rank_00000"
    with BrokenRun(on_s3(text, trouble, *often, "training.log_interval_steps=1")) as run:
        run.wait_for(r"checkpoint not saved: worker 0: cannot write .*permission denied")
        # told after step 15, whose save then succeeds: one failure is no end
        assert run.end() == 0, run.said
    assert committed(trouble) == [15, 20]
    assert weights(Storage(trouble.root)) == expected


def test_store_that_takes_no_checkpoint_fails_the_run_with_its_reason(text: Path, trouble: Trouble) -> None:
    often = ["checkpoint.interval_steps=5", "checkpoint.max_failed_saves=1", "training.num_steps=300", "objective=clm"]
    with BrokenRun(on_s3(text, trouble, *often)) as run:
        run.wait_for_step(7)
        assert eventually(lambda: committed(trouble), seconds=60)
        trouble.status, trouble.refused_path = 403, "/rank_0000"
        assert run.end() == 1
    assert run.lines[-1].startswith("error: checkpoint not saved: worker 0: cannot write s3://")
    kept = committed(trouble)
    trouble.refused_path = ""
    with BrokenRun(on_s3(text, trouble, *often)) as run:
        run.wait_for(f"continues from the checkpoint after step {kept[-1]}$")


def test_full_disk_fails_the_run_and_harms_no_checkpoint(text: Path, tmp_path: Path) -> None:
    root = tmp_path / "local"
    settings = ["run.name=tiny", "tracking.mode=disabled", "training.num_steps=100000", "objective=clm"]
    same = arguments(text, root, *settings, "checkpoint.mode=sync", "checkpoint.max_failed_saves=1")
    with BrokenRun(same) as run:
        run.wait_for_step(12)
        run.process.terminate()
        assert run.end() == 143, run.said
    kept = committed_steps(Storage(str(root)), "tiny")
    with BrokenRun(same, largest_file_bytes=2**18) as run:
        assert run.end() == 1
    assert "checkpoint not saved: worker 0: cannot write" in run.said
    assert run.lines[-1].endswith("the disk is full; free space there or choose another storage.root")
    assert "Traceback" not in run.said
    assert committed_steps(Storage(str(root)), "tiny") == kept
    # what did not fit was taken away again
    assert not [path for path in root.glob("runs/tiny/checkpoints/*/rank_*") if path.stat().st_size == 2**18]
