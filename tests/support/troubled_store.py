"""An S3 server that can throttle, fail, be slow or be away, and counts what is read from it."""

import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem


class Trouble(ThreadingHTTPServer):
    """Stands between a run and its store: passes requests on, refuses every so many of them, and takes its time."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.count, self.refused = target, 0, 0
        self.downloads: Counter[str] = Counter()
        """How many times each object was read, by the last part of its path."""
        self.refuse_every = 0
        self.status = 503
        self.delay_seconds = 0.0
        self.refused_path = ""
        """Each write to a path that holds this is refused with `status`."""
        self.held_path = ""
        """Each write to a path that holds this is passed on when `release` is set; `holds` tells that there is one."""
        self.holds, self.release = threading.Event(), threading.Event()
        self.leave_at = ""
        """At the first read of a path that holds this, the store is away for `away_seconds`."""
        self.away_seconds = 0.0
        self.root = ""
        self._serve()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def _serve(self) -> None:
        self.is_away = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def go_away(self) -> None:
        """Close the port, and every connection at its next request."""
        self.is_away = True
        self.shutdown()
        self.server_close()

    def stay_away(self) -> None:
        """Go away for `away_seconds`."""
        self.go_away()
        time.sleep(self.away_seconds)
        self.come_back()

    def come_back(self) -> None:
        """Open the same port again."""
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self._serve()


class _Handler(BaseHTTPRequestHandler):
    server: Trouble
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self._body()
        trouble = self.server
        trouble.count += 1
        if trouble.leave_at and trouble.leave_at in self.path and self.command == "GET":
            trouble.leave_at, trouble.is_away = "", True
            threading.Thread(target=trouble.stay_away, daemon=True).start()
        if trouble.is_away:
            self.close_connection = True
            return
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
            if self.command == "GET" and reply.status in (200, 206) and "?" not in self.path:
                trouble.downloads[self.path.rpartition("/")[2]] += 1
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


@contextmanager
def troubled_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    """Yield an S3 server with a bucket, and what stands before it; other processes find it by the environment."""
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
