import errno
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import aiohttp
import botocore.exceptions
import fsspec
import pytest
import requests

from orchestrator.errors import StorageError, UserError
from orchestrator.storage import retry
from orchestrator.storage.errors import NotFoundError, explain
from orchestrator.storage.input_files import find_files
from orchestrator.storage.redaction import has_credentials, redact
from orchestrator.storage.retry import is_transient
from orchestrator.storage.store import Storage

SECRET = "wJalrXUt/nFEMI/K7MDENG+bPx"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket-of-tests") if not s3fs.S3FileSystem().exists("bucket-of-tests") else None
    s3fs.S3FileSystem().rm("bucket-of-tests/root", recursive=True) if s3fs.S3FileSystem().exists(
        "bucket-of-tests/root"
    ) else None
    return "s3://bucket-of-tests"


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return Storage(request.getfixturevalue("s3_bucket") + "/root")
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return Storage("memory://root")
    return Storage(str(tmp_path / "root"))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", taken.append)
    return taken


def test_written_bytes_are_read_back_whole_and_in_ranges(storage: Storage) -> None:
    storage.write_bytes("a/b/file.bin", b"0123456789")
    storage.write_bytes("a/b/file.bin", b"9876543210")
    assert storage.read_bytes("a/b/file.bin") == b"9876543210"
    assert storage.read_range("a/b/file.bin", 2, 5) == b"765"
    assert storage.read_range("a/b/file.bin", 3, 3) == b""
    assert storage.num_bytes("a/b/file.bin") == 10
    with storage.open_read("a/b/file.bin") as file:
        assert file.read(3) + file.read() == b"9876543210"


def test_range_past_the_end_is_an_error(storage: Storage) -> None:
    storage.write_bytes("short.bin", b"0123")
    with pytest.raises(StorageError, match="ends before byte 9"):
        storage.read_range("short.bin", 2, 9)


def test_listing_names_children_and_hides_dotted_ones(storage: Storage) -> None:
    for name in ("runs/b/x", "runs/a/y", "runs/.staging-1/z", "runs/c"):
        storage.write_bytes(name, b"1")
    assert storage.list("runs") == ["a", "b", "c"]
    assert storage.list("runs", hidden=True) == [".staging-1", "a", "b", "c"]
    assert storage.list("missing") == []


def test_listing_of_folders_leaves_files_out(storage: Storage) -> None:
    for name in ("runs/b/file", "runs/a/file", "runs/file"):
        storage.write_bytes(name, b"1")
    assert storage.list("runs", folders_only=True) == ["a", "b"]


def test_listing_sees_what_another_storage_wrote(storage: Storage) -> None:
    storage.write_bytes("runs/a", b"1")
    assert storage.list("runs") == ["a"]
    pickle.loads(pickle.dumps(storage)).write_bytes("runs/b", b"1")
    assert storage.list("runs") == ["a", "b"]


def test_removed_folders_are_gone_and_missing_ones_are_fine(storage: Storage) -> None:
    storage.write_bytes("runs/a/file", b"1")
    assert storage.exists("runs/a/file")
    assert storage.exists("runs/a")
    storage.remove("runs/a")
    storage.remove("runs/a")
    assert not storage.exists("runs/a")
    assert not storage.exists("runs/a/file")


def test_missing_file_is_not_found(storage: Storage) -> None:
    with pytest.raises(NotFoundError, match="cannot read .*missing.*no such file"):
        storage.read_bytes("missing")
    with pytest.raises(NotFoundError):
        storage.open_read("missing")
    with pytest.raises(NotFoundError):
        storage.num_bytes("missing")


