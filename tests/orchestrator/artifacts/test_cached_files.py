"""Data in a remote store: a chunk is fetched and verified when it is needed, once a machine, within a bound."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chunked_data import CHUNK_BYTES, NAME, publish_text, small_chunks, text_of
from waiting import eventually

from modules.config import ObjectiveConfig
from modules.data import shard_writer
from modules.data.batches import Batches, BatchSettings, Share
from modules.data.shards import TokenStream
from orchestrator.artifacts import artifact, cached_files, chunk_cache
from orchestrator.artifacts.cached_files import CachedFiles
from orchestrator.artifacts.chunk_cache import ChunkCache
from orchestrator.artifacts.opened_data import open_tokens
from orchestrator.errors import ArtifactError, StorageError
from orchestrator.storage.store import Storage

TEXT = text_of(1000)
"""1,100 tokens with the ends of 100 documents: 6 shards of 400 bytes, of 7 chunks each."""
Range = tuple[str, int, int]


@pytest.fixture(autouse=True)
def _small_chunks() -> Iterator[None]:
    with small_chunks():
        yield


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = Storage(f"memory://{tmp_path.name}")
    publish_text(storage, TEXT)
    return storage


@pytest.fixture
def fetched(store: Storage, monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    return noted_reads(monkeypatch)


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    """Return what is read from now on of files of tokens."""
    found: list[Range] = []
    read_range = Storage.read_range

    def noted(storage: Storage, name: str, start: int, stop: int) -> bytes:
        if name.endswith(".bin"):
            found.append((name.rpartition("/")[2], start, stop))
        return read_range(storage, name, start, stop)

    monkeypatch.setattr(Storage, "read_range", noted)
    return found


def opened(store: Storage, cache_bytes: int = 10**9) -> TokenStream:
    """Open it as a new process does."""
    return open_tokens(store, NAME, cache_bytes).train


def windows(stream: TokenStream, starts: list[int], length: int = 8) -> list[list[int]]:
    out = np.empty((len(starts), length), dtype=np.int64)
    stream.fill(np.array(starts), length, out)
    return out.tolist()


def all_of(stream: TokenStream) -> list[int]:
    return windows(stream, [0], len(stream))[0]


def chunks(cache: Path) -> set[Path]:
    return {path for path in (cache / "gpt-orchestrator/chunks").rglob("0*") if path.is_file()}


def test_only_what_is_used_is_fetched_and_once_a_machine(store: Storage, fetched: list[Range], tmp_path: Path) -> None:
    local = Storage(str(tmp_path / "root"))
    publish_text(local, TEXT)
    stream = opened(store)
    assert fetched == []
    for reader in (stream, opened(store)):
        assert windows(reader, [190, 600]) == windows(opened(local), [190, 600])
        assert fetched == [("train_00000.bin", 320, 384), ("train_00000.bin", 384, 400), ("train_00003.bin", 0, 64)]
    assert all_of(opened(store)) == all_of(opened(local))
    assert sum(stop - start for _, start, stop in fetched) == 2200


def test_what_is_planned_is_fetched_beforehand_with_its_neighbours_and_nothing_else(
    store: Storage, fetched: list[Range], tmp_path: Path
) -> None:
    stream = opened(store)
    stream.plan(np.array([600, 616, 632, 100]), 8)
    assert eventually(lambda: len(chunks(tmp_path / "cache")) == 3, 30)
    assert sum(stop - start for _, start, stop in fetched) == 3 * CHUNK_BYTES
    fetched.clear()
    windows(stream, [600, 616, 632, 100])
    assert fetched == []


def test_no_more_is_fetched_beforehand_than_a_share_of_the_cache(store: Storage, tmp_path: Path) -> None:
    stream = opened(store, cache_bytes=12 * CHUNK_BYTES)
    stream.plan(np.arange(0, 1090, 8), 8)
    assert eventually(lambda: len(chunks(tmp_path / "cache")) == 3, 30)
    time.sleep(0.2)
    assert len(chunks(tmp_path / "cache")) == 3
    windows(stream, [0])
    assert eventually(lambda: len(chunks(tmp_path / "cache")) == 4, 30)


def test_a_plan_in_vain_is_forgotten_with_the_next(store: Storage, tmp_path: Path) -> None:
    stream = opened(store, cache_bytes=12 * CHUNK_BYTES)
    for first in (0, 400, 800):
        stream.plan(np.arange(first, first + 200, 8), 8)
        path = f"train_{first // 200:05d}.bin/000000"
        assert eventually(lambda path=path: any(str(one).endswith(path) for one in chunks(tmp_path / "cache")), 30)


def test_processes_that_need_a_chunk_at_once_fetch_it_once(store: Storage, fetched: list[Range]) -> None:
    streams = [opened(store) for _ in range(8)]
    readers = [threading.Thread(target=all_of, args=(stream,)) for stream in streams]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(fetched) == len(set(fetched))
    assert sum(stop - start for _, start, stop in fetched) == 2200


def test_the_cache_stays_within_its_bound_whatever_is_read(store: Storage, tmp_path: Path) -> None:
    local = Storage(str(tmp_path / "root"))
    publish_text(local, TEXT)
    bound, expected = 5 * CHUNK_BYTES, all_of(opened(local))
    streams = [opened(store, bound), opened(store, bound)]
    for start in np.random.default_rng(0).integers(0, 1080, 25).tolist():
        assert windows(streams[start % 2], [start]) == [expected[start : start + 8]]
        assert sum(path.stat().st_size for path in chunks(tmp_path / "cache")) <= bound


def damaged(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Damage what is read of the fourth shard, so many times; return when."""
    found: list[int] = []
    read_range = Storage.read_range

    def harmed(storage: Storage, name: str, start: int, stop: int) -> bytes:
        content = read_range(storage, name, start, stop)
        if name.endswith("train_00003.bin") and len(found) < times:
            found.append(start)
            return bytes([content[0] ^ 1]) + content[1:]
        return content

    monkeypatch.setattr(Storage, "read_range", harmed)
    return found


