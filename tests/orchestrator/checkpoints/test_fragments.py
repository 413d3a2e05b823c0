"""Files of fragments: any range is read from the files that hold it, and damaged data is never used."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from orchestrator.artifacts import artifact
from orchestrator.checkpoints import fragments, parts
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.fragments import FragmentReader
from orchestrator.checkpoints.parts import Part, commit_parts, file_of, store_part
from orchestrator.checkpoints.snapshot import Snapshot
from orchestrator.distributed.training_state import MASTER, MOMENTS, Fragment
from orchestrator.errors import ArtifactError, OtherCheckpointError
from orchestrator.storage.store import Storage

NAME = "runs/tiny/checkpoints/step_00000001"
SIZE = 97
CUTS = (0, 13, 50, SIZE)


@pytest.fixture
def values() -> Tensor:
    return torch.randn(SIZE)


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.fixture(autouse=True)
def chunks_of_a_few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CHUNK_BYTES", 64)
    monkeypatch.setattr(fragments, "READ_BYTES", 128)
    monkeypatch.setattr(fragments, "_GAP_BYTES", 64)


def committed(storage: Storage, *ranks: Iterable[Fragment]) -> FragmentReader:
    """Commit what each rank owns, and open it."""
    for rank, owned in enumerate(ranks):
        snapshot = Snapshot.of(owned)
        part = Part(NAME, "a1-1", rank, len(ranks), snapshot.index)
        store_part(storage, part, snapshot.pieces())
    commit_parts(storage, part, "{}", {}, (), Attempt("tiny", 0, ""))
    return FragmentReader(storage, NAME, artifact.read_manifest(storage, NAME))


def cut(values: Tensor) -> list[list[Fragment]]:
    """Return one parameter in uneven ranges over three ranks."""
    return [[Fragment("w", MASTER, start, stop, values[start:stop])] for start, stop in itertools.pairwise(CUTS)]


def whole(name: str, kind: str = MASTER, value: float = 1.0) -> Fragment:
    return Fragment(name, kind, 0, 4, torch.full((4,), value))


@pytest.mark.parametrize(("start", "stop"), [(0, SIZE), (0, 13), (5, 60), (49, 51), (96, SIZE), (40, 40)])
def test_any_range_is_read_from_whatever_files_hold_it(storage: Storage, values: Tensor, start: int, stop: int) -> None:
    reader = committed(storage, *cut(values))
    assert torch.equal(reader.read("w", MASTER, start, stop), values[start:stop])


def test_requested_ranges_are_filled_in_any_dtype(storage: Storage, values: Tensor) -> None:
    reader = committed(storage, *cut(values))
    weights, half = torch.empty(SIZE), torch.empty(30, dtype=torch.bfloat16)
    reader.fill([Fragment("w", MASTER, 0, SIZE, weights), Fragment("w", MASTER, 20, 50, half)])
    assert torch.equal(weights, values)
    assert torch.equal(half, values[20:50].bfloat16())


def test_each_chunk_is_read_once_for_several_ranges(
    tmp_path: Path, values: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    reader = committed(storage, *cut(values))
    ranges: list[tuple[str, int]] = []
    read_into = Storage.read_into

    def counting(self: Storage, name: str, start: int, buffer: memoryview) -> None:
        ranges.append((name, start))
        read_into(self, name, start, buffer)

    monkeypatch.setattr(Storage, "read_into", counting)
    reader.fill([Fragment("w", MASTER, 0, SIZE, torch.empty(SIZE)) for _ in range(2)])
    assert len(ranges) == len(set(ranges))
    ranges.clear()
    reader.read("w", MASTER, 14, 17)
    assert len({name for name, _ in ranges}) == 1


def test_a_range_that_no_file_holds_is_an_error(storage: Storage, values: Tensor) -> None:
    first, _, last = cut(values)
    with pytest.raises(OtherCheckpointError, match="elements 13 to 60 of master of w"):
        committed(storage, first, last).read("w", MASTER, 5, 60)


def test_empty_fragments_are_not_written() -> None:
    snapshot = Snapshot.of([Fragment("w", MASTER, 3, 3, torch.empty(0)), whole("b")])
    assert list(snapshot.index) == ["b"]


def test_the_file_is_one_that_safetensors_opens(tmp_path: Path) -> None:
    snapshot = Snapshot.of([whole("b", MOMENTS[0], 3.0), whole("w", MASTER, 2.0)])
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"".join(snapshot.pieces()))
    assert path.stat().st_size == snapshot.num_bytes
    opened = safetensors.torch.load_file(path)
    assert {name: tensor.tolist() for name, tensor in opened.items()} == {
        "w/master/0": [2.0] * 4,
        f"b/{MOMENTS[0]}/0": [3.0] * 4,
    }


def test_a_copy_in_memory_is_the_file(values: Tensor) -> None:
    snapshot = Snapshot.of([Fragment("w", MASTER, 0, SIZE, values), whole("b", MOMENTS[1])])
    memory = torch.empty(snapshot.num_bytes, dtype=torch.uint8)
    snapshot.copy_into(memory)
    assert memory.numpy().tobytes() == b"".join(snapshot.pieces())


def test_memory_for_moments_is_enough_before_there_are_any(values: Tensor) -> None:
    masters = [Fragment("w", MASTER, 0, SIZE, values)]
    later = Snapshot.of([*masters, *(Fragment("w", kind, 0, SIZE, values) for kind in MOMENTS)])
    assert Snapshot.of(masters).num_bytes_with_moments >= later.num_bytes


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("where", ["first byte", "last byte"])
def test_nothing_of_a_damaged_chunk_is_copied(storage: Storage, values: Tensor, rank: int, where: str) -> None:
    reader = committed(storage, *cut(values))
    name = f"{NAME}/{file_of(rank, 'a1-1')}"
    data = bytearray(storage.read_bytes(name))
    data[0 if where == "first byte" else -1] ^= 1
    storage.write_bytes(name, bytes(data))
    taken = torch.full((SIZE,), 7.0)
    if where == "last byte":
        with pytest.raises(ArtifactError, match=f"rank_0000{rank}.*damaged"):
            reader.fill([Fragment("w", MASTER, 0, SIZE, taken)])
        assert taken[CUTS[rank + 1] - 1] == 7.0
    else:  # the header is not used: the index holds the offset of each range
        reader.fill([Fragment("w", MASTER, 0, SIZE, taken)])


@pytest.mark.parametrize("change", ["cut off", "longer", "missing"])
def test_a_file_of_another_size_is_damaged(storage: Storage, values: Tensor, change: str) -> None:
    reader = committed(storage, *cut(values))
    name = f"{NAME}/{file_of(1, 'a1-1')}"
    data = storage.read_bytes(name)
    if change == "missing":
        storage.remove(name)
    else:
        storage.write_bytes(name, data[:-1] if change == "cut off" else data + b"\0")
    with pytest.raises(ArtifactError, match=r"rank_00001.*(missing|bytes; the manifest says)"):
        reader.read("w", MASTER, 0, SIZE)


def test_an_index_survives_json(storage: Storage, values: Tensor) -> None:
    committed(storage, *cut(values))
    manifest = json.loads(storage.read_bytes(f"{NAME}/manifest.json"))
    assert torch.equal(FragmentReader(storage, NAME, manifest).read("w", MASTER, 0, SIZE), values)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["in order", "in any order"])
def test_ranges_are_found_whichever_rank_holds_them(storage: Storage, values: Tensor, order: list[int]) -> None:
    ranks = cut(values)
    reader = committed(storage, *(ranks[number] for number in order))
    assert torch.equal(reader.read("w", MASTER, 0, SIZE), values)


def test_the_manifest_lists_files_and_each_index_is_that_of_one_file(storage: Storage, values: Tensor) -> None:
    committed(storage, *cut(values))
    manifest = artifact.read_manifest(storage, NAME)
    indexes = storage.list(f"{NAME}/parts-a1-1")
    files = [file_of(rank, "a1-1") for rank in range(3)]
    assert manifest["files"].keys() == {"state.json", *files, *(f"parts-a1-1/{name}" for name in indexes)}
    assert storage.list(NAME) == sorted(["COMMITTED", "manifest.json", "parts-a1-1", "state.json", *files])
    assert not {"fragments", "chunks"} & manifest.keys()
    artifact.verify(storage, NAME)
    for index, (start, stop) in zip(indexes, itertools.pairwise(CUTS), strict=True):
        ((found,),) = json.loads(storage.read_bytes(f"{NAME}/parts-a1-1/{index}"))["ranges"]["w"].values()
        assert found[:2] == [start, stop]


def test_distant_ranges_of_a_file_are_read_without_what_lies_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, values = Storage(str(tmp_path)), torch.randn(400)
    reader = committed(storage, [Fragment("w", MASTER, 0, 400, values)])
    monkeypatch.setattr(fragments, "READ_BYTES", 2**20)
    read: list[int] = []
    read_into = Storage.read_into

    def counting(self: Storage, name: str, start: int, buffer: memoryview) -> None:
        read.append(len(buffer))
        read_into(self, name, start, buffer)

    monkeypatch.setattr(Storage, "read_into", counting)
    wanted = [Fragment("w", MASTER, start, start + 4, torch.empty(4)) for start in (0, 12, 300)]
    reader.fill(wanted)
    assert all(torch.equal(one.view, values[one.start : one.stop]) for one in wanted)
    assert len(read) == 2
    assert max(read) <= 128
