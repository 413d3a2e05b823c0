"""What lies below a local path is found, or named with what is wrong with it."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.storage.input_files import find_files


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")


def link(path: Path, target: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def names(*paths: object) -> list[str]:
    return [file.name for file in find_files([str(path) for path in paths])]


def refusal(*paths: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        names(*paths)
    return str(caught.value).splitlines()


@pytest.fixture
def corpus(empty_folder: Path) -> Iterator[Path]:
    write(empty_folder, "corpus/a.txt", "corpus/deep/b.txt", "elsewhere/c.txt", "elsewhere/deeper/d.md")
    return empty_folder / "corpus"


def test_a_linked_folder_is_searched_by_folder_and_by_glob(corpus: Path) -> None:
    link(corpus / "deep/link", "../../elsewhere")
    everything = ["a.txt", "deep/b.txt", "deep/link/c.txt", "deep/link/deeper/d.md"]
    assert names("corpus") == names("corpus/**") == [f"corpus/{name}" for name in everything]
    assert names("corpus/**/*.txt") == ["corpus/a.txt", "corpus/deep/b.txt", "corpus/deep/link/c.txt"]
    assert names("corpus/deep/l*/*.txt") == names("corpus/deep/link/c.txt") == ["corpus/deep/link/c.txt"]


def test_a_linked_folder_is_searched_once_and_by_its_own_name_where_it_has_one(corpus: Path) -> None:
    link(corpus / "a_link", "deep")
    link(corpus / "one", "../elsewhere")
    link(corpus / "two", "../elsewhere")
    assert names("corpus") == [f"corpus/{name}" for name in ("a.txt", "deep/b.txt", "one/c.txt", "one/deeper/d.md")]


def test_links_that_lead_back_end_the_search(corpus: Path) -> None:
    link(corpus / "deep/loop", "..")
    link(corpus / "deep/up", corpus.parent)
    for number in range(12):  # each leads to all others: without a guard the paths are as many as 12!
        for other in range(12):
            link(corpus / f"web/{number}/{other}", corpus / f"web/{other}")
        write(corpus, f"web/{number}/x.txt")
    found = names("corpus")
    assert found[:3] == ["corpus/a.txt", "corpus/deep/b.txt", "corpus/deep/up/elsewhere/c.txt"]
    assert sum(name.endswith("x.txt") for name in found) == 12
    assert sorted(name.rsplit("/")[-1] for name in names("corpus/**/?.txt")) == ["a.txt", "b.txt", "c.txt"] + 12 * [
        "x.txt"
    ]


@pytest.mark.parametrize("path", ["corpus", "corpus/*", "corpus/**/*.txt", "corpus/gone.txt"])
def test_a_broken_link_is_named(corpus: Path, path: str) -> None:
    link(corpus / "gone.txt", "nowhere.txt")
    link(corpus / ".hidden", "nowhere.txt")
    assert refusal(path) == ["corpus/gone.txt: is a link to nowhere.txt, where nothing is; correct or remove it"]
    assert names("corpus/a*") == ["corpus/a.txt"]
    (corpus / "gone.txt").unlink()
    link(corpus / "gone.txt", "gone.txt")
    assert refusal(path)[0].startswith("corpus/gone.txt: is a link to gone.txt, where nothing is")


def test_what_is_no_file_is_named(corpus: Path) -> None:
    os.mkfifo(corpus / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(corpus / "socket.txt"))
        assert [line.partition(";")[0] for line in refusal("corpus")] == [
            "corpus/pipe.txt: is a named pipe",
            "corpus/socket.txt: is a socket",
        ]
    assert refusal("/dev/null", "corpus/pipe.txt") == [
        "/dev/null: is a device; text is read several times, so save it to a file",
        "corpus/pipe.txt: is a named pipe; text is read several times, so save it to a file",
    ]


def test_what_may_not_be_read_is_named(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir

    def denied(folder: str) -> list[str]:
        if folder.endswith("deep"):
            raise PermissionError(13, "Permission denied", folder)
        return listdir(folder)

    # the tests may run as root, who may read everything
    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("a.txt"))
    assert refusal("corpus") == ["corpus/a.txt: permission denied", "corpus/deep: permission denied"]
    assert refusal("corpus/*.txt") == ["corpus/a.txt: permission denied"]


def test_a_folder_that_a_glob_matches_is_searched(corpus: Path) -> None:
    write(corpus, "part.txt/0.txt", "part.txt/in/1.txt")
    assert names("corpus/*.txt") == ["corpus/a.txt", "corpus/part.txt/0.txt", "corpus/part.txt/in/1.txt"]
    assert names("corpus/p*", "corpus/part.txt") == ["corpus/part.txt/0.txt", "corpus/part.txt/in/1.txt"]


@pytest.mark.parametrize("name", ["a::b.txt", "file::x", "br[1]ack*et?.txt", "größe =.txt", "s3:", "-.txt", " .txt"])
def test_a_file_or_folder_of_any_name_is_found_and_read(empty_folder: Path, name: str) -> None:
    write(empty_folder, f"in/{name}", f"in.{name}.d/file.txt")
    found = find_files(
        [f"in/{name}", "in", "in/*", f"in.{name}.d", f"in.{name}.d/*.txt", str(empty_folder / "in" / name)]
    )
    assert [file.name for file in found] == [f"in/{name}", f"in.{name}.d/file.txt"]
    for file in found:
        with file.open() as stream:
            assert stream.read().decode() == file.name
        assert file.identity().startswith("xxh3_128:")


def test_hidden_names_are_found_only_if_they_are_named(corpus: Path) -> None:
    write(corpus, ".hidden/a.txt", ".hidden.txt", "deep/.git/config")
    assert names("corpus") == names("corpus/**") == ["corpus/a.txt", "corpus/deep/b.txt"]
    assert names("corpus/*.txt") == ["corpus/a.txt"]
    assert names("corpus/.h*") == ["corpus/.hidden.txt", "corpus/.hidden/a.txt"]


def test_paths_that_cannot_exist_match_no_file(corpus: Path) -> None:
    long = "x" * 300
    assert refusal(long, "corpus/a.txt/*.txt", "corpus/*.none", "corpus/a.txt/b", "foo::bar.txt") == [
        f"{long}: matches no file",
        "corpus/a.txt/*.txt: matches no file",
        "corpus/*.none: matches no file",
        "corpus/a.txt/b: matches no file",
        "foo::bar.txt: matches no file",
    ]


def test_names_are_absolute_where_the_path_is(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(corpus / "a.txt", f"file://{corpus}/deep") == [str(corpus / "a.txt"), str(corpus / "deep/b.txt")]
    monkeypatch.setenv("HOME", str(corpus))
    assert names("~/*.txt") == [str(corpus / "a.txt")]
    monkeypatch.chdir(corpus / "deep")
    assert names("../a.txt") == [str(corpus / "a.txt")]
