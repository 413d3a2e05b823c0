import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from foreign_tokenizers import foreign
from signed_files import serve

from modules.config import DataConfig, TokenizerConfig
from orchestrator.artifacts.prepared_data import data_recipe
from orchestrator.cli import main
from orchestrator.storage import known_digests
from orchestrator.storage.store import Storage

pytestmark = pytest.mark.slow

Command = Callable[[], int]


@pytest.fixture
def prepare(tmp_path: Path) -> Command:
    text = tmp_path / "text.txt"
    text.write_text("What is prepared once is not prepared again. " * 50)
    words = [
        "prepare",
        "data=files",
        f"data.path={text}",
        "tokenizer=byte",
        "data.split=position",
        f"storage.root={tmp_path}/root",
    ]
    return lambda: main(words)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("train_00000.bin", truncated),
        ("train_00000.bin", flipped),
        ("data.json", emptied),
        ("tokenizer.json", Path.unlink),
    ],
)
def test_damaged_data_is_named_with_its_remedy(
    prepare: Command, file: str, harm: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare() == 0
    (folder,) = (tmp_path / "root/data").iterdir()
    harm(folder / file)
    capsys.readouterr()
    assert prepare() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {folder}: {file} ")
    assert said.err.endswith(f"when no run uses it, remove {folder}, and the same command prepares it anew\n")
    Storage(str(tmp_path / "root")).remove(f"data/{folder.name}")
    assert prepare() == 0


def test_storage_cache_dir_is_where_this_machine_keeps_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT_ORCHESTRATOR_CACHE", "")  # so that what the command sets is taken back
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    (text := tmp_path / "text.txt").write_text("What is known is not read again. " * 50)
    os.utime(text, (1_700_000_000, 1_700_000_000))
    monkeypatch.setattr(known_digests, "_SETTLED_NS", 0)
    words = ["prepare", "data=files", f"data.path={text}", "tokenizer=byte", "data.split=position"]
    assert main([*words, f"storage.root={tmp_path}/root", f"storage.cache_dir={tmp_path}/chosen"]) == 0
    assert [path.name for path in (tmp_path / "chosen").iterdir()] == ["digests"]
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("file", ["manifest.json", "COMMITTED"])
def test_data_without_a_valid_commit_is_prepared_anew(prepare: Command, file: str, tmp_path: Path) -> None:
    assert prepare() == 0
    (folder,) = (tmp_path / "root/data").iterdir()
    before = (folder / file).read_bytes()
    emptied(folder / file)
    assert prepare() == 0
    assert (folder / file).read_bytes() == before


def with_tokenizer(tmp_path: Path, path: str) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be. " * 20)
    where = ["data=files", f"data.path={text}", "data.val_fraction=0", f"storage.root={tmp_path}/root"]
    return ["prepare", *where, "tokenizer=file", f"tokenizer.path={path}"]


def test_tokenizer_of_a_hugging_face_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(foreign("llama2"))
    (folder / "added_tokens.json").write_text("{}")
    (folder / "a.safetensors").touch()
    for path in (f"{folder}", f"{folder}/", f"{folder}/tokenizer.json", f"{folder}/token*.json"):
        assert main(with_tokenizer(tmp_path, path)) == 0
    assert len(list((tmp_path / "root/data").iterdir())) == 1


def test_tokenizer_behind_a_signature_with_slashes_is_read(tmp_path: Path) -> None:
    query = "X-Amz-Credential=AKIA/20261126/us-east-1&X-Amz-Signature=0f9e"
    with serve({"/t.json": foreign("llama2")}, {"/t.json": query}, {"ETag": '"1"'}) as address:
        assert main(with_tokenizer(tmp_path, f"{address}/t.json?{query}")) == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("*/tokenizer.json", "matches 2 files"),
        ("none", "none/tokenizer.json: matches no file"),
        ("a/other", "a/other: matches no file"),
    ],
)
def test_tokenizer_that_no_path_or_several_name_is_refused(
    path: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "none"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "tokenizer.json").write_bytes(foreign("llama2"))
    assert main(with_tokenizer(tmp_path, f"{tmp_path}/{path}")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("gpt2", 2), ("llama2", 3), ("llama3", 3), ("prefixed", 3), ("added", 3), ("wordpiece", 3), (None, 2)],
)
def test_data_keeps_its_name_where_the_tokens_are_those_of_earlier_versions(kind: str | None, expected: int) -> None:
    tokenizer = TokenizerConfig(kind="file", path="given.json") if kind else TokenizerConfig()
    recipe = data_recipe(DataConfig(), tokenizer, (), foreign(kind) if kind else None)
    assert recipe["format"] == expected
    assert "end_token" not in recipe["tokenizer"]


