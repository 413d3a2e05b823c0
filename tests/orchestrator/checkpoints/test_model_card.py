"""What the card of a model says about the model from which its training went on."""

from typing import Any

import pytest

from modules.model_config import ModelConfig
from orchestrator.checkpoints.model_card import Card
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.runs.run import training_recipe


def text_of(base: dict[str, Any] | None) -> str:
    return Card(
        title="mine",
        step=5,
        model=ModelConfig(),
        vocab_size=300,
        num_parameters=1000,
        dtype="float32",
        is_rounded=False,
        recipe=training_recipe(PretrainConfig(), "data/stdlib-0", base),
        num_tokens=1234,
        data=None,
        metrics={},
        license=None,
    ).text()


@pytest.mark.parametrize(
    ("base", "front", "said"),
    [
        (None, "", ""),
        ({"hub": "a/b", "commit": "01ab"}, "base_model: a/b\n", ", begun from the weights of a/b at commit 01ab"),
        ({"committed": "77"}, "", ", begun from the weights of another model (fingerprint `"),
    ],
)
def test_card_names_the_base_model_where_others_can_find_it(base: Any, front: str, said: str) -> None:
    text = text_of(base)
    assert front in text
    assert ("base_model" in text) == bool(front)
    assert f"of gpt-orchestrator{said}" in text
    assert ("begun from" in text) == bool(said)
