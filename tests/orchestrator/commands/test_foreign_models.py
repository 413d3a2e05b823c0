"""Models that others trained: their end token, their vocabulary, and bits per byte of the source text."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import tokenizer_of, write_model
from foreign_tokenizers import HARD

from modules.generation.continuations import numbered_prompts
from orchestrator.artifacts.models import load_model
from orchestrator.cli import main

pytestmark = pytest.mark.slow

TEXT = "To be, or not to be: that is the question — naïve café, 12345\nslings."


def evaluated(said: str) -> dict[str, float]:
    """Return the figures that `evaluate` has printed, by metric name."""
    rows = re.findall(r"│ *([\d.,]+)( %)? │ (val/\w+)", said)
    return {name: float(value.replace(",", "")) / (100 if percent else 1) for value, percent, name in rows}


def expected_nats(folder: Path, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the nats of all tokens but the first, by `transformers`."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))


@pytest.fixture
def run_evaluate(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(text: str, *words: str) -> dict[str, float]:
        Path("text.txt").write_text(text, encoding="utf-8")
        assert main(["evaluate", "model.path=./model", "data=files", "data.path=text.txt", "part=all", *words]) == 0
        return evaluated(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    "kind", ["llama2", "wordpiece", "unigram", "unigram_by_words", "prefixed", "wordlevel", "gpt2"]
)
def test_bits_per_byte_are_over_the_bytes_of_the_source_text(
    kind: str, run_evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = 0 if kind in ("prefixed", "gpt2") else 2
    write_model(Path("model"), kind, end=end)
    encoding = tokenizer_of(kind).encode(TEXT, add_special_tokens=False)
    figures = run_evaluate(TEXT, f"sequence_length={len(encoding.ids)}")
    nats = expected_nats(Path("model"), [*encoding.ids, end], monkeypatch)
    start = min(encoding.offsets[0][1], encoding.offsets[1][0])  # a space that was put before the text has no bytes
    num_bytes = len(TEXT[start:].encode())
    assert figures["val/loss_clm"] == pytest.approx(nats / len(encoding.ids), abs=1e-4)
    assert figures["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, abs=1e-4)


def test_a_text_with_a_token_that_the_model_has_no_row_for_is_refused(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(Path("model"), "llama2", end=50256)
    Path("docs.jsonl").write_text('{"text": "To be"}\n' * 60)
    assert main(["evaluate", "model.path=./model", "data=files", "data.path=docs.jsonl", "part=all"]) == 2
    said = capsys.readouterr()
    assert re.search(
        r"error: the text has token \d+ \(<\|endoftext\|>\), but the model has rows for tokens 0 to", said.err
    )
    assert "val/" not in said.out


def generate(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["generate", "model.path=./model", "temperature=0", *words]) == 0
    return capsys.readouterr().out.rstrip("\n")


def most_likely(model: Any, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model.head.logits(model(torch.tensor([ids])))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize(
    ("kind", "prompt", "expected"),
    [("gpt2", "", [0]), ("llama2", "", [1]), ("llama2", "To be", [1, 361, 300]), ("unigram", "", [2])],
)
def test_a_prompt_begins_as_the_model_is_used_to_and_an_empty_one_from_a_token(
    kind: str, prompt: str, expected: list[int], empty_folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(Path("model"), kind, end=0 if kind == "gpt2" else 2)
    seen: list[Any] = []

    def kept(every_ids: Any, num_sequences: int) -> Any:
        seen.extend(every_ids)
        return numbered_prompts(every_ids, num_sequences)

    monkeypatch.setattr("orchestrator.commands.generate.numbered_prompts", kept)
    generate(capsys, f"prompt='{prompt}'", "max_new_tokens=1")
    assert seen == [expected]


@pytest.mark.parametrize("where", ["config.json", "a list", "generation_config.json"])
def test_a_text_ends_at_the_end_token_of_the_config(
    where: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(Path("model"), "llama2", end=2)
    prompt = [1, *tokenizer_of("llama2").encode("To be", add_special_tokens=False).ids]
    ids = most_likely(model, prompt, 8)
    third = ids[len(prompt) + 2]
    config = "generation_config.json" if where.startswith("generation") else "config.json"
    end = [2, third] if where == "a list" else third
    path = Path("model", config)
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, "eos_token_id": end}))
    Path("prompts.txt").write_text("To be\n")
    row = json.loads(generate(capsys, "prompts_file=prompts.txt", "max_new_tokens=8"))
    stop = ids.index(third, len(prompt)) + 1
    assert row["continuations"][0]["num_tokens"] == stop - len(prompt)
    assert row["continuations"][0]["ended_by"] == "end token"
    assert row["prompt"] + row["continuations"][0]["text"] == tokenizer_of("llama2").decode(ids[:stop])


def test_a_model_that_stops_at_an_ordinary_token_keeps_it_in_text(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letter = tokenizer_of("llama2").token_to_id("b")
    write_model(Path("model"), "llama2", end=letter)
    trained = load_model("./model")
    ids = trained.tokenizer.encode("obbo")
    assert trained.end_ids == (letter,)
    assert (letter in ids, trained.tokenizer.decode(ids)) == (True, "obbo")
    assert trained.tokenizer.end_token is None


def test_without_an_end_token_a_prompt_is_needed(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(Path("model"), "no_accents", end=None)
    assert main(["generate", "model.path=./model"]) == 2
    assert "prompt='': the model has no end-of-text token to start from" in capsys.readouterr().err
    assert generate(capsys, "prompt='To be'", "max_new_tokens=2").startswith("To be")


@pytest.mark.parametrize("num_sequences", [1, 2])
def test_the_space_after_the_prompt_is_shown(
    num_sequences: int, empty_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(Path("model"), "llama2", end=2)
    tokenizer = tokenizer_of("llama2")
    space = tokenizer.encode("or", add_special_tokens=False).ids
    assert tokenizer.decode(space) == "or"
    steps = iter([dict.fromkeys(range(num_sequences), number) for number in space])
    monkeypatch.setattr("modules.generation.sampler.Sampler.next", lambda _: next(steps))
    words = ["prompt='To be'", f"num_sequences={num_sequences}", f"max_new_tokens={len(space)}"]
    assert "To be or" in generate(capsys, *words)


def test_a_prompt_that_the_tokenizer_cannot_hold_is_refused(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(Path("model"), "unigram", end=1)
    file = Path("model/tokenizer.json")
    description = json.loads(file.read_text())
    description["model"]["unk_id"] = None
    file.write_text(json.dumps(description))
    assert main(["generate", "model.path=./model", "prompt='★'"]) == 2
    assert "prompt=★: the model's tokenizer cannot encode it" in capsys.readouterr().err


def test_a_recipe_that_is_none_of_ours_is_named(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(Path("model"), "llama2", end=2)
    for content in ('{"training": {"lr": 1}}', "[1]", "{", '{"objective": 3}'):
        Path("model/recipe.json").write_text(content)
        assert main(["generate", "model.path=./model", "prompt=x"]) == 2
        said = capsys.readouterr().err
        assert "model/recipe.json: no recipe of this program" in said
        assert "Traceback" not in said


def test_compressors_are_compared_on_the_same_text_or_not_at_all(
    run_evaluate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, has_rows in (("llama2", True), ("wordpiece", False)):
        write_model(Path("model"), kind, end=2)
        Path("text.txt").write_text(TEXT + HARD[0], encoding="utf-8")
        words = ["evaluate", "model.path=./model", "data=files", "data.path=text.txt", "part=all", "sequence_length=8"]
        assert main(words) == 0
        assert ("gzip -9" in capsys.readouterr().out) == has_rows
