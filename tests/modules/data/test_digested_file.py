import numpy as np
import pytest
import xxhash

from modules.data import digested_file, shard_writer
from modules.data.digested_file import DigestedFile
from modules.data.shard_writer import SplitWriter

CONTENT = bytes(range(200))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(digested_file, "CHUNK_BYTES", 64)


def written(folder, pieces):
    file = DigestedFile(folder / "a.bin")
    for piece in pieces:
        file.write(piece)
    file.close()
    file.close()
    return file


@pytest.mark.parametrize("sizes", [[200], [1] * 200, [63, 1, 64, 72], [130, 70]])
def test_each_chunk_has_a_digest_however_it_was_written(tmp_path, sizes):
    stops = np.cumsum(sizes).tolist()
    file = written(tmp_path, [CONTENT[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)])
    assert file.entry() == {"name": "a.bin", "xxh3_128": xxhash.xxh3_128_hexdigest(CONTENT)}
    found = np.fromfile(tmp_path / "a.bin.digests", "<u8").tolist()
    assert found == [64, *(xxhash.xxh3_64_intdigest(CONTENT[i : i + 64]) for i in range(0, 200, 64))]


@pytest.mark.parametrize("size", [0, 1, 64])
def test_a_file_of_one_chunk_has_no_file_of_digests(tmp_path, size):
    written(tmp_path, [CONTENT[:size]])
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_large_splits_are_grouped_and_others_described_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "GROUPED_BYTES", 400)
    described = {}
    for num_tokens in (198, 199):
        writer = SplitWriter(tmp_path, "train", np.dtype("<u2"), 0)
        writer.add(np.zeros(num_tokens, "<u2"), num_tokens, True)
        writer.close()
        described[num_tokens] = writer.description()
    assert set(described[198]) == {"documents", "tokens", "bytes", "document_starts", "shards"}
    assert described[199]["order"] == {"block_tokens": 2**19, "group_blocks": 64}
