"""The folder of chunks stays within its bound, and loses nothing that is in use."""

import os
from pathlib import Path

import pytest

from orchestrator.artifacts import chunk_cache
from orchestrator.artifacts.chunk_cache import ChunkCache


def test_what_is_held_or_planned_is_never_removed_and_what_was_used_longest_ago_is_first(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path / "chunks", 600)
    paths = [tmp_path / f"chunks/a/{number:06d}" for number in range(8)]
    for age, path in enumerate(paths[:6]):
        cache.put({path: bytes(100)}, needed=set)
        os.utime(path, (1000 + age, 1000 + age))
    held, _ = cache.mapped(paths[0]) or pytest.fail("it is there")
    os.utime(paths[0], (1000, 1000))
    cache.put({paths[6]: bytes(100)}, needed=lambda: {paths[1]})
    assert [path.exists() for path in paths] == [True, True, False, False, True, True, True, False]
    assert held.tobytes() == bytes(100)
    del held
    os.utime(paths[0], (1000, 1000))
    cache.put({paths[7]: bytes(100)}, needed=set)
    assert not paths[0].exists() or not paths[1].exists()


def test_a_cache_that_is_in_use_as_a_whole_is_exceeded_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chunk_cache._warn.cache_clear()
    cache = ChunkCache(tmp_path, 200)
    needed = {tmp_path / "1", tmp_path / "2"}
    for path in (*sorted(needed), tmp_path / "3", tmp_path / "4"):
        cache.put({path: bytes(100)}, lambda: needed)
    assert all(path.exists() for path in needed)
    assert ["raise storage.cache_bytes" in record.getMessage() for record in caplog.records] == [True]
