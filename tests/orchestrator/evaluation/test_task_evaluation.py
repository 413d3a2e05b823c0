"""`evaluate task=…`: every figure beside a plain loop over the rows, each asked alone."""

import json
import math
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from offline_wandb import history_of, read_records, summary_of
from sacrebleu.metrics.chrf import CHRF
from task_models import WORDS, read_lines, write_rows, write_task_adapter, write_task_model
from torch import Tensor

from modules import example_scores
from modules.classifier import class_logits
from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.tokenizer import Tokenizer
from orchestrator.artifacts.models import load_model
from orchestrator.cli import main

LABELS = ["neg", "neu", "pos"]
Run = Callable[..., str]


@pytest.fixture
def run(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def called(*words: str, code: int = 0) -> str:
        assert main(list(words)) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return called


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_model(tmp_path_factory.mktemp("models") / "classifier", labels=LABELS)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_model(tmp_path_factory.mktemp("models") / "lm")


@pytest.fixture(autouse=True)
def nothing_measured(classifier: Path, language_model: Path) -> None:
    for model in (classifier, language_model):
        for file in [*model.glob("evaluation.json"), *model.glob("*.png")]:
            file.unlink()


def texts(number: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(1, 14))) for _ in range(number)]


def labelled(number: int) -> list[dict[str, Any]]:
    generator = random.Random(3)
    return [{"text": text, "label": generator.choice(LABELS), "split": "test"} for text in texts(number)]


def measured(model: Path, task: str) -> dict[str, float]:
    (entry,) = json.loads((model / "evaluation.json").read_text())[task].values()
    return entry["metrics"]


def tokenizer_of(model: Path) -> Tokenizer:
    return load_pretrained({file.name: file.read_bytes() for file in model.glob("*.json")}, "model.path")


