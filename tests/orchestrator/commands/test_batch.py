"""`orchestrator batch` shows what a recorded training has really seen, and computes its losses."""

import json
import math
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from mixture_texts import write_texts
from planted_faults import PlantedLoss, before_each_micro_batch
from task_models import write_rows, write_task_model

from modules.config import TokenizerConfig
from modules.data.tokenizer import build_tokenizer
from orchestrator.cli import main
from orchestrator.runs.events import EventLog
from orchestrator.runs.history import read_history
from orchestrator.storage.store import Storage

pytestmark = pytest.mark.slow
STEPS, BATCH = 8, 12
SOURCES = (
    "data.sources=[{name: web, path: web.jsonl, weight: 0.5}, {name: code, path: code.txt, weight: 0.25, "
    "split: position}, {name: law, path: law.jsonl, text_field: body, weight: 0.25}]"
)
PHASES = (
    "objective.phases=[{weights: {clm: 1, mlm: 1}, fraction: 0.5}, "
    "{weights: {clm: 1, mlm: 1}, fraction: 0.5, data_weights: {web: 1, law: 3}}]"
)
COMMAND = (
    *("pretrain", SOURCES, PHASES, "run.name=mixed", "data.val_fraction=0.2", "data.num_processes=1", "tokenizer=byte"),
    *(
        "model.num_layers=1",
        "model.num_heads=2",
        "model.hidden_dim=16",
        "model.max_positions=16",
        "optimizer.warmup_steps=2",
    ),
    *(f"training.num_steps={STEPS}", "training.sequence_length=16", f"training.global_batch_size={BATCH}"),
    *(
        "optimizer.warmup_steps=2",
        "training.attention_scope=document",
        "training.val_batches=1",
        "training.log_interval_steps=1",
    ),
    *("guard.max_consecutive=2", "checkpoint.interval_steps=1", "checkpoint.keep_last=20", "tracking.mode=disabled"),
)
BAD_DATA = PlantedLoss((4, 5), factor=math.nan, with_data=True)
"""Steps 5 and 6 are bad: the run goes back to step 4, and on with data step 6."""
Seen = dict[int, dict[int, list[int]]]
"""By the step, counted from 1, and the sample: the tokens that the model has read."""


def recorded(seen: Seen) -> Any:
    def note(module: Any, batch: Any) -> None:
        for sample, tokens, target in zip(batch["sample_ids"], batch["input_ids"], batch["targets"], strict=True):
            seen[module.step + 1][int(sample)] = [*tokens.tolist(), int(target[-1])]

    return before_each_micro_batch(note)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seen]:
    """Return a folder with a finished run on a mixture, which went back once, and what its steps saw in the end."""
    folder, seen = tmp_path_factory.mktemp("batch"), defaultdict(dict)
    write_texts(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)

        def begun_anew(module: Any, batch: Any) -> None:
            for step in [step for step in seen if step > module.step + 1]:
                del seen[step]
            if batch["step"] != module.step + module.data_offset:
                raise AssertionError("of another data step")
            seen[module.step + 1] = {}

        with recorded(seen), before_each_micro_batch(begun_anew), BAD_DATA(0):
            assert main(COMMAND) == 0
    return folder, seen


