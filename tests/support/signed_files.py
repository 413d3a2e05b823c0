"""A web server on loopback whose files are read by signed URLs, as those of S3, GCS and Azure are."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

SECRET = "canary0123456789abcdef"
"""In the middle of every signature and token below."""
QUERIES = {
    "s3": f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA{SECRET}%2F20261126%2Fus-east-1%2Fs3%2Faws4_request"
    f"&X-Amz-Date=20261126T000000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Security-Token=a{SECRET}%3D%3D"
    f"&X-Amz-Signature=0f{SECRET}9e",
    "old_s3": f"AWSAccessKeyId=AKIA{SECRET}&Expires=1900000000&Signature=vj{SECRET}%2Bzj%2F%3D",
    "gcs": f"X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=me{SECRET}%40project.iam.gserviceaccount.com"
    f"%2F20261126%2Fauto%2Fstorage%2Fgoog4_request&X-Goog-Date=20261126T000000Z&X-Goog-Signature=7a{SECRET}",
    "azure": f"sv=2024-11-04&se=2026-11-27T00%3A00%3A00Z&sr=b&sp=r&sig=b{SECRET}%2F8%3D",
    "ends_like_another_file": f"response-content-disposition=filename%3Dx.json&sig={SECRET}&name=other/x.json",
    "without_names": f"st{SECRET}",
}


@contextmanager
def serve(files: Mapping[str, bytes], queries: Mapping[str, str], headers: Mapping[str, str]) -> Iterator[str]:
    """Yield the address of a server that sends `files` to whoever asks with the file's query, word for word.

    Args:
        files: content by path.
        queries: the query that each path demands; a GET without it, and every HEAD, is denied, as both are with a URL
            that is signed for GET.
        headers: sent with every file.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._deny()

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path not in files or query != queries[path]:
                self._deny()
                return
            content = files[path]
            asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first, last = (int(asked[1]), int(asked[2] or len(content)) + 1) if asked else (0, len(content))
            part = content[first:last]
            self.send_response(206 if asked else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
            self._send(part)

        def _deny(self) -> None:
            self.send_response(403)
            # S3 says which signature it had expected
            self._send(f"<Error>SignatureDoesNotMatch {self.path}</Error>".encode())

        def _send(self, body: bytes) -> None:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
