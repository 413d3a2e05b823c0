"""Parts of prepared data in a store: what stays after which end, and what several processes do to each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modules.data.part_store import LocalParts, PartStore
from modules.errors import InputError
from orchestrator.artifacts import prepared_data as prepared
from orchestrator.artifacts.kept_parts import StoredParts, kept_parts, remove_parts
from orchestrator.cli import main
from orchestrator.errors import ArtifactError
from orchestrator.storage.store import Storage

NAME = "data/files-0123"
RECORD = {"files": {"tokens.bin": "a96faf705af16834e6c632b61e964e1f"}}  # xxh3_128 of "a"


def part(parts: PartStore, content: bytes = b"a") -> Path:
    folder = parts.new_folder()
    (folder / "tokens.bin").write_bytes(content)
    return folder


@pytest.fixture(params=["local", "stored"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PartStore:
    if request.param == "local":
        return LocalParts(tmp_path / "parts", tmp_path)
    return StoredParts(Storage(f"memory://{tmp_path}"), "data/.parts-x")


def test_part_and_note_are_found_as_they_were_kept(store: PartStore) -> None:
    assert (store.find("a"), store.note("n"), store.count()) == (None, None, 0)
    for _ in range(2):  # another process has made the same
        folder = part(store)
        store.keep(folder, "a", RECORD)
        store.write_note("n", {"number": 1})
        assert not folder.exists()
        with store.opened("a") as place:
            assert (place / "tokens.bin").read_bytes() == b"a"
        assert (store.find("a"), store.note("n"), store.count()) == (RECORD, {"number": 1}, 1)


def test_part_with_another_digest_is_not_used_and_is_made_again(store: PartStore) -> None:
    store.keep(part(store, b"b"), "a", RECORD)
    if isinstance(store, StoredParts):  # it is read once, when it is joined
        with pytest.raises(ArtifactError, match="damaged; the same command makes it again"), store.opened("a"):
            pass
    assert store.find("a") is None
    store.keep(part(store), "a", RECORD)
    assert store.find("a") == RECORD


@pytest.mark.parametrize(
    ("error", "stay"), [(None, False), (InputError("x"), False), (RuntimeError("x"), True), (KeyboardInterrupt(), True)]
)
def test_parts_stay_after_any_end_but_success_and_a_mistake(
    tmp_path: Path, error: BaseException | None, stay: bool
) -> None:
    storage = Storage(str(tmp_path / "root"))

    def work() -> None:
        with kept_parts(storage, NAME, tmp_path) as parts:
            parts.keep(part(parts), "a", RECORD)
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert (tmp_path / "root/data/.parts-files-0123").exists() == stay


def test_parts_that_another_process_uses_are_left_to_it(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "root"))
    with kept_parts(storage, NAME, tmp_path) as parts:
        parts.keep(part(parts), "a", RECORD)
        with kept_parts(storage, NAME, tmp_path) as same:  # the first of the two to end
            assert same.find("a") == RECORD
        assert parts.find("a") == RECORD
    assert parts.find("a") is None
    remove_parts(storage, NAME)


def test_process_whose_parts_another_has_removed_takes_what_that_one_has_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, write = _prepare(tmp_path / "root"), prepared.prepare_tokens

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(prepared, "prepare_tokens", write)
        assert prepare() == 0
        raise FileNotFoundError("a part")

    monkeypatch.setattr(prepared, "prepare_tokens", overtaken)
    assert prepare() == 0
    (folder,) = (tmp_path / "root/data").iterdir()
    assert not folder.name.startswith(".")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster=ray"], "cluster=ray: its nodes read files, and data.source=stdlib is none; leave out cluster=ray"),
        (["cluster=torchrun"], "cluster=torchrun: text is prepared by this machine or by cluster=ray"),
        (
            ["cluster=ray", "data=files", "data.path=a.txt", "data.filters.min_words=2"],
            "cluster=ray: filters compare all documents on one machine; leave out cluster=ray, or the filters",
        ),
    ],
)
def test_cluster_that_cannot_prepare_the_text_is_refused(
    words: list[str], said: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *words]) == 2
    assert said in capsys.readouterr().err
    assert list(empty_folder.iterdir()) == []


def _prepare(root: Path, *more: str) -> Callable[[], int]:
    text = root.parent / "text.txt"
    text.write_text("What is prepared once is not prepared again. " * 50)
    words = [f"data.path={text}", "tokenizer=byte", "data.split=position", f"storage.root={root}", *more]
    return lambda: main(["prepare", "data=files", *words])


def test_parts_left_by_a_kill_are_removed_once_the_data_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    prepare, data = _prepare(tmp_path / "root"), tmp_path / "root/data"
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.artifacts.artifact.publish", killed)
        assert prepare() == 130
    (left,) = data.iterdir()
    records = {path: path.stat().st_mtime_ns for path in left.glob("*/record.json")}
    assert left.name.startswith(".parts-files-")
    assert records
    assert prepare() == 0
    (folder,) = data.iterdir()
    assert not folder.name.startswith(".")