@pytest.mark.parametrize("with_digests", [True, False])
@pytest.mark.parametrize("times", [1, 2])
def test_a_chunk_that_fails_its_digest_is_fetched_once_more_and_then_named(
    store: Storage, with_digests: bool, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_text(store, TEXT, with_digests, "data/other")
    stream = open_tokens(store, "data/other", 10**9).train
    found = damaged(monkeypatch, times)
    if times == 1:
        assert windows(stream, [650]) == [np.insert(TEXT, np.arange(10, 1000, 10), 256)[650:658].tolist()]
    else:
        with pytest.raises(ArtifactError) as error:
            windows(stream, [650])
        url = store.url("data/other/train_00003.bin")
        assert str(error.value).startswith(f"{url} is damaged")
        assert str(error.value).endswith(f"remove {store.url('data/other')}, and the same command prepares it anew")
        assert [path for path in chunks(tmp_path / "cache") if "train_00003" in str(path)] == []
    assert len(found) == times


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _flipped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("harm", [_cut, _emptied, _flipped, Path.unlink])
@pytest.mark.parametrize("with_digests", [True, False])
def test_a_chunk_that_is_damaged_on_this_machine_is_fetched_anew(
    store: Storage, harm: Callable[[Path], object], with_digests: bool, tmp_path: Path
) -> None:
    publish_text(store, TEXT, with_digests, "data/other")
    expected = windows(open_tokens(store, "data/other", 10**9).train, [190, 600])
    for path in chunks(tmp_path / "cache"):
        harm(path)
    assert windows(open_tokens(store, "data/other", 10**9).train, [190, 600]) == expected


def test_data_of_an_earlier_version_is_fetched_by_whole_files(store: Storage, fetched: list[Range]) -> None:
    publish_text(store, TEXT, False, "data/other")
    for _ in range(2):
        windows(open_tokens(store, "data/other", 10**9).train, [650])
    assert fetched == [("train_00003.bin", 0, 400)]


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _read_only(*_: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (_full, "the disk is full; free space there or choose another storage.cache_dir"),
        (_read_only, "permission denied; check the permissions there, or choose another storage.cache_dir"),
    ],
)
def test_a_cache_that_cannot_be_written_is_named_with_its_setting(
    store: Storage, trouble: Callable[..., None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = opened(store)
    windows(stream, [0])
    monkeypatch.setattr(chunk_cache.os, "replace", trouble)
    with pytest.raises(StorageError) as error:
        windows(stream, [100])
    assert str(error.value) == f"cannot write {tmp_path}/cache/gpt-orchestrator/chunks: {said}"
    assert error.value.is_final


def test_a_full_disk_is_relieved_of_chunks_that_nobody_needs(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = windows(opened(store), list(range(0, 200, 32)))
    replace, stream = os.replace, opened(store)
    (unneeded := tmp_path / "cache/gpt-orchestrator/chunks/of-another/000000").parent.mkdir()
    unneeded.write_bytes(bytes(100))
    for path in chunks(tmp_path / "cache") - {unneeded}:
        path.unlink()

    def full(source: str, target: str) -> None:
        if unneeded.exists():
            _full()
        replace(source, target)

    monkeypatch.setattr(chunk_cache.os, "replace", full)
    assert windows(stream, [0]) == expected[:1]
    assert not unneeded.exists()


def test_a_file_that_is_missing_in_the_store_is_named(store: Storage) -> None:
    store.remove(f"{NAME}/train_00003.bin")
    with pytest.raises(ArtifactError, match=r"train_00003\.bin is missing; when no run uses it, remove memory://"):
        windows(opened(store), [650])


def test_a_text_that_does_not_fit_the_cache_and_has_no_groups_is_told(
    store: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    opened(store, cache_bytes=2000)
    assert "are read in an order that needs all of them" in caplog.text
    caplog.clear()
    opened(store, cache_bytes=2200)
    assert caplog.text == ""


def test_few_chunks_are_held_and_one_at_least(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_files, "_HELD_CHUNKS", 3)
    entries = artifact.file_entries(artifact.read_manifest(store, NAME))
    for cache_bytes, count in ((10**9, 3), (CHUNK_BYTES, 1)):
        cache = ChunkCache(Path(os.environ["XDG_CACHE_HOME"]) / f"c{count}", cache_bytes)
        files = CachedFiles(store, NAME, entries, "x", cache, "")
        numbers = files.open("train_00000.bin", np.dtype("<u2"))
        for start in range(0, 200, 32):
            numbers[start : start + 8]
        assert len(files._held) == count


@pytest.mark.parametrize("num_tokens", [4000, 16000])
def test_what_is_read_for_a_step_does_not_grow_with_the_text(
    num_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers with a cache of a few groups; a group is 8 blocks of 256 bytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in (("GROUPED_BYTES", 4000), ("BLOCK_BYTES", 256), ("GROUP_BLOCKS", 8)):
        monkeypatch.setattr(shard_writer, name, value)
    store = Storage(f"memory://{tmp_path.name}")
    publish_text(store, text_of(num_tokens), shard_tokens=2000)
    fetched = noted_reads(monkeypatch)
    settings = BatchSettings(8, 1, ObjectiveConfig(), with_masked=False, with_documents=False)
    data = [open_tokens(store, NAME, 3 * 2048) for _ in range(2)]
    workers = [Batches(each.train, each.tokenizer, settings, Share(4, 2, rank, 2)) for rank, each in enumerate(data)]
    steps = 8 * 256 // 2 // 8 // 4
    for step in range(2 * steps):
        for worker in workers:
            list(worker.micro_batches(step))
    num_bytes = sum(stop - start for _, start, stop in fetched)
    assert 2 * 2048 <= num_bytes <= 4 * (2048 + 8 * CHUNK_BYTES)
