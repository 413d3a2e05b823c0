"""`orchestrator batch worker=K` shows what worker K was given, in a run whose workers and micro-batches changed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jobs import begun_job
from planted_faults import Planted, PlantedCrash, before_each_micro_batch
from tiny_run import write_text
from worker_pool import Pools

from modules.config import TokenizerConfig
from modules.data.tokenizer import build_tokenizer
from orchestrator.cli import main
from orchestrator.configuration.commands import PretrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.long]
STEPS, BATCH = 8, 12
Samples = dict[int, str]
"""The text of each sample by its number."""


@dataclass(frozen=True)
class SeenTokens:
    """Records what the model of each rank is given, in one file per rank in `folder`."""

    folder: Path

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        with open(self.folder / f"{rank}.jsonl", "a", encoding="utf-8") as file:

            def note(module: Any, batch: Any) -> None:
                for sample, tokens, target in zip(
                    batch["sample_ids"].tolist(), batch["input_ids"].tolist(), batch["targets"].tolist(), strict=True
                ):
                    file.write(json.dumps([module.step + 1, sample, [*tokens, target[-1]]]) + "\n")

            with before_each_micro_batch(note):
                yield

    def read(self, step: int, rank: int) -> Samples:
        decode = build_tokenizer(TokenizerConfig(kind="byte"), lambda: iter(()), None).decode
        lines = map(json.loads, (self.folder / f"{rank}.jsonl").read_text(encoding="utf-8").splitlines())
        return {sample: decode(tokens) for of, sample, tokens in lines if of == step}


@dataclass(frozen=True)
class Part:
    """A run's way with so many workers, which ends by a crash before a step, or with the run."""

    workers: int
    micro_batch_size: int
    lasting: range
    """Steps of which no later part has trained one."""
    crash_before: int | None


PARTS = (Part(2, 3, range(1, 3), 4), Part(3, 1, range(3, 7), 7), Part(1, 6, range(7, STEPS + 1), None))
"""Saved every second step, so the first part trains step 3 in vain."""


def train(part: Part, pools: Pools, root: Path, text: Path, seen: SeenTokens) -> None:
    config = PretrainConfig.model_validate(
        {
            "run": {"name": "resized"},
            "storage": {"root": str(root)},
            "data": {"source": "files", "path": str(text), "split": "position", "val_fraction": 0.0},
            "tokenizer": {"kind": "byte"},
            "model": {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_positions": 16},
            "optimizer": {"warmup_steps": 2},
            "training": {
                "num_steps": STEPS,
                "sequence_length": 16,
                "global_batch_size": BATCH,
                "micro_batch_size": part.micro_batch_size,
            },
            "strategy": {"name": "single" if part.workers == 1 else "ddp"},
            "cluster": {"num_workers": part.workers},
            "checkpoint": {"mode": "sync", "interval_steps": 2},
            "tracking": {"mode": "disabled"},
        }
    )
    crash = [] if part.crash_before is None else [PlantedCrash(part.crash_before - 1)]
    outcome = pools[part.workers].train(begun_job(config), Planted((*crash, seen)))
    assert ("planted crash" in (outcome.error or "")) == bool(crash), outcome.error


def shown(root: Path, steps: range, worker: int) -> dict[int, Samples]:
    """Return what the command shows of steps, by the step."""
    file = root / "found.jsonl"
    file.unlink(missing_ok=True)
    words = ("run.name=resized", f"storage.root={root}", f"output={file}")
    assert main(("batch", *words, f"step={steps[0]}-{steps[-1]}", f"worker={worker}")) == 0
    found: dict[int, Samples] = {step: {} for step in steps}
    for line in map(json.loads, file.read_text().splitlines()):
        assert line["worker"] == worker
        found[line["step"]][line["sample"]] = "".join(one["text"] for one in line["documents"])
    return found


def test_each_worker_of_a_resized_run_is_shown_with_what_its_model_was_given(tmp_path: Path, pools: Pools) -> None:
    text, root = write_text(tmp_path / "text.txt", num_words=500), tmp_path / "outputs"
    given: dict[tuple[int, int], Samples] = {}
    for number, part in enumerate(PARTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        train(part, pools, root, text, SeenTokens(folder))
        for step in part.lasting:
            of_step = {rank: SeenTokens(folder).read(step, rank) for rank in range(part.workers)}
            assert sorted(sample for one in of_step.values() for sample in one) == [
                *range((step - 1) * BATCH, step * BATCH)
            ]
            given |= {(step, rank): samples for rank, samples in of_step.items()}
    for part in PARTS:
        for worker in range(part.workers):
            for step, samples in shown(root, part.lasting, worker).items():
                assert samples == given[step, worker], (step, worker)
    # one question across all sizes
    assert shown(root, range(1, STEPS + 1), 0) == {step: given[step, 0] for step in range(1, STEPS + 1)}
