"""Data in a local store: a chunk is verified before its first use, once a machine, and nothing else is read."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chunked_data import CHUNK_BYTES, NAME, opened_files, publish_text, small_chunks, text_of

from modules.data.shards import TokenStream
from orchestrator.artifacts import chunk_record
from orchestrator.artifacts.chunk_digests import ChunkDigests
from orchestrator.artifacts.opened_data import check_data, open_tokens
from orchestrator.errors import ArtifactError
from orchestrator.storage.store import Storage

TEXT = text_of(1000)


@pytest.fixture(autouse=True)
def _small_chunks() -> Iterator[None]:
    with small_chunks():
        yield


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = Storage(str(tmp_path / "root"))
    publish_text(storage, TEXT)
    return storage


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """Which chunks were verified, by the name of the file and their number."""
    found: Counter[tuple[str, int]] = Counter()
    fits = ChunkDigests.fits

    def counted(digests: ChunkDigests, number: int, content: bytes | memoryview) -> bool:
        found[digests.name, number] += 1
        return fits(digests, number, content)

    monkeypatch.setattr(ChunkDigests, "fits", counted)
    return found


def opened(store: Storage) -> TokenStream:
    """Open it as a new process does."""
    return open_tokens(store, NAME, 10**9).train


def window(stream: TokenStream, start: int, length: int) -> list[int]:
    out = np.empty((1, length), dtype=np.int64)
    stream.fill(np.array([start]), length, out)
    return out[0].tolist()


def all_of(stream: TokenStream) -> list[int]:
    return window(stream, 0, len(stream))


def test_the_tokens_are_those_of_the_text(store: Storage) -> None:
    tokens = all_of(opened(store))
    assert [token for number, token in enumerate(tokens, start=1) if number % 11] == TEXT.tolist()
    assert len(set(tokens[10::11])) == 1


def test_opening_reads_nothing_but_the_description_and_the_tokenizer(store: Storage) -> None:
    with opened_files() as found:
        stream = opened(store)
        read = {Path(path).name for path in found if NAME in path}
        assert read == {"COMMITTED", "manifest.json", "data.json", "tokenizer.json"}
        window(stream, 0, 5)
        assert {Path(path).name for path in found if path.endswith((".bin", ".digests"))} == {
            "train_00000.bin",
            "train_00000.bin.digests",
        }


def test_a_chunk_is_verified_when_it_is_used_and_once_a_machine(
    store: Storage, verified: Counter[tuple[str, int]]
) -> None:
    first, second = opened(store), opened(store)
    assert not verified
    window(first, 190, 20)  # 32 tokens a chunk, 200 a shard
    expected = Counter({("train_00000.bin", 5): 1, ("train_00000.bin", 6): 1, ("train_00001.bin", 0): 1})
    assert verified == expected
    window(second, 190, 20)
    window(opened(store), 190, 20)
    assert verified == expected
    assert all_of(second) == all_of(first)
    assert set(verified.values()) == {1}


def test_the_documents_of_a_window_need_no_more_than_the_chunks_on_the_way(
    store: Storage, verified: Counter[tuple[str, int]]
) -> None:
    stream = opened(store)
    found = stream.document_ids(np.array([300, 999]), 50)
    expected = (np.arange(300, 350) // 11 - 300 // 11).tolist()
    assert found[0].tolist() == expected
    starts = [number for name, number in verified if name == "train_document_starts.bin"]
    assert 0 < len(starts) < len(stream.document_starts) * 8 // CHUNK_BYTES  # of 13


def test_numbers_are_searched_as_in_an_array(store: Storage) -> None:
    starts = opened(store).document_starts
    array = starts[:]
    for side in ("left", "right"):
        for values in (np.arange(-1, 1105), np.array([], dtype=np.int64)):
            assert np.array_equal(starts.searchsorted(values, side=side), array.searchsorted(values, side=side))


def harmed(store: Storage, file: str, at: int, keep_time: bool = False) -> Path:
    path = store.local_path(f"{NAME}/{file}")
    assert path is not None
    before, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


@pytest.mark.parametrize("with_digests", [True, False])
def test_a_damaged_chunk_is_named_when_it_is_used(store: Storage, with_digests: bool) -> None:
    if not with_digests:
        store.remove(NAME)
        publish_text(store, TEXT, with_digests=False)
    path = harmed(store, "train_00001.bin", 130)
    stream = opened(store)
    window(stream, 0, 200)
    place = " in bytes 128 to 192 (not the digest in train_00001.bin.digests)" if with_digests else " (its digest"
    with pytest.raises(ArtifactError) as error:
        window(stream, 250, 40)
    assert str(error.value).startswith(f"{path.parent}: {path.name} is damaged{place}")
    assert str(error.value).endswith(f"remove {store.url(NAME)}, and the same command prepares it anew")


def test_damage_after_a_file_was_verified_is_noticed(store: Storage) -> None:
    """Also where its size and its time stay the same: the time of change of its inode cannot be set back."""
    all_of(opened(store))
    harmed(store, "train_00001.bin", 130, keep_time=True)
    with pytest.raises(ArtifactError, match="is damaged"):
        all_of(opened(store))


def test_damaged_digests_are_named(store: Storage) -> None:
    harmed(store, "train_00001.bin.digests", 9)
    with pytest.raises(ArtifactError, match=r"train_00001\.bin\.digests is damaged .*; when no run uses it, remove"):
        all_of(opened(store))


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"abc")])
def test_a_file_that_is_missing_or_cut_is_named_before_the_first_step(
    store: Storage, harm: Callable[[Path], object]
) -> None:
    path = store.local_path(f"{NAME}/train_00001.bin")
    assert path is not None
    harm(path)
    with pytest.raises(ArtifactError, match=r"train_00001\.bin (is missing|has 3 bytes; .* says 400); when no run"):
        opened(store)


def test_data_of_an_earlier_version_is_verified_by_whole_files_once(
    store: Storage, verified: Counter[tuple[str, int]]
) -> None:
    store.remove(NAME)
    publish_text(store, TEXT, with_digests=False)
    for _ in range(2):
        stream = opened(store)
        assert window(stream, 0, 10) == TEXT[:10].tolist()
    assert verified == Counter({("train_00000.bin", 0): 1})


def test_checking_verifies_what_was_not_verified_before(store: Storage, verified: Counter[tuple[str, int]]) -> None:
    window(opened(store), 0, 200)
    for _ in range(2):
        check_data(store, NAME)
    sizes = {path.name: path.stat().st_size for path in Path(store.url(NAME)).iterdir()}
    large = {
        name: -(-size // CHUNK_BYTES) for name, size in sizes.items() if size > CHUNK_BYTES and name.endswith(".bin")
    }
    assert {key: count for key, count in verified.items() if key[0] in large} == {
        (name, number): 1 for name, chunks in large.items() for number in range(chunks)
    }
    harmed(store, "train_00001.bin", 130)
    with pytest.raises(ArtifactError, match="is damaged in bytes 128 to 192"):
        check_data(store, NAME)


def test_without_a_cache_folder_each_process_verifies_what_it_uses_and_says_so(
    store: Storage, verified: Counter[tuple[str, int]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chunk_record._warn.cache_clear()
    (tmp_path / "cache").write_bytes(b"")
    for _ in range(2):
        stream = opened(store)
        assert window(stream, 0, 10) == window(stream, 0, 10) == TEXT[:10].tolist()
    assert verified == Counter({("train_00000.bin", 0): 2})
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/cache/gpt-orchestrator cannot be written (Not a directory): what is verified is not remembered, "
        "so each process verifies what it uses; choose another storage.cache_dir"
    ]
