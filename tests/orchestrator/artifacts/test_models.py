"""Models prepared for generation compute what the plain ones do."""

from pathlib import Path

import pytest
import torch
from published_models import write_published

from orchestrator.artifacts.models import TrainedModel, load_model
from orchestrator.commands import chat
from orchestrator.configuration.commands import ChatConfig
from orchestrator.display.units import count

IDS = torch.arange(40).view(2, 20)


@torch.no_grad()
def logits(trained: TrainedModel) -> torch.Tensor:
    with trained.precision():
        return trained.model.head.logits(trained.model(IDS))


@pytest.fixture(params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    write_published(tmp_path / "model", request.param)
    return str(tmp_path / "model")


@pytest.mark.parametrize("prepack", [True, False])
def test_a_prepared_model_has_the_logits_of_the_plain_one(folder: str, prepack: bool) -> None:
    prepared = load_model(folder).prepared(None, prepack)
    torch.testing.assert_close(logits(prepared), logits(load_model(folder)), rtol=0, atol=1e-5)


def test_bfloat16_may_be_asked_for_a_model_of_others_and_is_that_of_autocast(folder: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(load_model(folder))
    assert torch.equal(logits(load_model(folder).prepared("bf16", prepack=False)), expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "untied"])
def test_chat_names_all_parameters_of_a_prepared_model(tmp_path: Path, kind: str) -> None:
    peer = write_published(tmp_path / "model", kind)
    config = ChatConfig.model_validate({"model": {"path": str(tmp_path / "model")}})
    title = chat._title(config, load_model(config.model.path).prepared(None, prepack=True))
    assert f": {count(sum(parameter.numel() for parameter in peer.parameters()))} parameters" in title
