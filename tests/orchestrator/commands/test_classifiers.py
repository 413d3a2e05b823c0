"""Commands that predict tokens, given a classifier, and the export of one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import NUM_TOKENS, begin_run, continue_model, random_model, write_checkpoint
from foreign_models import SHAPE, write_model

from modules.classifier import class_logits
from modules.model import GPT
from orchestrator.artifacts.models import load_model
from orchestrator.commands import chat, evaluate, explain, export, generate
from orchestrator.configuration.commands import (
    ChatConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    GenerateConfig,
)
from orchestrator.errors import UserError

LABELS = ["bad", "good | ok", "größer"]
TEXTS = ["a", "To be, or not to be", "b c"]
BODY: dict[str, Any] = {"family": "llama", "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
COMMANDS = {
    "generate": (generate, GenerateConfig, {"prompt": "x"}),
    "chat": (chat, ChatConfig, {}),
    "explain": (explain, ExplainConfig, {"prompt": "x"}),
    "evaluate": (evaluate, EvaluateConfig, {}),
}


def shape(attention: str) -> dict[str, Any]:
    return {**BODY, "classifier": {"labels": LABELS, "attention": attention}}


def exported(root: Path, attention: str) -> tuple[Path, GPT]:
    storage, model = begin_run(root, shape(attention)), random_model(shape(attention))
    write_checkpoint(storage, 10, model)
    return export_to(root, storage.url()), model


def export_to(root: Path, store: str) -> Path:
    values = {"run": {"name": "tiny"}, "storage": {"root": store}, "to": str(root / "out")}
    export.run(ExportConfig.model_validate(values))
    return root / "out"


@pytest.fixture(scope="module")
def transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers


@pytest.fixture(scope="module", params=["causal", "bidirectional"])
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("classifier"), request.param)[0]


@torch.no_grad()
def ours(model: GPT, ids: list[list[int]]) -> torch.Tensor:
    return class_logits(model, torch.tensor([number for text in ids for number in text])[None], list(map(len, ids)))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_predicts_tokens_refuses_a_classifier_and_names_predict(
    classifier: Path, tmp_path: Path, name: str
) -> None:
    command, kind, fields = COMMANDS[name]
    fields = {**fields, "model": {"path": str(classifier)}}
    if "storage" in kind.model_fields:
        fields["storage"] = {"root": str(tmp_path)}
    with pytest.raises(UserError) as refused:
        command.run(kind.model_validate(fields))
    assert str(refused.value) == (
        f"model.path={classifier}: is a classifier, which predicts labels and no tokens; use it with orchestrator "
        "predict, or name a language model"
    )
    assert not list(tmp_path.iterdir())


def test_an_export_classifies_in_transformers_as_in_ours(
    transformers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = exported(tmp_path, "causal")
    assert f'try it: orchestrator predict model.path={folder} text="a text"' in capsys.readouterr().out
    classify = transformers.pipeline("text-classification", model=str(folder))
    found = classify(TEXTS, top_k=None, batch_size=3)
    ids = classify.tokenizer(TEXTS).input_ids
    assert ids == [load_model(str(folder)).tokenizer.prompt_ids(text) for text in TEXTS]
    for scores, expected in zip(found, ours(model, ids).softmax(-1).tolist(), strict=True):
        assert {score["label"]: score["score"] for score in scores} == pytest.approx(
            dict(zip(LABELS, expected, strict=True)), abs=1e-5
        )
    again = load_model(str(folder)).model
    assert torch.equal(ours(again, ids), ours(model, ids))
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["pipeline_tag"], front["library_name"]) == ("text-classification", "transformers")
    assert "A text classifier of " in card
    assert "| labels | `bad`, `good \\| ok`, `größer` |" in card
    assert 'pipeline("text-classification", model=folder)' in card


def test_an_export_that_transformers_cannot_compute_says_so_and_is_read_back(
    transformers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = exported(tmp_path, "bidirectional")
    said, card = capsys.readouterr().out, (folder / "README.md").read_text()
    for text in (said, card):
        assert "`transformers` has no class that computes this, so it refuses the folder" in text
        assert "orchestrator predict model.path=" in text
    assert "library_name" not in card.split("---\n")[1]
    assert "transformers import" not in card
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS).input_ids
    assert torch.equal(ours(load_model(str(folder)).model, ids), ours(model, ids))


@pytest.mark.parametrize(
    ("named", "number", "name"),
    [
        ({}, 2, "</s>"),
        ({"pad_token": "<unk>", "padding_side": "left"}, 0, "<unk>"),
        ({"pad_token": "[missing]"}, 2, "</s>"),
    ],
)
def test_padding_is_the_tokenizers_own_token_or_else_the_end_token_for_model_and_tokenizer_alike(
    transformers: Any, tmp_path: Path, named: dict[str, str], number: int, name: str
) -> None:
    base = tmp_path / "base"
    rows = write_model(base, "llama2", end=2, pad_token_id=-1).vocab_size
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **named}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    config = SHAPE.model_copy(update={"classifier": {"labels": LABELS}})
    config = type(SHAPE).model_validate(config.model_dump(warnings=False))
    model = GPT(config, rows).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(0))
    folder = export_to(tmp_path, continue_model(tmp_path, base, model).url())
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (peer.config.pad_token_id, tokenizer.pad_token, tokenizer.pad_token_id) == (number, name, number)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    assert batch.input_ids[0, -1] == number
    expected = ours(model, [ids[mask.bool()].tolist() for ids, mask in zip(*batch.values(), strict=True)])
    assert (peer.eval()(**batch).logits - expected).abs().max() < 1e-5
    assert rows != NUM_TOKENS
