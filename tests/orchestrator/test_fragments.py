import itertools
import json

import pytest
import torch

from orchestrator.errors import ArtifactError
from orchestrator.fragments import FragmentReader, merge_indexes, write_fragments
from orchestrator.storage import Storage
from orchestrator.training_state import MASTER, Fragment


@pytest.fixture
def values():
    return torch.randn(97)


@pytest.fixture
def folder(tmp_path, values):
    """

    import itertools
    The parameter cut into uneven ranges over three files."""
    cuts = [0, 13, 50, 97]
    indexes = [
        write_fragments(
            [Fragment("w", MASTER, start, stop, values[start:stop])], tmp_path / f"rank_{rank:05d}.safetensors"
        )
        for rank, (start, stop) in enumerate(itertools.pairwise(cuts))
    ]
    return tmp_path, merge_indexes(reversed(indexes))


@pytest.mark.parametrize(("start", "stop"), [(0, 97), (0, 13), (5, 60), (49, 51), (96, 97), (40, 40)])
def test_any_range_is_read_from_whatever_files_hold_it(folder, values, start, stop):
    path, index = folder
    reader = FragmentReader(Storage(str(path)), "", index)
    assert torch.equal(reader.read("w", MASTER, start, stop), values[start:stop])


def test_ranges_are_read_from_an_object_store(folder, values):
    path, index = folder
    storage = Storage("memory://fragments-test")
    for file in path.glob("*.safetensors"):
        storage.upload(file, f"ckpt/{file.name}")
    reader = FragmentReader(storage, "ckpt", index)
    assert torch.equal(reader.read("w", MASTER, 5, 60), values[5:60])


def test_a_range_that_no_file_holds_is_an_error(folder):
    path, index = folder
    index["w"][MASTER].pop(1)
    reader = FragmentReader(Storage(str(path)), "", index)
    with pytest.raises(ArtifactError, match="elements 13 to 60 of master of w"):
        reader.read("w", MASTER, 5, 60)


def test_empty_fragments_are_not_written(tmp_path):
    path = tmp_path / "rank_00000.safetensors"
    index = write_fragments([Fragment("w", MASTER, 3, 3, torch.empty(0)), _whole("b")], path)
    assert index == {"b": {MASTER: [(0, 4, path.name)]}}


def test_a_file_with_an_absurd_header_takes_no_memory(tmp_path):
    path = tmp_path / "rank_00000.safetensors"
    index = write_fragments([_whole("w")], path)
    path.write_bytes((2**60).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        FragmentReader(Storage(str(tmp_path)), "", index).read("w", MASTER, 0, 4)


def test_offsets_outside_of_a_tensor_are_refused(tmp_path):
    path = tmp_path / "rank_00000.safetensors"
    write_fragments([_whole("w")], path)
    index = {"w": {MASTER: [(0, 40, path.name)]}}
    with pytest.raises(ArtifactError, match="has no elements"):
        FragmentReader(Storage(str(tmp_path)), "", index).read("w", MASTER, 0, 40)


def test_an_index_survives_json(folder, values):
    path, index = folder
    reader = FragmentReader(Storage(str(path)), "", json.loads(json.dumps(index)))
    assert torch.equal(reader.read("w", MASTER, 0, 97), values)


def _whole(name):
    return Fragment(name, MASTER, 0, 4, torch.ones(4))
