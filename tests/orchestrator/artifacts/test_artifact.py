import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from orchestrator.artifacts import artifact, staging
from orchestrator.artifacts.artifact import commit, is_committed, local_copy, publish, verify
from orchestrator.artifacts.digests import FileEntry, digest, digest_bytes, digest_file
from orchestrator.artifacts.staging import staging_folder
from orchestrator.errors import ArtifactError, RefusedError, StorageError
from orchestrator.storage.store import Storage

NAME = "data/corpus-1"
FILES = {"weights.bin": b"0123456789" * 1000, "deep/part.bin": b"abc", "empty.txt": b""}


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return Storage("memory://root" if request.param == "memory" else str(tmp_path / "root"))


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root"))


def publish_files(storage: Storage, files: dict[str, bytes] = FILES) -> dict[str, object]:
    with staging_folder(storage, NAME) as folder:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return publish(storage, folder, NAME, {"kind": "test"})


def test_published_artifact_is_committed_and_verified(storage: Storage) -> None:
    assert not is_committed(storage, NAME)
    manifest = publish_files(storage)
    assert is_committed(storage, NAME)
    assert verify(storage, NAME) == manifest
    assert manifest["kind"] == "test"
    assert manifest["files"].keys() == FILES.keys()
    assert storage.read_bytes(f"{NAME}/deep/part.bin") == b"abc"
    assert storage.list("data", hidden=True) == ["corpus-1"]


def test_digest_is_the_known_one_of_xxh3() -> None:
    # Source: the test vector of the empty input in xxHash's own documentation (XXH3 128 bits, seed 0).
    assert digest_bytes(b"").xxh3_128 == "99aa06d3014798d86001c324468d497f"


def test_digest_of_a_file_read_in_pieces_is_that_of_its_content(storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 7)
    (tmp_path / "file").write_bytes(content)
    storage.write_bytes("file", content)
    with storage.open_read("file") as stream:
        found = digest(stream)
    assert digest_file(tmp_path / "file") == found == digest_bytes(content)


def test_publishing_again_keeps_the_committed_one(storage: Storage) -> None:
    first = publish_files(storage)
    assert publish_files(storage, {"other.bin": b"other"}) == first
    assert storage.read_bytes(f"{NAME}/deep/part.bin") == b"abc"
    assert not storage.exists(f"{NAME}/other.bin")


def test_leftovers_without_a_commit_are_replaced(storage: Storage) -> None:
    storage.write_bytes(f"{NAME}/torn.bin", b"torn")
    storage.write_bytes(f"{NAME}/manifest.json", b"{}")
    assert not is_committed(storage, NAME)
    publish_files(storage)
    assert "torn.bin" not in verify(storage, NAME)["files"]
    assert storage.list("data", hidden=True) == ["corpus-1"]


def damage(name: str, change: Callable[[bytes], bytes]) -> Callable[[Storage], None]:
    return lambda storage: storage.write_bytes(f"{NAME}/{name}", change(storage.read_bytes(f"{NAME}/{name}")))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage("weights.bin", lambda data: data[:-1]), "weights.bin has 9999 bytes; the manifest says 10000"),
        (damage("weights.bin", lambda data: data + b"0"), "weights.bin has 10001 bytes"),
        (damage("weights.bin", lambda data: bytes([data[0] ^ 1]) + data[1:]), "weights.bin is damaged"),
        (damage("deep/part.bin", lambda data: b"xyz"), "deep/part.bin is damaged"),
        (lambda storage: storage.remove(f"{NAME}/deep/part.bin"), "deep/part.bin is missing"),
        (lambda storage: storage.remove(f"{NAME}/COMMITTED"), "not committed"),
        (damage("COMMITTED", lambda data: b""), "manifest.json is damaged"),
        (damage("manifest.json", lambda data: data[:-20]), "manifest.json is damaged"),
        (damage("manifest.json", lambda data: data.replace(b"abc", b"abd") + b" "), "manifest.json is damaged"),
        (lambda storage: storage.remove(f"{NAME}/manifest.json"), "manifest.json is missing"),
        (lambda storage: storage.remove(NAME), "not committed"),
    ],
)
def test_damage_is_found_and_named(storage: Storage, harm: Callable[[Storage], None], message: str) -> None:
    publish_files(storage)
    harm(storage)
    with pytest.raises(ArtifactError, match=message):
        verify(storage, NAME)


def test_file_that_the_manifest_does_not_list_does_no_harm(storage: Storage) -> None:
    publish_files(storage)
    storage.write_bytes(f"{NAME}/README.md", b"mine")
    verify(storage, NAME)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a\\b", "C:/x", "", "a//b", "./a", "a\0b"])
def test_manifest_that_leads_out_of_the_artifact_is_refused(storage: Storage, name: str) -> None:
    data = json.dumps({"files": {name: {"num_bytes": 0, "xxh3_128": ""}}}).encode()
    storage.write_bytes(f"{NAME}/manifest.json", data)
    storage.write_bytes(f"{NAME}/COMMITTED", digest_bytes(data).xxh3_128.encode())
    with pytest.raises(ArtifactError, match="leads out of the artifact"):
        verify(storage, NAME)
    with pytest.raises(ArtifactError, match="leads out of the artifact"):
        commit(storage, NAME, {name: FileEntry(0, "")}, {})


