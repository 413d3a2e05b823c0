"""A training whose batches are packed for their way to a device ends in the same weights."""

from functools import partial
from pathlib import Path

import pytest
from tiny_run import arguments, write_text

from modules.data.ahead import Packed
from orchestrator.cli import main
from orchestrator.training import fit

DOCUMENTS = ("training.attention_scope=document", "training.position_scope=document")


def test_packed_batches_train_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_text(tmp_path / "text.txt")

    def trained(name: str) -> bytes:
        mixed = "objective.phases=[{weights:{clm:0.5,mlm:0.5},fraction:1.0}]"
        given = ("training.num_steps=3", "tracking.mode=disabled", *DOCUMENTS, mixed)
        assert main(arguments(text, tmp_path / name, *given)) == 0
        (weights,) = (tmp_path / name).rglob("model.safetensors")
        return weights.read_bytes()

    expected, packed = trained("as-they-are"), []

    def pack(batch: dict) -> Packed:
        packed.append(batch)
        return Packed.of(batch, pinned=False)

    monkeypatch.setattr(fit, "_for_device", lambda runtime: partial(pack))
    assert trained("packed") == expected
    assert len(packed) >= 3
