"""`orchestrator explain`: where it writes what, and what it refuses."""

import re
from pathlib import Path

import pytest
from published_models import write_published

from orchestrator.artifacts import artifact
from orchestrator.cli import main
from orchestrator.commands import explain as explain_command
from orchestrator.storage.store import Storage


@pytest.fixture
def model(empty_folder: Path) -> Path:
    write_published(empty_folder / "tiny", "llama")
    return empty_folder / "tiny"


def explain(*words: str) -> int:
    return main(["explain", "model.path=./tiny", "prompt=To be, or not", *words])


def test_a_table_a_page_and_a_picture_of_each_layer_are_made(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain() == 0
    said = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"page: (\S+) \(beside it .*\)", said[-1])
    assert found
    folder = Path(found[1]).parent
    assert folder.parent == Path("outputs/explanations").resolve()
    assert folder.name.startswith("tiny-")
    assert "To be" not in folder.name
    assert {"explanation.html", "layer_00.png", "layer_01.png"} < {file.name for file in folder.iterdir()}
    assert artifact.is_committed(Storage(str(folder)), "")


def test_the_same_prompt_again_replaces_its_explanation_and_another_one_has_its_own(model: Path) -> None:
    assert explain() == explain("num_likeliest=2") == explain("prompt=Or not") == 0
    folders = list(Path("outputs/explanations").iterdir())
    assert len(folders) == 2
    assert sorted(folder.name for folder in Path("outputs").iterdir()) == ["explanations"]


def test_it_goes_where_it_is_told(model: Path) -> None:
    assert explain("to=here") == explain("to=here", "prompt=Or not") == 0
    assert Path("here/explanation.html").exists()
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["max_tokens=2"], "more than 2 (max_tokens, since the page grows with its square); give a shorter one"),
        (["prompt=" + "word " * 100, "max_tokens=1000"], "more than 64 (the model's positions)"),
        (["prompt=''"], "the model's tokenizer has no token for any of it; give a text"),
        (["to="], "to='': is empty"),
        (["to=tiny"], "holds other files, and nothing is overwritten; name a new folder"),
        (["to=tiny/config.json"], "is a file; name a folder"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    words: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in model.parent.rglob("*"))
    assert explain(*words) == 2
    assert message in capsys.readouterr().err
    assert sorted(path for path in model.parent.rglob("*")) == before


def test_the_signature_of_a_models_url_reaches_neither_page_nor_name(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = explain_command.load_model("./tiny")
    monkeypatch.setattr(explain_command, "load_model", lambda *_, **__: trained)
    for signature in ("SECRETONE", "SECRETTWO"):
        url = f"https://store.example/models/tiny?X-Amz-Signature={signature}"
        assert explain("num_likeliest=2", f"model.path={url}") == 0
    (folder,) = Path("outputs/explanations").iterdir()
    assert folder.name.startswith("tiny-")
    assert not [file for file in folder.iterdir() if b"SECRET" in file.read_bytes()]
