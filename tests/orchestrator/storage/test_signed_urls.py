"""Text behind a signed URL is read, and nothing of the signature is kept or shown."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from signed_files import QUERIES, SECRET, serve

from orchestrator.errors import StorageError, UserError
from orchestrator.storage import retry
from orchestrator.storage.input_files import StoredFile, find_files
from orchestrator.storage.redaction import redact, without_query

CONTENT = b"some text\n" * 700_000  # more than fsspec reads at once
VERSIONS = [{"ETag": '"v1"'}, {"Last-Modified": "Thu, 26 Nov 2026 00:00:00 GMT"}, {}]


def files(kind: str, headers: dict[str, str]) -> Iterator[tuple[str, str]]:
    path = f"/folder/{kind}.v1.txt"
    with serve({path: CONTENT}, {path: QUERIES[kind]}, headers) as address:
        yield f"{address}{path}", QUERIES[kind]


@pytest.fixture(params=QUERIES)
def signed(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Yield a URL that can be read, and its query."""
    yield from files(request.param, VERSIONS[0])


def test_it_is_read_under_the_name_of_its_path(signed: tuple[str, str]) -> None:
    url, query = signed
    (file,) = find_files([f"{url}?{query}"])
    assert (file.name, file.num_bytes) == (url, len(CONTENT))
    with file.open() as stream:
        assert stream.read() == CONTENT
        stream.seek(-5, 2)
        assert stream.read() == CONTENT[-5:]
    assert SECRET not in repr(file)


@pytest.mark.parametrize("headers", VERSIONS, ids=str)
def test_its_identity_is_that_of_the_content_whatever_the_signature(headers: dict[str, str]) -> None:
    def identity(kind: str) -> str:
        for url, query in files(kind, headers):
            return find_files([f"{url}?{query}"])[0].identity()
        raise AssertionError

    assert identity("s3") == identity("azure")
    assert SECRET not in identity("s3")


def test_a_denied_one_is_told_so_and_not_taken_for_missing(signed: tuple[str, str]) -> None:
    url, query = signed
    with pytest.raises(StorageError, match="the server denies it; check the keys .* or sign the URL anew") as caught:
        find_files([f"{url}?{query}0"])
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_one_that_expires_while_it_is_read_is_told_so(signed: tuple[str, str]) -> None:
    url, query = signed
    file = StoredFile(f"{url}?{query}0", url, len(CONTENT))
    with pytest.raises(StorageError, match="the server denies it") as caught:
        file.open()
    assert SECRET not in str(caught.value)


def test_one_whose_server_is_away_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    with pytest.raises(StorageError, match=r"no answer in \d attempts \(ClientConnectorError: ") as caught:
        find_files([f"http://127.0.0.1:9/x.txt?{QUERIES['s3']}"])
    assert SECRET not in str(caught.value)


def test_a_pattern_with_a_query_is_refused(signed: tuple[str, str]) -> None:
    url, query = signed
    with pytest.raises(UserError, match=r"txt\?\*\*\*: with a query.* leads to one file; name every file") as caught:
        find_files([f"{url.rpartition('/')[0]}/*.txt?{query}"])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
@pytest.mark.parametrize(
    "text",
    [
        "{url}",
        "403, message='Forbidden', url='{url}'",
        'url=URL("{url}") is not there',
        "see {url}, or\n{url}",
        "- ++data.path=[{url},{url}]",
    ],
)
def test_redaction_leaves_nothing_of_a_signature(text: str, query: str) -> None:
    url = f"https://host.example:8443/folder/x.txt?{query}"
    shown = redact(text.format(url=url, query=query))
    assert SECRET not in shown
    assert "x.txt" in shown
    assert without_query(url) == "https://host.example:8443/folder/x.txt"


@pytest.mark.parametrize("kind", ["s3", "old_s3", "gcs", "azure"])
def test_redaction_knows_a_signature_without_its_url(kind: str) -> None:
    assert SECRET not in redact(f"<Error>GET /corpus.txt?{QUERIES[kind]}</Error>")


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@host/x",
        f"https://{SECRET}@host/x",
        f"HTTPS://user:p@ss{SECRET}@host/x",
        f"s3://AKIA{SECRET}:123/{SECRET}/x@bucket/x",
        f"ftp://me:{SECRET}@host:21/x",
        f"git+https://{SECRET}@host/x",
        f"ray://user:{SECRET}@host:10001",
        f"https://host/x#access_token={SECRET}",
        f"abfs://container@account.dfs.core.windows.net/x?sv=2024&sig={SECRET}",
    ],
)
def test_redaction_leaves_nothing_of_a_token(url: str) -> None:
    assert SECRET not in redact(f"cannot read {url}: no")


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/year=202?/month=*/x.txt", "s3://bucket/part-?.txt", "http://127.0.0.1:5000/user@host", "/a?b=c.txt"],
)
def test_a_glob_is_no_query(url: str) -> None:
    assert redact(url) == without_query(url) == url


def test_redaction_of_a_long_word_takes_linear_time() -> None:
    assert redact("x" * 2**20) == "x" * 2**20


class _NoRanges(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Log nothing."""


def test_a_web_server_that_sends_only_whole_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_NoRanges, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        (file,) = find_files([f"http://127.0.0.1:{server.server_port}/long.txt"])
        with file.open() as stream, pytest.raises(StorageError, match="sends no part of a file; download it and name"):
            stream.read()
        server.shutdown()
