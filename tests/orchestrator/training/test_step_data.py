"""A step's data is found at any step number, by as many requests whatever the size of the data."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules.config import DataConfig, TokenizerConfig
from modules.data import digested_file
from modules.data.sampler import WindowOrder
from orchestrator.artifacts.prepared_data import DataRequirements, prepared_data
from orchestrator.cli import main
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.runs import run as runs
from orchestrator.runs.events import WORKER_KINDS, EventLog
from orchestrator.runs.run import Run
from orchestrator.storage.store import Storage

pytestmark = pytest.mark.slow
STEP, BATCH, LENGTH, SEED = 123_456, 4, 64, 1234
DOCUMENT_TOKENS = 32
SAMPLE = (STEP - 1) * BATCH + 1


def planted_row(num_documents: int) -> int:
    """Return the row of a document that begins in the window of SAMPLE."""
    order = WindowOrder(num_documents * DOCUMENT_TOKENS, LENGTH, SEED)
    return int(order.starts(np.array([SAMPLE]))[0]) // DOCUMENT_TOKENS + 1


def write_text(folder: Path, num_documents: int) -> Path:
    width, planted = DOCUMENT_TOKENS - 1, planted_row(num_documents)  # a token ends each document
    texts = [f"document {n}".ljust(width, ".") for n in range(num_documents)]
    texts[planted] = "who planted this document here?"
    assert len(texts[planted]) == width
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def begun(root: str, text: Path) -> None:
    """Leave what a training leaves that was stopped after step 130,000."""
    data = DataConfig(source="files", path=(str(text),), val_fraction=0, num_processes=1)
    training = {"num_steps": 200_000, "sequence_length": LENGTH, "global_batch_size": BATCH}
    config = PretrainConfig.model_validate(
        {"run": {"name": "long", "seed": SEED}, "storage": {"root": root}, "data": data, "training": training}
    )
    storage = Storage(root)
    tokenizer = TokenizerConfig(kind="byte")
    name = prepared_data(storage, data, tokenizer, DataRequirements(), lambda total: lambda *done: None)
    run = Run("long", runs.training_recipe(config, name), "0")
    runs.begin(storage, run, config)
    log = EventLog(storage, run.folder, WORKER_KINDS)
    log.record({"kind": "begin", "step": 0, "world_size": 2, "micro_batch_size": 1})
    log.record({"kind": "stop", "step": 130_000, "signal": 15, "text": "stopped"})


def noted_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    def noting(name: str) -> Any:
        original = getattr(Storage, name)

        def noted(*arguments: Any, **settings: Any) -> Any:
            found.append(name)
            return original(*arguments, **settings)

        return noted

    for name in ("read_range", "read_bytes", "open_read", "list", "exists", "num_bytes", "download"):
        monkeypatch.setattr(Storage, name, noting(name))
    return found


def requests_for_the_step(folder: Path, num_documents: int, capsys: pytest.CaptureFixture[str]) -> int:
    """Return the number of requests for what the planted document is found by."""
    folder.mkdir()
    root = f"memory://{folder.parent.name}-{num_documents}"
    begun(root, write_text(folder, num_documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        requests = noted_requests(patch)
        assert main(("batch", "run.name=long", f"step={STEP}", f"storage.root={root}")) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"step {STEP:,}: samples {SAMPLE - 1} to {SAMPLE + 2}, clm, 2 workers\n")
    sample = re.search(rf"sample {SAMPLE}, worker 1, .*?\n\n", said, re.DOTALL)
    assert sample is not None
    assert re.search(rf"^text\.jsonl +{planted_row(num_documents)} +32  who planted this", sample[0], re.MULTILINE)
    return len(requests)


def test_planted_document_is_found_by_as_many_requests_whatever_the_size_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(digested_file, "CHUNK_BYTES", 1024)
    small, large = (requests_for_the_step(tmp_path / str(number), number, capsys) for number in (1_000, 8_000))
    # each of four samples looks its first document up in a table by halving: 8 times the text takes 3 steps more
    assert large <= small + 4 * 3
    assert small < 80
