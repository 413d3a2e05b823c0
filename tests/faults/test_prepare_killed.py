"""`prepare` that is killed, as a process or with a node of its cluster: what is done stays, with the same bytes."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from broken_run import KILL, BrokenRun
from ray_nodes import ray_nodes
from troubled_store import Trouble, troubled_store
from waiting import eventually

from orchestrator.storage.store import Storage

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
SETTINGS = ("data=files", "tokenizer=bpe", "tokenizer.vocab_size=500", "tokenizer.max_training_bytes=200000")
LETTERS = "abcdefghijklmnopqrstuvwxyzäöü"


def write_texts(folder: Path, num_files: int, num_bytes: int) -> Path:
    """Write files of words of which many are new, so that they take a while."""
    folder.mkdir()
    for number in range(num_files):
        chosen = random.Random(number)
        words = ["".join(chosen.choices(LETTERS, k=6)) for _ in range(num_bytes // 20)]
        lines = (" ".join(chosen.choices(words, k=20)) for _ in range(num_bytes // 140))
        (folder / f"{number:02d}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def command(text: str, root: str, *others: str) -> list[str]:
    return ["prepare", *SETTINGS, f"data.path={text}", f"storage.root={root}", "data.split=position", *others]


def committed(root: Path) -> dict[str, bytes]:
    (folder,) = (root / "data").glob("files-*")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kept(root: Path) -> dict[str, int]:
    """Return when each part was kept."""
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("data/.parts-*/*/record.json")}


def joining(root: Path) -> bool:
    return any(path.stat().st_size for path in root.glob("data/.staging-*/train_00000.bin"))


@pytest.mark.parametrize(("num_files", "num_bytes"), [(12, 4_000_000), (1, 60_000_000)])
def test_killed_prepare_makes_no_part_again_and_writes_the_same_bytes(
    tmp_path: Path, num_files: int, num_bytes: int
) -> None:
    text, root = write_texts(tmp_path / "text", num_files, num_bytes), tmp_path / "killed"
    words = ["data.num_processes=2"]
    with BrokenRun(command(str(text), str(tmp_path / "whole"), *words)) as run:
        assert run.end() == 0, run.said
    done: dict[str, int] = {}
    moments: list[Callable[[], bool]] = [
        lambda: bool(list(root.glob("data/.parts-*/trained.json"))),
        lambda: len(kept(root)) > len(done),
        lambda: len(kept(root)) > len(done) + num_files // 4,
        lambda: joining(root),
    ]
    for reached in moments:
        with BrokenRun(command(str(text), str(root), *words)) as run:
            assert eventually(lambda run=run, reached=reached: reached() or run.process.poll() is not None, seconds=200)
            assert run.process.poll() is None, run.said
            run.process.send_signal(KILL)
            run.end()
        now = kept(root)
        assert done.items() <= now.items()
        done = now
        print(f"killed with {len(done)} parts", flush=True)
    assert len(done) >= 4
    with BrokenRun(command(str(text), str(root), *words)) as run:
        assert run.end() == 0, run.said
    assert f"goes on with {len(done)} parts" in run.said
    assert committed(root) == committed(tmp_path / "whole")
    assert not kept(root)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    with troubled_store(monkeypatch) as store:
        yield store


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_parts_of_a_lost_node_are_made_by_another_that_shares_no_folder_with_it(tmp_path: Path, store: Trouble) -> None:
    text, storage = write_texts(tmp_path / "text", 12, 2_000_000), Storage(store.root)
    with BrokenRun(command(str(text), str(tmp_path / "whole"))) as run:
        assert run.end() == 0, run.said
    storage.upload(text, "text")

    def num_kept() -> int:
        folders = [name for name in storage.list("data", hidden=True) if name.startswith(".parts-")]
        return sum(
            "-bytes" not in name for folder in folders for name in storage.list(f"data/{folder}") if "." not in name
        )

    with ray_nodes(0) as nodes:
        for number in range(2):
            nodes.add_apart(tmp_path / f"node{number}")
        where = ["cluster=ray", f"cluster.address={nodes.address}"]
        with BrokenRun(command(f"{store.root}/text", store.root, *where)) as run:
            assert eventually(lambda: num_kept() > 2 or run.process.poll() is not None, seconds=300)
            assert run.process.poll() is None, run.said
            nodes.lose(nodes.nodes[0])
            assert run.end(600) == 0, run.said
    (name,) = storage.list("data")
    whole = committed(tmp_path / "whole")
    same = [file for file in whole if file.endswith((".bin", ".digests")) or file in ("data.json", "tokenizer.json")]
    assert len(same) > 6
    assert all(storage.read_bytes(f"data/{name}/{file}") == whole[file] for file in same)
    assert storage.list("data", hidden=True) == [name]
