import numpy as np
import pytest

from modules.data.shard_writer import SplitWriter
from modules.data.shards import SpeltBytes, TokenStream, token_dtype


def write(folder, documents, shard_tokens=7):
    writer = SplitWriter(folder, "train", np.dtype("<u2"), 99, shard_tokens=shard_tokens)
    for pieces in documents:
        for number, piece in enumerate(pieces):
            writer.add(np.array(piece, dtype="<u2"), len(piece), number == len(pieces) - 1)
    writer.close()
    return writer.description()


def stream(tokens, starts=(0,), shard_tokens=None):
    tokens = np.asarray(tokens, dtype="<u2")
    step = shard_tokens or len(tokens)
    return TokenStream([tokens[i : i + step] for i in range(0, len(tokens), step)], np.array(starts, dtype=np.int64))


def test_documents_are_laid_out_with_their_ends_and_starts(tmp_path):
    description = write(tmp_path, [[[1, 2], [3]], [[4]], [list(range(10, 20))]])
    tokens = np.concatenate([np.fromfile(tmp_path / shard["name"], "<u2") for shard in description["shards"]])
    assert tokens.tolist() == [1, 2, 3, 99, 4, 99, *range(10, 20), 99]
    starts = np.fromfile(tmp_path / description["document_starts"]["name"], "<i8")
    assert starts.tolist() == [0, 4, 6]
    assert (description["documents"], description["tokens"], description["bytes"]) == (3, 17, 14)
    assert [np.fromfile(tmp_path / shard["name"], "<u2").size for shard in description["shards"]] == [7, 7, 3]


def test_a_full_last_shard_is_followed_by_no_empty_one(tmp_path):
    assert len(write(tmp_path, [[[1, 2, 3, 4, 5, 6]]])["shards"]) == 1


def test_a_split_without_documents_has_no_shard(tmp_path):
    description = write(tmp_path, [])
    assert description["shards"] == []
    assert (tmp_path / description["document_starts"]["name"]).stat().st_size == 0


@pytest.mark.parametrize("shard_tokens", [3, 7, 10, 100])
def test_windows_are_the_same_however_the_tokens_are_cut(shard_tokens):
    tokens = np.arange(100)
    starts = np.array([0, 2, 3, 50, 90, 89])
    out = np.zeros((6, 10), dtype=np.int64)
    stream(tokens, shard_tokens=shard_tokens).fill(starts, 10, out)
    assert out.tolist() == [list(range(start, start + 10)) for start in starts]


def test_documents_within_a_window_are_numbered_from_its_start():
    ids = stream(range(20), starts=(0, 4, 5, 15)).document_ids(np.array([0, 4, 5, 6, 12]), 6)
    assert ids.dtype == np.int32
    assert ids.tolist() == [
        [0, 0, 0, 0, 1, 2],
        [0, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize(("vocab_size", "expected"), [(300, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_tokens_take_the_smaller_type_that_holds_them(vocab_size, expected):
    assert token_dtype(vocab_size) == np.dtype(expected)


def test_bytes_of_a_window_are_those_of_its_tokens():
    table = np.array([1, 10, 100])
    tokens = [np.array([0, 1, 2, 1]), np.array([1, 0])]
    found = TokenStream(tokens, np.array([0]), table).num_bytes(np.array([0, 3]), 3)
    assert found == (1 + 10 + 100) + (10 + 10 + 1)


@pytest.mark.parametrize(("total", "expected"), [(132, 111), (133, None)])
def test_spelt_bytes_are_trusted_only_if_the_whole_text_agrees(total, expected):
    tokens = [np.array([0, 1, 2, 1]), np.array([1, 0])]
    stream = TokenStream(tokens, np.array([0]), SpeltBytes(np.array([1, 10, 100]), total))
    assert stream.num_bytes(np.array([0]), 3) == expected


@pytest.mark.parametrize("shard_tokens", [2, 7, 100])
def test_bytes_that_do_not_fit_beside_a_token_move_on_to_the_next(tmp_path, shard_tokens):
    writer = SplitWriter(tmp_path, "val", np.dtype("<u2"), 99, writes_token_bytes=True, shard_tokens=shard_tokens)
    most = 2**16 - 1
    pieces = [([most + 5, 0, most], 3), ([1, 1], 0), ([], 4), ([2], 1)]
    for number, (counts, left_over) in enumerate(pieces):
        total = sum(counts) + left_over
        writer.add(np.zeros(len(counts), dtype="<u2"), total, number == 3, np.array(counts, dtype=np.int64))
    writer.close()
    names = [entry["name"] for entry in writer.description()["token_bytes"]]
    written = np.concatenate([np.fromfile(tmp_path / name, "<u2") for name in names])
    assert written.tolist() == [most, 5, most, 1 + 3, 1, 2 + 4, 1]