COMMITS = {None: "a" * 40, "v1": "b" * 40}


class Hub:
    def __init__(self) -> None:
        self.is_away = False
        self.read: list[str | None] = []

    def dataset_info(self, path: str, revision: str | None = None) -> SimpleNamespace:
        if self.is_away:
            raise ConnectionError("no route to the hub")
        return SimpleNamespace(sha=COMMITS[revision])

    def load_dataset(self, path: str, subset: str | None, *, revision: str | None, **_: Any) -> list[dict[str, str]]:
        self.read.append(revision)
        return [{"text": f"state {revision} of a text, line {number}"} for number in range(20)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Stand in for the hub's client and `datasets`, with one data set of two states."""
    hub = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: hub))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=hub.load_dataset))
    return hub


def hub_words(tmp_path: Path, *words: str) -> list[str]:
    where = ["data=huggingface", "data.path=owner/name", "data.val_fraction=0", f"storage.root={tmp_path}/root"]
    return ["prepare", *where, "tokenizer=byte", *words]


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "root/data").glob("huggingface-*")}


def test_another_state_of_a_hub_data_set_is_other_data(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(hub_words(tmp_path)) == 0
    assert f"hub data set owner/name: commit {'a' * 40}" in capsys.readouterr().out
    first = names(tmp_path)
    assert main(hub_words(tmp_path, "data.revision=v1")) == 0
    assert main(hub_words(tmp_path, f"data.revision={'b' * 40}")) == 0
    assert hub.read == ["a" * 40, "b" * 40]
    assert len(names(tmp_path)) == 2
    monkeypatch.setitem(COMMITS, None, "c" * 40)  # somebody has changed the data set
    assert main(hub_words(tmp_path)) == 0
    assert len(names(tmp_path) - first) == 2


def test_a_hub_that_is_away_is_not_needed_for_a_commit(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(hub_words(tmp_path)) == 0
    hub.is_away = True
    assert main(hub_words(tmp_path)) == 2
    said = capsys.readouterr().err
    assert "data.path=owner/name: the hub does not tell the commit of revision main: no route to the hub" in said
    assert "name a commit of 40 digits in data.revision" in said
    assert main(hub_words(tmp_path, f"data.revision={'a' * 40}")) == 0
    assert hub.read == ["a" * 40]


def test_hub_data_that_was_prepared_without_a_revision_is_still_found(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("orchestrator.artifacts.prepared_data.with_commit", lambda data: data)
        assert main(hub_words(tmp_path)) == 0
    before = names(tmp_path)
    hub.is_away = True
    capsys.readouterr()
    assert main(hub_words(tmp_path)) == 0
    assert "owner/name: an unknown state; data.revision=main prepares the newest" in capsys.readouterr().out
    assert names(tmp_path) == before


def test_a_copy_of_a_data_set_on_this_machine_is_known_by_its_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "copy"
    folder.mkdir()
    for lines in (20, 20, 21):
        (folder / "train.jsonl").write_text('{"text": "a line of text"}\n' * lines)
        assert main(hub_words(tmp_path, f"data.path={folder}")) == 0
    assert len(names(tmp_path)) == 2
    assert main(hub_words(tmp_path, "data=files", f"data.path={folder}", "data.revision=v1")) == 2
    assert "data.revision belongs to a hub data set" in capsys.readouterr().err