@pytest.mark.parametrize("data", [b"[]", b"{}", b"not json", b'{"files": {"a": {"size": 1}}}', b'{"files": 3}'])
def test_manifest_of_another_form_is_refused(storage: Storage, data: bytes) -> None:
    storage.write_bytes(f"{NAME}/manifest.json", data)
    storage.write_bytes(f"{NAME}/COMMITTED", digest_bytes(data).xxh3_128.encode())
    with pytest.raises(ArtifactError, match=r"manifest.json is not a manifest"):
        verify(storage, NAME)


def test_files_of_several_writers_count_after_the_commit(storage: Storage) -> None:
    entries = {}
    for rank in range(3):
        storage.write_bytes(f"{NAME}/rank{rank}.bin", bytes([rank]) * 10)
        entries[f"rank{rank}.bin"] = digest_bytes(bytes([rank]) * 10)
    manifest = {"step": 7, "files": artifact.listed(entries)}
    artifact.write_manifest(storage, NAME, json.dumps(manifest).encode())
    assert not is_committed(storage, NAME)
    artifact.write_commit(storage, NAME)
    assert verify(storage, NAME)["step"] == 7
    assert artifact.file_entries(verify(storage, NAME)) == entries


def test_commit_is_the_last_write(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = Storage.write_bytes
    monkeypatch.setattr(
        Storage, "write_bytes", lambda self, name, data: (written.append(name), write(self, name, data))
    )
    commit(storage, NAME, {}, {})
    assert written == [f"{NAME}/manifest.json", f"{NAME}/COMMITTED"]


def test_removing_starts_with_the_commit(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_files(storage)
    removed: list[str] = []
    monkeypatch.setattr(Storage, "remove", lambda self, name: removed.append(name))
    artifact.remove(storage, NAME)
    assert removed == [f"{NAME}/COMMITTED", NAME]


def test_local_publish_moves_the_folder(local: Storage) -> None:
    with staging_folder(local, NAME) as folder:
        (folder / "file").write_bytes(b"1")
        inode = (folder / "file").stat().st_ino
        publish(local, folder, NAME, {})
        assert not folder.exists()
    assert (local.local_path(NAME) / "file").stat().st_ino == inode


def test_local_publish_copies_from_another_file_system(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, calls = os.rename, []

    def rename_here_only(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 1:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(artifact.os, "rename", rename_here_only)
    publish_files(local)
    verify(local, NAME)
    assert local.list("data", hidden=True) == ["corpus-1"]


LOCAL_MOMENTS = ["digest_folder", "_publish_by_rename", "commit", "_move"]
REMOTE_MOMENTS = ["digest_folder", "_publish_by_upload", "_check_name"]


@pytest.mark.parametrize(
    ("root", "moment"),
    [("local", each) for each in LOCAL_MOMENTS] + [("memory://raced", each) for each in REMOTE_MOMENTS],
)
def test_slower_publisher_leaves_what_the_faster_one_committed(
    root: str, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(root if "://" in root else str(tmp_path / root))
    storage.remove(NAME)
    theirs = commit_before(moment, storage, FILES, monkeypatch)
    manifest = publish_files(storage)
    assert verify(storage, NAME) == manifest
    assert [storage.modified_seconds(f"{NAME}/weights.bin")] == theirs
    assert storage.list("data", hidden=True) == ["corpus-1"]


def commit_before(
    moment: str, storage: Storage, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    """Let another publisher commit when this one calls a function of `artifact`; after that nothing may be removed.

    Returns a list that will hold the time at which the other one wrote its first file.
    """
    original, written = getattr(artifact, moment), []

    def call(*values: Any) -> Any:
        monkeypatch.undo()
        publish_files(storage, files)
        written.extend(storage.modified_seconds(f"{NAME}/{file}") for file in sorted(files)[-1:])
        monkeypatch.setattr(Storage, "remove", lambda *_: pytest.fail("removed"))
        return original(*values)

    monkeypatch.setattr(artifact, moment, call)
    return written


def test_other_files_committed_under_the_same_name_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage("memory://other-files")
    commit_before("digest_folder", storage, {"theirs.bin": b"theirs"}, monkeypatch)
    with pytest.raises(ArtifactError, match="other files made from the same recipe"):
        publish_files(storage)
    verify(storage, NAME)


@pytest.mark.slow
@pytest.mark.parametrize("delay_seconds", [0, 0.05])
def test_publishers_at_the_same_time_never_take_a_commit_away(local: Storage, delay_seconds: float) -> None:
    local.write_bytes(f"{NAME}/torn.bin", b"left by an interruption")
    files = {"tokens.bin": os.urandom(2**24)}

    def published(number: int) -> dict[str, object]:
        time.sleep(number * delay_seconds)
        return publish_files(local, files)

    with ThreadPoolExecutor(4) as pool:
        manifests = [pool.submit(published, number) for number in range(4)]
        while not is_committed(local, NAME):
            pass
        while not all(each.done() for each in manifests):
            assert is_committed(local, NAME)
    assert [each.result() for each in manifests] == 4 * [verify(local, NAME)]
    assert local.list("data", hidden=True) == ["corpus-1"]


def test_replaced_artifact_is_whole_until_the_last_moment(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_files(storage)
    digested = artifact.digest_folder

    def still_there(folder: Path) -> dict[str, FileEntry]:
        assert verify(storage, NAME)["kind"] == "test"
        return digested(folder)

    monkeypatch.setattr(artifact, "digest_folder", still_there)
    with staging_folder(storage, NAME) as folder, storage.open_read(f"{NAME}/weights.bin") as reader:
        (folder / "weights.bin").write_bytes(b"longer")
        artifact.replace(storage, folder, NAME, {"kind": "new"})
        assert not storage.is_local or reader.read() == FILES["weights.bin"]
    assert verify(storage, NAME)["kind"] == "new"
    assert storage.read_bytes(f"{NAME}/weights.bin") == b"longer"
    assert storage.list("data", hidden=True) == ["corpus-1"]


def test_failed_staging_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staging_folder(storage, NAME) as folder:
        (folder / "file").write_bytes(b"1")
        raise KeyboardInterrupt
    assert not folder.exists()
    assert not (tmp_path / "root").exists()
    assert not storage.exists(NAME)


def test_failed_staging_keeps_parents_that_others_use(local: Storage, tmp_path: Path) -> None:
    local.write_bytes("data/other", b"1")
    with pytest.raises(ValueError), staging_folder(local, NAME):
        raise ValueError
    assert [path.name for path in (tmp_path / "root" / "data").iterdir()] == ["other"]


def test_full_disk_while_staging_is_reported_in_one_line(local: Storage) -> None:
    with pytest.raises(StorageError, match="disk is full"), staging_folder(local, NAME):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_staging_of_killed_processes_is_removed_and_that_of_living_ones_kept(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = local.local_path(NAME)
    abandoned = path.parent / f"{staging.STAGING_PREFIX}{path.name}-killed"
    abandoned.mkdir(parents=True)
    os.utime(abandoned, (0, time.time() - 3600))
    with staging_folder(local, NAME) as living:
        os.utime(living, (0, time.time() - 3600))
        with staging_folder(local, NAME):
            assert living.exists()
    assert not abandoned.exists()


def test_local_copy_of_a_local_artifact_is_the_artifact(local: Storage, tmp_path: Path) -> None:
    publish_files(local)
    assert local_copy(local, NAME, tmp_path / "cache") == local.local_path(NAME)
    damage("weights.bin", lambda data: b"")(local)
    with pytest.raises(ArtifactError, match="weights.bin"):
        local_copy(local, NAME, tmp_path / "cache")


def test_remote_artifact_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Storage("memory://copied")
    publish_files(remote)
    copy = local_copy(remote, NAME, tmp_path / "cache")
    assert {name: (copy / name).read_bytes() for name in FILES} == FILES
    monkeypatch.setattr(Storage, "read_range", lambda *_: pytest.fail("fetched again"))
    assert local_copy(remote, NAME, tmp_path / "cache") == copy


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage("weights.bin", lambda data: b"1" + data[1:]), "weights.bin is damaged"),
        (damage("weights.bin", lambda data: data[:-1]), "weights.bin has 9999 bytes; the manifest says 10000"),
        (lambda storage: storage.remove(f"{NAME}/deep/part.bin"), "deep/part.bin is missing"),
    ],
)
def test_damaged_remote_artifact_is_never_kept(harm: Callable[[Storage], None], message: str, tmp_path: Path) -> None:
    remote = Storage("memory://damaged")
    publish_files(remote)
    harm(remote)
    with pytest.raises(ArtifactError, match=f"memory://damaged/data/corpus-1/{message}"):
        local_copy(remote, NAME, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    assert not (kept / message.split(" ")[0]).exists()


def test_full_temporary_folder_is_explained(storage: Storage) -> None:
    """The files of an artifact for a remote store are made in the system's temporary folder, which may be small."""
    setting = "storage.root" if storage.is_local else "TMPDIR"
    message = f"the disk is full; free space there or choose another {setting}"
    with pytest.raises(RefusedError, match=message), staging_folder(storage, NAME):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("root", ["local", "memory"])
def test_files_that_are_not_needed_are_neither_read_nor_copied(root: str, tmp_path: Path) -> None:
    store = Storage("memory://in-part" if root == "memory" else str(tmp_path / "root"))
    publish_files(store)
    damage("weights.bin", lambda data: b"")(store)
    folder = local_copy(store, NAME, tmp_path / "cache", needs=lambda file: file == "deep/part.bin")
    assert (folder / "deep/part.bin").read_bytes() == b"abc"
    assert (folder / "weights.bin").exists() == store.is_local
    damage("deep/part.bin", lambda data: b"abd")(store)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    with pytest.raises(ArtifactError, match="part.bin is damaged"):
        local_copy(store, NAME, tmp_path / "cache", needs=lambda file: file == "deep/part.bin")
