import errno
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from troubled_store import Trouble, troubled_store

from orchestrator.artifacts import artifact, node_cache
from orchestrator.artifacts.digests import digest_bytes, digest_file
from orchestrator.artifacts.node_cache import fetch_file
from orchestrator.artifacts.staging import staging_folder
from orchestrator.errors import ArtifactError, StorageError
from orchestrator.storage.store import Storage

CONTENT = os.urandom(1000)
ENTRY = digest_bytes(CONTENT)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(node_cache, "RANGE_BYTES", 64)
    storage = Storage("memory://fetched")
    storage.write_bytes("file", CONTENT)
    return storage


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    asked: list[tuple[int, int]] = []
    read_range = Storage.read_range

    def counted(storage: Storage, name: str, start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return read_range(storage, name, start, stop)

    monkeypatch.setattr(Storage, "read_range", counted)
    return asked


def test_each_byte_is_fetched_once(remote: Storage, requests: list[tuple[int, int]], tmp_path: Path) -> None:
    for _ in range(2):
        fetch_file(remote, "file", ENTRY, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert sorted(requests) == [(start, min(start + 64, 1000)) for start in range(0, 1000, 64)]


def test_what_an_interrupted_process_fetched_is_not_fetched_again(
    remote: Storage, requests: list[tuple[int, int]], tmp_path: Path
) -> None:
    (tmp_path / ".copy.partial").write_bytes(CONTENT[:700])
    fetch_file(remote, "file", ENTRY, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert min(requests) == (700, 764)


def test_damaged_beginning_is_fetched_anew(remote: Storage, tmp_path: Path) -> None:
    (tmp_path / ".copy.partial").write_bytes(bytes(700))
    fetch_file(remote, "file", ENTRY, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_damaged_copy_is_replaced_under_those_who_read_it(remote: Storage, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(b"damaged")
    with open(copy, "rb") as reader:
        fetch_file(remote, "file", ENTRY, copy)
        assert reader.read() == b"damaged"
    assert copy.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("content", [b"other" * 200, CONTENT[:-1], b""], ids=["another", "too_short", "empty"])
def test_file_that_is_not_the_manifests_is_never_kept(remote: Storage, content: bytes, tmp_path: Path) -> None:
    remote.write_bytes("file", content)
    with pytest.raises(ArtifactError, match="memory://fetched/file (is damaged|has .* the manifest says 1000)"):
        fetch_file(remote, "file", ENTRY, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_one_thread_fetches_and_the_others_wait(
    remote: Storage, requests: list[tuple[int, int]], tmp_path: Path
) -> None:
    fetchers = [threading.Thread(target=fetch_file, args=(remote, "file", ENTRY, tmp_path / "copy")) for _ in range(8)]
    for each in fetchers:
        each.start()
    for each in fetchers:
        each.join()
    assert max(Counter(requests).values()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_without_locks_each_fetches_by_itself(remote: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(node_cache.fcntl, "flock", no_locks)
    fetchers = [threading.Thread(target=fetch_file, args=(remote, "file", ENTRY, tmp_path / "copy")) for _ in range(4)]
    for each in fetchers:
        each.start()
    for each in fetchers:
        each.join()
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_killed_fetcher_does_not_block_the_next(remote: Storage, tmp_path: Path) -> None:
    partial = tmp_path / ".copy.partial"
    hold = (
        f"import fcntl, time; file = open({str(partial)!r}, 'ab'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    fetcher = threading.Thread(target=fetch_file, args=(remote, "file", ENTRY, tmp_path / "copy"))
    fetcher.start()
    fetcher.join(0.2)
    assert fetcher.is_alive()
    holder.kill()
    holder.communicate()
    fetcher.join()
    assert (tmp_path / "copy").read_bytes() == CONTENT


COPY = """
import sys
from pathlib import Path
from orchestrator.artifacts.artifact import local_copy
from orchestrator.storage.store import Storage
sys.stdin.readline()
print(local_copy(Storage(sys.argv[1]), "data/corpus", Path(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_that_start_together_download_each_file_once(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with troubled_store(monkeypatch) as store:
        copied_by(num_workers, store, tmp_path)


def copied_by(num_workers: int, store: Trouble, cache: Path) -> None:
    """Copy an artifact by several processes at once, and check that each file was read once."""
    files = {f"tokens_{number}.bin": os.urandom(2**20) for number in range(4)}
    remote = Storage(store.root)
    with staging_folder(remote, "data/corpus") as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        artifact.publish(remote, folder, "data/corpus", {})
    command = [sys.executable, "-c", COPY, store.root, str(cache)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(num_workers)
    ]
    for each in workers:
        each.stdin.write("go\n")
        each.stdin.flush()
    results = [each.communicate() for each in workers]
    assert [error for _, error in results] == num_workers * [""]
    (copy,) = {Path(out.strip()) for out, _ in results}
    assert {name: (copy / name).read_bytes() for name in files} == files
    assert {name: store.downloads[name] for name in files} == dict.fromkeys(files, 1)


def test_cache_that_is_emptied_while_a_copy_is_verified_is_filled_again(
    remote: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(CONTENT)

    def digest_of_removed(path: Path) -> Any:
        path.unlink(missing_ok=True)
        return digest_file(path)

    monkeypatch.setattr(node_cache, "digest_file", digest_of_removed)
    fetch_file(remote, "file", ENTRY, copy)
    assert copy.read_bytes() == CONTENT


def _a_folder_as_copy(copy: Path) -> None:
    copy.mkdir(parents=True)


def _a_file_as_cache(copy: Path) -> None:
    copy.parent.write_bytes(b"")


def _a_full_disk(_: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (_a_folder_as_copy, "IsADirectoryError"),
        (_a_file_as_cache, "a file stands where a folder should be; choose another storage.cache_dir"),
        (_a_full_disk, "the disk is full; free space there or choose another storage.cache_dir"),
    ],
)
def test_cache_that_cannot_be_used_is_named(
    trouble: Callable[[Path], None], said: str, remote: Storage, tmp_path: Path
) -> None:
    copy, before = tmp_path / "cache" / "copy", resource.getrlimit(resource.RLIMIT_FSIZE)
    trouble(copy)
    try:
        with pytest.raises(StorageError, match=f"cannot write {copy}: {said}"):
            fetch_file(remote, "file", ENTRY, copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
