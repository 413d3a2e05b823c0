"""`generate` as a user runs it, with a tiny model that others have published."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from foreign_models import write_model

from orchestrator.cli import main
from orchestrator.errors import StorageError
from orchestrator.storage.store import Storage

LINE = "to be or not that is the question whether tis nobler in mind suffer slings and arrows"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    write_model(folder, "llama2", end=2)
    return folder


@pytest.fixture
def generate(model: Path, empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str, code: int = 0) -> str:
        assert main(["generate", f"model.path={model}", "max_new_tokens=12", *words]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return run


def prompts(number: int) -> list[str]:
    generator = random.Random(2)
    return [" ".join(generator.choices(LINE.split(), k=generator.randint(1, 12))) for _ in range(number)]


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_rows_come_in_the_order_of_the_file_and_each_prompt_has_its_text_of_alone(generate: Any) -> None:
    texts = prompts(5)
    Path("p.txt").write_text("\n".join(texts))
    words = ["num_sequences=2", "top_p=0.9", "repetition_penalty=1.1", "max_new_tokens=70"]
    together = rows(generate("prompts_file=p.txt", "batch_size=3", *words))
    assert [row["prompt"] for row in together] == texts
    assert together == rows(generate("prompts_file=p.txt", "batch_size=1", *words))
    for text, row in [*zip(texts, together, strict=True)][1:3]:
        shown = generate(f"prompt='{text}'", *words)
        assert all(f"{text}{one['text']}\n" in shown for one in row["continuations"])
        assert all(0 < one["num_tokens"] <= 70 for one in row["continuations"])


@pytest.mark.parametrize("output", ["out/o.jsonl", "memory://results/o.jsonl"])
def test_the_output_is_what_would_have_been_printed_and_a_rerun_replaces_nothing(generate: Any, output: str) -> None:
    Path("p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ["über", *prompts(3)]))
    printed = generate("prompts_file=p.jsonl", "num_beams=2")
    said = generate("prompts_file=p.jsonl", "num_beams=2", f"output={output}")
    assert said.startswith("wrote 4 rows to ")
    folder, _, name = output.rpartition("/")
    assert Storage(folder).read_bytes(name).decode() == printed
    assert Storage(folder).list(hidden=True) == [name]
    assert {"text", "num_tokens", "ended_by", "score"} == rows(printed)[0]["continuations"][0].keys()
    assert "exists already, and is not replaced" in generate("prompts_file=p.jsonl", f"output={output}", code=2)
    assert Storage(folder).read_bytes(name).decode() == printed


def test_what_was_computed_is_printed_if_the_store_does_not_take_it(
    generate: Any, monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("p.txt").write_text("to be\n")
    printed = generate("prompts_file=p.txt")

    def fail(*_: Any) -> None:
        raise StorageError("the store is away")

    monkeypatch.setattr("orchestrator.storage.new_file.NewFile.write", fail)
    words = ["prompts_file=p.txt", "output=o.jsonl", "max_new_tokens=12"]
    assert main(["generate", f"model.path={model}", *words]) == 1
    said = capsys.readouterr()
    assert said.out == printed
    assert "the store is away" in said.err


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b'{"prompt": "a"}\n{"x": 1}\nnope\n', ['p.jsonl:2: must be like {"prompt": "text"}', "p.jsonl:3: not JSON"]),
        (b"\n", ["p.jsonl: has no prompt"]),
        (b"", ["p.jsonl: is empty (0 bytes)"]),
        (None, ["p.jsonl: matches no file"]),
    ],
    ids=["bad lines", "no prompt", "empty", "missing"],
)
def test_a_bad_file_is_refused_before_the_model_is_loaded(
    generate: Any, content: bytes | None, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.commands.generate.load_model", lambda *_: pytest.fail("loaded"))
    if content is not None:
        Path("p.jsonl").write_bytes(content)
    said = generate("prompts_file=p.jsonl", "output=out/o.jsonl", code=2).removeprefix("error: ").splitlines()
    assert all(found.startswith(line) for found, line in zip(said, lines, strict=True))
    assert not Path("out").exists()


def test_a_long_prompt_is_refused_or_cut_and_told_once(
    generate: Any, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = " ".join([LINE] * 9)
    Path("p.txt").write_text(f"{long}\nto be\n{long} or\n")
    told = generate("prompts_file=p.txt", code=2).removeprefix("error: ").splitlines()
    assert [line.partition(": has ")[0] for line in told] == ["p.txt:1", "p.txt:3"]
    assert all("the model sees 64 at once; shorten it, or take its end with long_prompt=cut" in line for line in told)
    assert "64 at once" in generate(f"prompt='{long}'", code=2)
    words = [f"model.path={model}", "long_prompt=cut", "temperature=0", "max_new_tokens=3"]
    for given, note in (
        ("prompts_file=p.txt", "note: 2 of 3 prompts have more tokens than the model sees at once; the last 64 are"),
        (f"prompt='{long}'", "note: the prompt has more tokens than the model sees at once; the last 64 are used"),
    ):
        assert main(["generate", *words, given]) == 0
        said = capsys.readouterr()
        assert said.err.count("note:") == 1
        assert note in said.err
        assert long in said.out


def test_a_stop_string_ends_the_text_that_is_shown(generate: Any) -> None:
    text = generate("prompt='to be'", "max_new_tokens=40").rstrip("\n").removeprefix("to be")
    stop = text[6:8]
    for words in (["max_new_tokens=40", f"stop={stop}"], ["max_new_tokens=40", f"stop=[never so,'{stop}']"]):
        shown = generate("prompt='to be'", *words)
        assert shown == f"to be{text[: text.index(stop)]}\n"


def test_the_name_of_a_special_token_stops_at_the_token(generate: Any) -> None:
    Path("p.txt").write_text("to be\n")
    write_model(Path("other"), "llama2", end=None)
    words = ["prompts_file=p.txt", "max_new_tokens=300", "num_sequences=4", "temperature=9", "model.path=./other"]
    for stop, reason in (("", "length"), ("stop=</s>", "end token")):
        (row,) = rows(generate(*words, *([stop] if stop else [])))
        assert reason in {one["ended_by"] for one in row["continuations"]}