@pytest.fixture(autouse=True)
def _there(trained: tuple[Path, Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained[0])


def lines(*words: str) -> list[dict[str, Any]]:
    """Return the lines that the command writes."""
    file = Path("found.jsonl")
    file.unlink(missing_ok=True)
    assert main(("batch", "run.name=mixed", f"output={file}", *words)) == 0
    return [json.loads(line) for line in file.read_text().splitlines()]


def source_rows(source: str, file: str) -> list[str]:
    if source == "code":
        return [Path(file).read_text()]
    field = "text" if source == "web" else "body"
    return [json.loads(line)[field] for line in Path(file).read_text().splitlines()]


def test_every_step_shows_what_the_training_has_seen(trained: tuple[Path, Seen]) -> None:
    tokenizer, seen = build_tokenizer(TokenizerConfig(kind="byte"), lambda: iter(()), None), trained[1]
    found = lines(f"step=1-{STEPS}")
    assert len(found) == STEPS * BATCH
    assert {line["step"] for line in found} == set(seen) == set(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        assert {line["sample"] for line in found if line["step"] == step} == seen[step].keys()
    for line in found:
        tokens = seen[line["step"]][line["sample"]]
        assert line["num_tokens"] == len(tokens) == sum(one["num_tokens"] for one in line["documents"])
        assert "".join(one["text"] for one in line["documents"]) == tokenizer.decode(tokens)
        for one in line["documents"]:
            whole = source_rows(line["source"], one["file"])[one["row"]]
            assert one["text"] in whole
            assert one["is_begun"] or whole.startswith(one["text"])
    assert {line["source"] for line in found} == {"web", "code", "law"}
    assert {line["source"] for line in found if line["step"] > STEPS / 2 + 1} <= {"web", "law"}


def test_losses_of_a_step_are_those_of_its_training(trained: tuple[Path, Seen]) -> None:
    history = {entry.step: entry.metrics for entry in read_history(Storage("outputs"), "mixed")}
    for step in (2, 8):  # before and after the run went back
        found = lines(f"step={step}", f"checkpoint={step - 1}")
        for name in ("clm", "mlm"):
            mean = sum(line["losses"][name] for line in found) / BATCH
            assert mean == pytest.approx(history[step][f"train/loss_{name}"], rel=1e-5)
        assert sum(line["loss"] for line in found) / BATCH == pytest.approx(history[step]["train/loss"], rel=1e-5)
        losses = [line["loss"] for line in found]
        assert losses == sorted(losses, reverse=True)


def test_skip_names_the_command_that_shows_what_was_skipped(
    trained: tuple[Path, Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    skips = EventLog(Storage("outputs"), "runs/mixed").read("skip")
    assert [event["samples"] for event in skips] == [[48, 59], [60, 71]]
    _, *words = skips[0]["command"].split()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("step 5: samples 48 to 59, clm, mlm (phase 2 of 2), 1 worker")
    assert "the guard skipped it: the loss is not finite" in said
    assert "undone by a rollback: the step 5 that lasts was trained on samples 72 to 83" in said
    assert main(("batch", "run.name=mixed", "step=5", "sample=72")) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "step 5: samples 72 to 83, clm, mlm (phase 2 of 2), 1 worker\n  trained before on samples 48"
    )
    assert re.search(r"sample 72, worker 0, source (web|law), position \d+, 17 tokens\n", said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step=9"], "step=9: run mixed has not come so far; it has reached step 8"),
        (["step=0"], "step=0: steps are counted from 1"),
        (["step=3-1"], "step=3-1: ends before it begins; write 1-3"),
        (["step=first"], "step=first: must be a number, or the first and the last as in 100-103"),
        ([], "step: must be given, a step of the run; or sample, numbers of samples"),
        (["sample=999"], "sample=999: run mixed has not come so far; it has used samples 0 to 119"),
        (["step=2", "sample=0"], "sample=0: step 2 has the samples 12-23"),
        (["step=2", "worker=1"], "worker=1: step 2 was trained by 1 worker, number 0"),
        (
            ["step=2", "checkpoint=9"],
            "checkpoint=9: run mixed has no finished checkpoint after it; there are 1, 2, 3,",
        ),
        (["step=2", "run.name=mixd"], "run.name=mixd: no such run in "),
        (["step=2", "output=web.jsonl"], "web.jsonl: exists already, and is not replaced"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = [] if any(word.startswith("run.name") for word in words) else ["run.name=mixed"]
    assert main(("batch", *name, *words)) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert message in told.err


def test_data_that_is_gone_is_named_with_its_source_and_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    mixture = json.loads(Path("outputs/runs/mixed/recipe.json").read_bytes())["data"]
    law = json.loads((Path("outputs") / mixture / "manifest.json").read_bytes())["recipe"]["sources"]["law"]
    folder = Path("outputs") / law
    folder.rename("aside")
    try:
        assert main(("batch", "run.name=mixed", "step=2")) == 2
    finally:
        Path("aside").rename(folder)
    remedy = "restore that folder, or run its `pretrain` again, which prepares it anew"
    told = f"source law: {folder.absolute()}: the data that run mixed was trained on is not there; {remedy}\n"
    assert capsys.readouterr().err == f"error: {told}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_model(tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("task", ["translation", "classification"])
def test_step_of_a_task_shows_its_examples_with_rows_answers_and_losses(
    task: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng, rows = random.Random(1), list[dict[str, str]]()
    for _ in range(40):
        words = rng.choices(["to", "be", "or", "not"], k=rng.randint(1, 6))
        label = "short" if len(words) < 4 else "long"
        rows.append(
            {"text": " ".join(words), "source": " ".join(words), "target": " ".join(words[::-1]), "label": label}
        )
    write_rows(Path("rows.jsonl"), rows)
    words = (
        *("finetune", f"task={task}", f"model.path={base}", "data=files", "data.path=rows.jsonl", "run.name=mixed"),
        *(
            "finetune.num_epochs=null",
            "finetune.keep=last",
            "finetune.warmup_fraction=null",
            "optimizer.warmup_steps=1",
        ),
        *(
            "training.num_steps=3",
            "training.sequence_length=32",
            "training.global_batch_size=4",
            "tracking.mode=disabled",
        ),
        *("training.log_interval_steps=1", "checkpoint.interval_steps=1", "optimizer.warmup_steps=1"),
        "tracking.mode=disabled",
    )
    assert main(words) == 0
    history = {entry.step: entry.metrics for entry in read_history(Storage("outputs"), "mixed")}
    found = lines("step=3", "checkpoint=2")
    assert len(found) == 4
    for one in (one for line in found for one in line["documents"]):
        row = rows[one["row"]]
        assert (one["file"], one["target"]) == ("rows.jsonl", row["target" if task == "translation" else "label"])
        assert row["text"] in one["text"]
    name = "clm" if task == "translation" else "classification"
    totals = [(line["losses"][name] * line["num_targets"][name], line["num_targets"][name]) for line in found]
    mean = sum(total for total, _ in totals) / sum(number for _, number in totals)
    assert mean == pytest.approx(history[3][f"train/loss_{name}"], rel=1e-5)