def test_folder_comes_back_as_it_went(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a.bin").write_bytes(b"a" * 1000)
    (source / "deep" / "b.bin").write_bytes(b"")
    storage.upload(source, "copy")
    storage.download("copy", tmp_path / "back")
    assert (tmp_path / "back" / "a.bin").read_bytes() == b"a" * 1000
    assert (tmp_path / "back" / "deep" / "b.bin").read_bytes() == b""
    storage.download("copy/a.bin", tmp_path / "single" / "c.bin")
    assert (tmp_path / "single" / "c.bin").read_bytes() == b"a" * 1000


def test_single_file_is_uploaded_under_its_new_name(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    storage.upload(tmp_path / "a.txt", "x/b.txt")
    assert storage.read_bytes("x/b.txt") == b"text"


def test_failed_local_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("file", b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="disk is full; free space"):
        storage.write_bytes("file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert storage.read_bytes("file") == b"old"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_file_is_created_exclusively_where_there_are_no_hard_links(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(number, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    storage = Storage(str(tmp_path))
    assert storage.create_bytes("file", b"first")
    assert not storage.create_bytes("file", b"second")
    assert storage.read_bytes("file") == b"first"
    assert storage.list(hidden=True) == ["file"]


def test_local_write_syncs_the_file_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("rename"), replace(*names)))
    Storage(str(tmp_path)).write_bytes("file", b"1")
    assert calls == ["file", "rename", "folder"]


def test_relative_root_is_made_absolute_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("outputs")
    monkeypatch.chdir("/")
    assert storage.url("a/b") == f"{tmp_path}/outputs/a/b"
    assert storage.local_path("a") == tmp_path / "outputs" / "a"


def test_remote_store_has_no_local_path() -> None:
    storage = Storage("memory://root/")
    assert not storage.is_local
    assert storage.local_path("a") is None
    assert storage.url("a") == "memory://root/a"


def test_name_that_leads_out_of_the_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="leads out"):
        Storage(str(tmp_path / "root")).read_bytes("../other")


class _Response(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"https://user:{SECRET}@host/x?sig=abc answered {status}")
        self.status = status


@pytest.mark.parametrize(
    "error",
    [TimeoutError(), ConnectionResetError(), OSError(errno.EBUSY, "SlowDown"), _Response(503), _Response(429)],
    ids=repr,
)
def test_transient_error_is_retried(error: Exception, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    storage = Storage("memory://root")
    storage.write_bytes("file", b"data")
    fail_first(monkeypatch, "cat_file", [error] * 3)
    assert storage.read_bytes("file") == b"data"
    assert len(waits) == 3
    assert waits[2] > waits[0]


def raised_while(before: Exception, error: Exception) -> Exception:
    """Return an error that a library raised in its handler of another one, without naming it as the cause."""
    try:
        try:
            raise before
        except Exception:
            raise error  # noqa: B904
    except Exception as caught:
        return caught


def s3_error(status: int, code: str) -> Exception:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(response, "GetObject")  # type: ignore[arg-type]


URL = {"endpoint_url": "http://127.0.0.1:1"}
PASSING = [
    botocore.exceptions.EndpointConnectionError(**URL),
    botocore.exceptions.ConnectTimeoutError(**URL),
    botocore.exceptions.ReadTimeoutError(**URL),
    botocore.exceptions.ConnectionClosedError(**URL),
    botocore.exceptions.ProxyConnectionError(proxy_url="http://127.0.0.1:1"),
    s3_error(400, "RequestTimeout"),
    s3_error(503, "SlowDown"),
    aiohttp.ServerDisconnectedError(),
    requests.exceptions.ConnectTimeout(),
    requests.exceptions.ConnectionError(),
    raised_while(ConnectionRefusedError(), RuntimeError("the library's own")),
]
LASTING = [
    botocore.exceptions.SSLError(**URL, error="certificate verify failed"),
    requests.exceptions.SSLError(),
    s3_error(403, "AccessDenied"),
    s3_error(404, "NoSuchBucket"),
    s3_error(400, "InvalidRequest"),
    botocore.exceptions.NoCredentialsError(),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_errors_of_a_store_that_is_away_are_transient(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=lambda error: type(error).__name__)
def test_errors_that_would_repeat_themselves_are_not_transient(error: Exception) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (PermissionError("AccessDenied"), True),
        (FileNotFoundError("NoSuchBucket"), True),
        (OSError(errno.ENOSPC, ""), True),
        (NotADirectoryError(), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (TimeoutError(), False),
        (botocore.exceptions.EndpointConnectionError(**URL), False),
    ],
    ids=repr,
)
def test_what_would_repeat_itself_is_final(error: Exception, is_final: bool) -> None:
    explained = explain(error, "read", "s3://bucket/file")
    assert explained.is_final == is_final
    assert pickle.loads(pickle.dumps(explained)).is_final == is_final


def test_outage_of_half_a_minute_is_waited_out(waits: list[float]) -> None:
    def away() -> None:
        if sum(waits) < 30:
            raise ConnectionRefusedError

    told: list[float] = []
    retry.retried(away, on_long_wait=lambda error, seconds: told.append(seconds))
    assert told == [sum(retry.WAITS_SECONDS[3:])]


@pytest.mark.parametrize(
    "error", [PermissionError("AccessDenied"), OSError(errno.ENOSPC, ""), _Response(403)], ids=repr
)
def test_lasting_error_is_raised_at_once(error: Exception, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    fail_first(monkeypatch, "pipe_file", [error])
    with pytest.raises(StorageError, match="cannot write memory://root/file"):
        Storage("memory://root").write_bytes("file", b"data")
    assert waits == []


def test_number_of_attempts_is_bounded_and_the_message_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    fail_first(monkeypatch, "cat_file", [_Response(500)] * 100)
    with pytest.raises(StorageError, match=f"no answer in {len(retry.WAITS_SECONDS) + 1} attempts") as caught:
        Storage("memory://root").read_bytes("file")
    assert len(waits) == len(retry.WAITS_SECONDS)
    assert SECRET not in str(caught.value)
    assert "sig=abc" not in str(caught.value)


def test_reading_goes_on_at_the_same_byte_after_a_lost_connection(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    content = os.urandom(3 * 2**20)
    storage = Storage("memory://root")
    storage.write_bytes("file", content)

    class Flaky(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 2**20 and len(waits) < 2:
                raise ConnectionResetError
            return super().read(size)

    monkeypatch.setattr(
        fsspec.filesystem("memory", use_listings_cache=False), "open", lambda path, mode: Flaky(content)
    )
    with storage.open_read("file") as file:
        assert file.read() == content
        assert file.seek(5) == 5
        assert file.read(3) == content[5:8]
    assert len(waits) == 2


def test_missing_bucket_is_reported_with_the_remedy(s3_bucket: str) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket-here/root/file: no such file, folder or bucket"):
        Storage("s3://no-such-bucket-here/root").write_bytes("file", b"1")


def test_credentials_in_a_root_are_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match=r"s3://\*\*\*@bucket/x: a URL must not hold a key") as caught:
        Storage(f"s3://AKIA123:{SECRET}@bucket/x")
    assert SECRET not in str(caught.value)


def test_unknown_kind_of_store_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="'s4' is no kind of store"):
        Storage("s4://bucket")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"s3://AKIA:{SECRET}@bucket/x", "s3://***@bucket/x"),
        ("https://token123@host/x", "https://***@host/x"),
        ("see https://host/x?X-Amz-Signature=abc&b=c now", "see https://host/x?*** now"),
        ("s3://bucket/part-?.txt", "s3://bucket/part-?.txt"),
        ("http://127.0.0.1:5000/user@host", "http://127.0.0.1:5000/user@host"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("simplecache::s3://a:b@bucket/x", "simplecache::s3://***@bucket/x"),
        ("/plain/path", "/plain/path"),
    ],
)
def test_redaction_strikes_out_credentials_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert has_credentials(text) == ("***@" in shown)


