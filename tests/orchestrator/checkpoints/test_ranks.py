"""What a rank asks of the store at a save and at a restore does not depend on how many ranks there are."""

import uuid
from collections import Counter
from collections.abc import Iterator

import pytest
from simulated_ranks import RUN, WAYS, Model, restore, save

from orchestrator.checkpoints.names import name_of
from orchestrator.storage.store import Storage

SHARE = 2000
FEW, MANY = 8, 64


@pytest.fixture
def storage() -> Iterator[Storage]:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    yield storage
    storage.remove("runs")


def largest(counts: list[Counter[str]], what: str) -> int:
    return max(count[what] for count in counts)


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_asks_for_as_much_among_64_as_among_8(storage: Storage, way: str) -> None:
    found, commits = {}, {}
    for num_ranks in (FEW, MANY):
        model = Model(SHARE * num_ranks)
        commits[num_ranks], *others = save(storage, model, way, num_ranks, step=num_ranks)
        zero, *readers = restore(storage, model, way, num_ranks, (1, num_ranks // 2, num_ranks - 1)).values()
        assert zero["requests"] <= 10  # it looks for the checkpoint, and reads commit, manifest and state for all
        found[num_ranks] = {
            "requests to write": largest(others, "requests"),
            "requests to read": largest(readers, "requests"),
            "bytes written": largest(others, "bytes written"),
            "bytes read": largest(readers, "bytes read"),
        }
    # a file and its index; its index, its size and one read
    assert [found[number]["requests to write"] for number in (FEW, MANY)] == [2, 2]
    assert [found[number]["requests to read"] for number in (FEW, MANY)] == [3, 3]
    for what in ("bytes written", "bytes read"):
        # the numbers of elements and of bytes have more digits in a larger model
        assert found[MANY][what] <= 1.1 * found[FEW][what], what
    # rank 0 commits by the names of the indexes; it writes the manifest, and reads it back
    assert commits[MANY]["requests"] <= commits[FEW]["requests"] + 1 < 15  # one checkpoint more to look at
    assert commits[MANY]["bytes read"] <= num_bytes_of_manifest(storage, MANY) < 1000 * MANY


def num_bytes_of_manifest(storage: Storage, step: int) -> int:
    return len(storage.read_bytes(f"{name_of(RUN, step)}/manifest.json"))


@pytest.mark.parametrize(("way", "factor"), [("zero1", 0.5), ("zero3", 2), ("zero3", 0.5)])
def test_a_rank_of_a_resized_world_reads_as_much_from_16_files_as_from_4(
    storage: Storage, way: str, factor: float
) -> None:
    found = {}
    for num_ranks in (4, 16):
        model, resized = Model(SHARE * num_ranks), int(factor * num_ranks)
        save(storage, model, way, num_ranks, step=num_ranks)
        _, *readers = restore(storage, model, way, resized, (1, resized // 2, resized - 1)).values()
        found[num_ranks] = [largest(readers, what) for what in ("requests", "bytes read")]
    assert found[16][0] <= found[4][0] + 3  # another file where a parameter's padding moves its shares
    assert found[16][1] <= 1.6 * found[4][1]