def test_classification_is_measured_as_by_a_loop_over_single_rows(run: Run, classifier: Path) -> None:
    rows = labelled(37)
    write_rows(Path("r.jsonl"), [*rows, {"text": "to be", "label": "of another data set", "split": "train"}])
    said = run("evaluate", f"model.path={classifier}", "task=classification", "data=files", "data.path=r.jsonl")
    trained, tokenizer = load_model(str(classifier)), tokenizer_of(classifier)
    nats, counts = 0.0, {(a, b): 0 for a in LABELS for b in LABELS}
    for row in rows:
        ids = [*tokenizer.begin_ids, *tokenizer.encode(row["text"])]
        with torch.no_grad():
            logs = class_logits(trained.model, torch.tensor([ids]), [len(ids)])[0].log_softmax(-1)
        counts[row["label"], LABELS[int(logs.argmax())]] += 1
        nats -= float(logs[LABELS.index(row["label"])])
    right = sum(counts[label, label] for label in LABELS)
    sizes = [sum(counts[label, b] for b in LABELS) + sum(counts[a, label] for a in LABELS) for label in LABELS]
    shares = [2 * counts[label, label] / (size or 1) for label, size in zip(LABELS, sizes, strict=True)]
    found = measured(classifier, "classification")
    assert found["classification/accuracy"] == pytest.approx(right / len(rows))
    assert found["classification/macro_f1"] == pytest.approx(sum(shares) / 3)
    assert found["classification/loss"] == pytest.approx(nats / len(rows), rel=1e-5)
    (picture,) = classifier.glob("confusion-*.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "Confusion matrix" in said
    assert f"{100 * right / len(rows):.1f} %" in said
    assert max(map(len, said.splitlines()[:-1])) <= 80


def test_figures_do_not_depend_on_the_batch(run: Run, classifier: Path, language_model: Path) -> None:
    write_rows(Path("r.jsonl"), labelled(20))
    pairs = [{"source": a, "target": b} for a, b in zip(texts(12), texts(12, 1), strict=True)]
    write_rows(Path("t.jsonl"), pairs)
    for model, task, file in ((classifier, "classification", "r"), (language_model, "translation", "t")):
        found = []
        for size in (1, 5):
            here = [f"model.path={model}", f"task={task}", f"data.path={file}.jsonl", f"batch_size={size}"]
            run("evaluate", *here, "data=files", "max_new_tokens=8", "split=all")
            found.append(measured(model, task))  # a batch decides nothing, so it is the same entry
        assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_translation_is_measured_by_what_the_model_writes_without_seeing_the_reference(
    run: Run, language_model: Path
) -> None:
    words = ["task=translation", "data=files", "max_new_tokens=8", f"model.path={language_model}", "split=all"]
    answers = []
    for seed in (1, 2):
        references = texts(9, seed)
        pairs = [{"source": a, "target": b} for a, b in zip(texts(9), references, strict=True)]
        write_rows(Path("t.jsonl"), pairs)
        run("evaluate", *words, "data.path=t.jsonl")
        predicted = read_lines(run("predict", *words, "data.path=t.jsonl"))
        answers.append([line["prediction"] for line in predicted])
        found = measured(language_model, "translation")
        expected = CHRF().corpus_score(answers[-1], [references]).score
        assert found["translation/chrf"] == pytest.approx(expected, abs=1e-9)
        (language_model / "evaluation.json").unlink()
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1


def test_bits_per_byte_count_the_bytes_of_the_source_text(run: Run, language_model: Path) -> None:
    documents = ["to be or not to be, that is the question: übel", "arrows", " ".join(texts(20))]
    write_rows(Path("d.jsonl"), [{"text": text} for text in documents])
    words = ["task=text_generation", "data=files", "data.path=d.jsonl", "split=all", "sequence_length=32"]
    run("evaluate", f"model.path={language_model}", *words)
    trained, tokenizer = load_model(str(language_model)), tokenizer_of(language_model)
    nats, targets = 0.0, 0
    for text in documents:
        ids = [*tokenizer.begin_ids, *tokenizer.encode(text), tokenizer.end_of_text_id]
        for start in range(0, len(ids) - 1, 31):
            window = torch.tensor([ids[start : start + 32]])
            with torch.no_grad():
                logits = trained.model.head.logits(trained.model(window))[0, :-1]
            nats += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
            targets += window.shape[1] - 1
    found = measured(language_model, "text_generation")
    num_bytes = sum(len(text.encode()) for text in documents)
    assert found["text_generation/loss"] == pytest.approx(nats / targets, rel=1e-5)
    assert found["text_generation/perplexity"] == pytest.approx(math.exp(nats / targets), rel=1e-4)
    assert found["text_generation/bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_no_logits_outlive_their_batch(run: Run, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Tensor]] = []

    def watched(*given: Any) -> Tensor:
        assert [one() for one in seen if one() is not None] == []
        logits = class_logits(*given)
        seen.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(example_scores, "class_logits", watched)
    write_rows(Path("r.jsonl"), labelled(20))
    words = ["task=classification", "data=files", "data.path=r.jsonl", "batch_size=4"]
    run("evaluate", f"model.path={classifier}", *words)
    assert len(seen) == 5


def test_rows_that_cannot_be_used_are_all_named_and_nothing_is_written(run: Run, classifier: Path) -> None:
    rows: list[dict[str, Any]] = [*labelled(3), {"text": 7, "label": "neg"}, {"label": "pos"}, {"text": "to be"}]
    write_rows(Path("r.jsonl"), [{**row, "split": "test"} for row in rows])
    words = ["task=classification", "data=files", "data.path=r.jsonl"]
    said = run("evaluate", f"model.path={classifier}", *words, code=2).removeprefix("error: ").splitlines()
    assert [line[:10] for line in said] == ["r.jsonl:4:", "r.jsonl:5:", "r.jsonl:6:"]
    assert not (classifier / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["split=val"], ["split=val: the data has no such row", "split=all takes every row"]),
        (["task.labels=[neg,pos,x]"], ["task.labels names labels that", "does not know: 'x'", "not there: 'neu'"]),
        (
            ["task.label_field=text"],
            ["the rows have in the field 'text' labels that", "know: 'to be'", "not there: 'neg', 'neu', 'pos'"],
        ),
        (["task=translation"], ["is a classifier, which writes no text"]),
        (["sequence_length=65"], ["sequence_length=65: the model has 64 positions"]),
    ],
    ids=["no such row", "other labels", "another field", "another task", "too long"],
)
def test_what_does_not_fit_the_model_is_refused(run: Run, classifier: Path, words: list[str], said: list[str]) -> None:
    write_rows(Path("r.jsonl"), [{"text": "to be", "label": "pos", "split": "test"}])
    here = [f"model.path={classifier}", "task=classification", "data=files", "data.path=r.jsonl"]
    told = run("evaluate", *here, *words, code=2)
    assert [part for part in said if part not in told] == []


def test_a_prompt_that_the_model_has_not_learned_is_told(run: Run, tmp_path: Path) -> None:
    model = write_task_model(tmp_path / "tuned")
    (model / "recipe.json").write_text(json.dumps({"task": {"name": "translation", "prompt": "en: {source} de:"}}))
    write_rows(Path("t.jsonl"), [{"source": "to be", "target": "sein"}])
    words = ["task=translation", "data=files", "data.path=t.jsonl", "max_new_tokens=2", "split=all"]
    said = run("evaluate", f"model.path={model}", *words)
    assert "note: task.prompt=" in said
    assert "was fine-tuned with 'en: {source} de:'" in said