def test_importing_storage_stays_light() -> None:
    code = "import sys, orchestrator.storage; print([m for m in ('s3fs', 'aiohttp', 'torch') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def write_tree(storage: Storage) -> None:
    for name in ("c/b.txt", "c/a.txt", "c/deep/d.jsonl", "c/.hidden", "c/.git/config", "other.txt"):
        storage.write_bytes(name, name.encode())


def test_found_files_are_sorted_and_hidden_ones_skipped(storage: Storage) -> None:
    write_tree(storage)
    root = storage.url()
    names = [file.name.split("/root/")[1] for file in find_files([f"{root}/other.txt", f"{root}/c"])]
    assert names == ["other.txt", "c/a.txt", "c/b.txt", "c/deep/d.jsonl"]
    names = [file.name.split("/root/")[1] for file in find_files([f"{root}/c/*.txt", f"{root}/c/**/*.jsonl"])]
    assert names == ["c/a.txt", "c/b.txt", "c/deep/d.jsonl"]


def test_a_folder_that_a_glob_matches_is_searched_in_every_store(storage: Storage) -> None:
    write_tree(storage)
    names = [file.name.split("/root/")[1] for file in find_files([f"{storage.url()}/c/*"])]
    assert names == ["c/a.txt", "c/b.txt", "c/deep/d.jsonl"]


def test_a_name_like_a_chain_is_found_and_read_in_a_remote_store(s3_bucket: str) -> None:
    Storage(f"{s3_bucket}/root").write_bytes("c/a::b.txt", b"read")
    for path in (f"{s3_bucket}/root/c", f"{s3_bucket}/root/c/*.txt", f"{s3_bucket}/root/c/a::b.txt"):
        (file,) = find_files([path])
        assert file.name == f"{s3_bucket}/root/c/a::b.txt"
        with file.open() as stream:
            assert stream.read() == b"read"


