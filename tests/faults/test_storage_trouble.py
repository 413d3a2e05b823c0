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
from tiny_run import arguments, write_text

from orchestrator.storage import Storage


class Trouble(ThreadingHTTPServer):
    """Stands between a run and its store: passes requests on, refuses every so many of them, and takes its time."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.count, self.refused = target, 0, 0
        self.refuse_every = 0
        self.status = 503
        self.delay_seconds = 0.0
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
        if trouble.refuse_every and trouble.count % trouble.refuse_every == 0:
            trouble.refused += 1
            self._answer(trouble.status, {}, b"")
            return
        dropped = ("host", "transfer-encoding", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection = HTTPConnection(trouble.target.removeprefix("http://"))
        try:
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            self._answer(reply.status, dict(reply.headers), reply.read())
        finally:
            connection.close()

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


def on_s3(text: Path, trouble: Trouble) -> list[str]:
    settings = ["run.name=tiny", "tracking.mode=disabled", f"storage.root={trouble.root}"]
    return arguments(text, Path("unused"), *settings)


def weights(storage: Storage) -> bytes:
    return storage.read_bytes("runs/tiny/model/model.safetensors")


@pytest.fixture
def expected(text: Path, tmp_path: Path) -> bytes:
    """The weights of the same run on a local disk."""
    root = tmp_path / "local"
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