def test_a_dialogue_is_measured_on_the_assistants_turns_and_some_are_answered(run: Run, tmp_path: Path) -> None:
    model = write_task_model(tmp_path / "chat")
    turn = "{{ m.role }}\n{{ m.content }}{{ eos_token if m.role == 'assistant' }}\n"
    asks = "{% if add_generation_prompt %}assistant\n{% endif %}"
    (model / "chat_template.jinja").write_text(f"{{% for m in messages %}}{turn}{{% endfor %}}{asks}")
    answers = ["to be", "arrows or not", "that"]
    rows = [
        {"messages": [{"role": "user", "content": "suffer"}, {"role": "assistant", "content": text}], "split": "test"}
        for text in answers
    ]
    write_rows(Path("d.jsonl"), rows)
    words = ["task=dialogue", "data=files", "data.path=d.jsonl", "max_new_tokens=4", "num_samples=2"]
    said = run("evaluate", f"model.path={model}", *words)
    trained, tokenizer = load_model(str(model)), tokenizer_of(model)
    nats, targets = 0.0, 0
    for text in answers:
        asked = tokenizer.encode("user\nsuffer\nassistant\n")
        ids = tokenizer.encode(f"user\nsuffer\nassistant\n{text}")
        assert ids[: len(asked)] == asked
        whole = torch.tensor([[*ids, tokenizer.end_of_text_id]])
        with torch.no_grad():
            logits = trained.model.head.logits(trained.model(whole))[0, len(asked) - 1 : -1]
        nats += float(torch.nn.functional.cross_entropy(logits, whole[0, len(asked) :], reduction="sum"))
        targets += len(ids) + 1 - len(asked)
    found = measured(model, "dialogue")
    assert found["dialogue/loss"] == pytest.approx(nats / targets, rel=1e-5)
    assert found["dialogue/bits_per_byte"] == pytest.approx(nats / math.log(2) / len("".join(answers)), rel=1e-5)
    assert [line for line in said.splitlines() if line.startswith("right: ")] == [f"right: {a}" for a in answers[:2]]


def test_an_adapter_is_measured_as_the_model_that_it_is_merged_into(run: Run, language_model: Path) -> None:
    adapter = write_task_adapter(Path("adapter"), language_model)
    write_rows(Path("d.jsonl"), [{"text": text} for text in texts(6)])
    words = ["task=text_generation", "data=files", "data.path=d.jsonl", "split=all"]
    run("evaluate", f"model.path={language_model}", f"model.adapter={adapter}", *words)
    with_adapter = measured(language_model, "text_generation")
    (language_model / "evaluation.json").unlink()
    run("evaluate", f"model.path={language_model}", *words)
    alone = measured(language_model, "text_generation")
    assert with_adapter["text_generation/loss"] != pytest.approx(alone["text_generation/loss"], rel=1e-3)
    merged = load_model(str(language_model), adapter=str(adapter)).model
    tokenizer, nats, targets = tokenizer_of(language_model), 0.0, 0
    for text in texts(6):
        whole = torch.tensor([[*tokenizer.begin_ids, *tokenizer.encode(text), tokenizer.end_of_text_id]])
        with torch.no_grad():
            logits = merged.head.logits(merged(whole))[0, :-1]
        nats += float(torch.nn.functional.cross_entropy(logits, whole[0, 1:], reduction="sum"))
        targets += whole.shape[1] - 1
    assert with_adapter["text_generation/loss"] == pytest.approx(nats / targets, rel=1e-5)


def test_results_reach_the_wandb_run_of_the_training(run: Run) -> None:
    model = write_task_model(Path("outputs/runs/tiny/model"), labels=LABELS)
    home = model.parent
    (home / "recipe.json").write_text("{}")
    (home / "run.json").write_text(json.dumps({"wandb_run_id": "abc123"}))
    (home / "config.yaml").write_text("tracking: {mode: offline, project: p}")
    write_rows(Path("r.jsonl"), labelled(9))
    said = run("evaluate", f"model.path={model}", "task=classification", "data=files", "data.path=r.jsonl")
    assert "W&B data (offline): " in said
    (file,) = home.glob("wandb/offline-run-*/run-abc123.wandb")
    records = read_records(file)
    figures = measured(model, "classification")
    assert {name: summary_of(records)[name] for name in figures} == figures
    plots = {name for row in history_of(records) for name in row if name.startswith("classification/")}
    assert "classification/confusion_matrix_table" in {name.removesuffix("/_type") for name in plots}, plots