@pytest.mark.parametrize("path", ["c", "c/", "c/*", "c/**"])
def test_an_empty_object_that_stands_for_a_folder_is_no_empty_file(s3_bucket: str, path: str) -> None:
    import s3fs

    store = s3fs.S3FileSystem()
    for key in ("c/", "c/a.txt", "c/d/", "c/d/b.txt"):
        store.call_s3("put_object", Bucket="bucket-of-tests", Key=f"root/{key}", Body=b"" if key[-1] == "/" else b"1")
    names = [file.name.split("/root/")[1] for file in find_files([f"{s3_bucket}/root/{path}"])]
    assert names == ["c/a.txt", "c/d/b.txt"]


def test_a_pattern_that_is_none_is_the_users_mistake() -> None:
    fsspec.filesystem("memory").pipe_file("/root/a.txt", b"1")
    with pytest.raises(UserError, match=r"a\*\*b: Invalid pattern"):
        find_files(["memory://root/a**b"])


def test_found_file_opens_after_pickling_and_its_identity_follows_the_content(storage: Storage) -> None:
    storage.write_bytes("f.txt", b"one")
    root = storage.url()
    (file,) = find_files([f"{root}/f.txt", f"{root}/*.txt"])
    file = pickle.loads(pickle.dumps(file))
    assert file.num_bytes == 3
    with file.open() as stream:
        assert stream.read() == b"one"
    before = file.identity()
    assert find_files([f"{root}/f.txt"])[0].identity() == before
    storage.write_bytes("f.txt", b"two")
    assert file.identity() != before


def test_identity_of_a_local_file_is_the_same_at_another_place(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f.txt").write_text("text")
    first, second = find_files([str(tmp_path / "a"), str(tmp_path / "b")])
    assert first.identity() == second.identity()


def test_all_mistakes_in_paths_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "full.txt").write_text("text")
    with pytest.raises(UserError) as caught:
        find_files([str(tmp_path / "full.txt"), str(tmp_path / "*.md"), str(tmp_path / "nothing"), str(tmp_path)])
    lines = str(caught.value).splitlines()
    assert lines == [
        f"{tmp_path}/*.md: matches no file",
        f"{tmp_path}/nothing: matches no file",
        f"{tmp_path}/empty.txt: is empty (0 bytes); remove it or leave it out",
    ]


def test_linked_file_in_a_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("text")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "linked.txt").symlink_to(tmp_path / "real.txt")
    (file,) = find_files([str(tmp_path / "corpus")])
    assert (file.name, file.num_bytes) == (str(tmp_path / "corpus" / "linked.txt"), 4)


def test_relative_path_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    (file,) = find_files(["corpus"])
    assert file.name == "corpus/a.txt"
    monkeypatch.chdir("/")
    with file.open() as stream:
        assert stream.read() == b"text"


class _Handler(BaseHTTPRequestHandler):
    content = b'text with <a href="x.txt">a link</a>' * 1000

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(self.content)

    def answer(self, body: bytes) -> None:
        found = self.path.startswith("/corpus.txt")
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(self.content) if found else 0))
        self.send_header("ETag", '"v1"')
        self.end_headers()
        self.wfile.write(body if found else b"")

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_signed_web_address_is_read_and_its_signature_never_shown(web: str) -> None:
    (file,) = find_files([f"{web}/corpus.txt?X-Amz-Signature=abc123"])
    assert file.num_bytes == len(_Handler.content)
    assert file.open().read() == _Handler.content
    assert file.name == f"{web}/corpus.txt"
    assert "abc123" not in repr(file) + file.identity()
    with pytest.raises(UserError, match="matches no file") as caught:
        find_files([f"{web}/other.txt?X-Amz-Signature=abc123"])
    assert "abc123" not in str(caught.value)


def test_file_whose_name_looks_like_a_glob_is_found(tmp_path: Path) -> None:
    (tmp_path / "part[1].txt").write_text("text")
    assert len(find_files([str(tmp_path / "part[1].txt")])) == 1


def fail_first(monkeypatch: pytest.MonkeyPatch, method: str, errors: list[Exception]) -> None:
    memory = fsspec.filesystem("memory", use_listings_cache=False)
    working, left = getattr(memory, method), list(errors)

    def flaky(*args: object, **kwargs: object) -> object:
        if left:
            raise left.pop(0)
        return working(*args, **kwargs)

    monkeypatch.setattr(memory, method, flaky)
