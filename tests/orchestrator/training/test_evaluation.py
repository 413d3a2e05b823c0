"""Compressors beside a model on the same text."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_models import write_model
from foreign_tokenizers import CORPUS, HARD

from modules.config import DataConfig, TokenizerConfig
from modules.data.prepare import prepare_tokens
from modules.data.shards import TokenData, TokenStream
from modules.data.stdlib import LocalFile
from orchestrator.artifacts.models import TrainedModel, load_model
from orchestrator.training import evaluation
from orchestrator.training.evaluation import Windows, compression

TEXTS = (*CORPUS, *HARD)


@pytest.fixture
def trained(tmp_path: Path) -> TrainedModel:
    write_model(tmp_path / "model", "llama2", end=2)
    return load_model(str(tmp_path / "model"))


@pytest.fixture
def stream(trained: TrainedModel, tmp_path: Path) -> TokenStream:
    rows = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_bytes(rows)
    (tmp_path / "out").mkdir()
    tokenizer = TokenizerConfig(kind="file", path="given.json", end_token="</s>")
    content = trained.files["tokenizer.json"]
    source = [LocalFile(str(tmp_path), "a.jsonl", len(rows))]
    prepare_tokens(source, DataConfig(val_fraction=0, num_processes=1), tokenizer, content, tmp_path / "out", print)
    return TokenData.open(tmp_path / "out").train


@pytest.mark.parametrize("block_tokens", [2**16, 50])
def test_compressors_pack_the_text_that_was_given(
    block_tokens: int, trained: TrainedModel, stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_BLOCK_TOKENS", block_tokens)
    text = "".join(TEXTS).encode()
    found = compression(trained, Windows(stream, len(stream), 1, 1))
    assert found["gzip -9"] == pytest.approx(8 * len(gzip.compress(text, 9)) / len(text))
    assert found["xz -9"] == pytest.approx(8 * len(lzma.compress(text, preset=9)) / len(text))


def test_only_a_block_of_tokens_is_in_memory_and_no_more_text_is_read_than_is_packed(
    trained: TrainedModel, stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Watched(TokenStream):
        def fill(self, starts: np.ndarray, length: int, out: np.ndarray) -> None:
            asked.append(length)
            super().fill(starts, length, out)

    watched: Any = Watched(stream._shards, stream.document_starts, stream._token_bytes)
    monkeypatch.setattr(evaluation, "_BLOCK_TOKENS", 50)
    monkeypatch.setattr(evaluation, "_COMPRESSED_BYTES", 1000)
    found = compression(trained, Windows(watched, len(stream), 1, 1))
    assert max(asked) == 50
    assert sum(asked) < len(stream) / 2
    assert found.keys() == {"gzip -9", "xz -9"}


def test_another_text_is_not_packed(trained: TrainedModel, stream: TokenStream) -> None:
    unknown = TokenStream(stream._shards, stream.document_starts)
    assert compression(trained, Windows(unknown, len(stream), 1, 1)) == {}


@pytest.mark.parametrize(
    ("precision", "weights", "products"),
    [
        ("32", torch.float32, torch.float32),
        ("bf16", torch.float32, torch.bfloat16),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("16", torch.float32, torch.float32),
        ("16-true", torch.float32, torch.float32),
    ],
)
def test_a_model_computes_with_the_precision_of_its_training(
    precision: str, weights: torch.dtype, products: torch.dtype, tmp_path: Path
) -> None:
    write_model(tmp_path / "model", "llama2", end=2)
    (tmp_path / "model/recipe.json").write_text(json.dumps({"training": {"precision": precision}}))
    trained = load_model(str(tmp_path / "model"))
    if trained.device.type == "cuda" and precision.startswith("16"):
        weights = torch.float16 if precision == "16-true" else weights
        products = torch.float16
    ids = torch.tensor([[1, 2, 3]], device=trained.device)
    with trained.precision(), torch.no_grad():
        assert trained.model.blocks[0].mlp.up(trained.model.token_embedding(ids)).dtype == products
    assert {parameter.dtype for parameter in trained.model.parameters()} == {weights}
