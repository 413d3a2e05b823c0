"""Classifiers beside `transformers`' own: exported, imported, and fed with padding on either side."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modules.classifier import class_logits
from modules.errors import InputError
from modules.huggingface.export import save_huggingface
from modules.huggingface.folder import LocalFolder, from_huggingface
from modules.huggingface.weights import Range, Weights, load_huggingface
from modules.model import GPT
from modules.model_config import ClassifierConfig, ModelConfig

VOCAB, PAD, END = 75, 0, 3
LABELS = ("bad", "so-so", "gut")
LENGTHS = (1, 4, 9, 17, 9)
LLAMA: dict[str, Any] = {"family": "llama", "mlp_dim": 56, "num_kv_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"mlp_dim": 56},
    "llama": {**LLAMA, "tie_embeddings": False},
    "mistral": {**LLAMA, "hidden_dim": 36, "num_heads": 8, "head_dim": 8},
    "qwen2": {**LLAMA, "qkv_bias": True},
    "qwen3": {**LLAMA, "query_key_norm": True, "head_dim": 16, "tie_embeddings": False},
}
CLASSES = {
    "gpt2": "GPT2ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
}
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers


def shape_of(name: str, attention: str | None = "causal") -> ModelConfig:
    classifier = None if attention is None else {"labels": LABELS, "attention": attention}
    shape = {"num_layers": 2, "num_heads": 4, "hidden_dim": 32, "max_positions": 40, "vocab_size": VOCAB}
    return ModelConfig.model_validate({**shape, **FAMILIES[name], "classifier": classifier})


def saved(folder: Path, config: ModelConfig, padding_id: int = PAD, **save: Any) -> GPT:
    """Write a model and return it."""
    model = drawn(GPT(config, VOCAB))
    save_huggingface(folder, config, VOCAB, model.named_parameters(), end_ids=[END], padding_id=padding_id, **save)
    return model


def drawn(model: Any) -> Any:
    """Return a model with weights so large that every part of it matters."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, float(is_scale), 0.15)
    return model.eval()


def opened(transformers: Any, folder: Path) -> Any:
    peer, report = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return peer.eval()


def texts(last: int | None = None) -> list[Tensor]:
    """Return texts without the padding or the end token, or with one of them at their end."""
    generator = torch.Generator().manual_seed(2)
    found = [torch.randint(END + 1, VOCAB, (length,), generator=generator) for length in LENGTHS]
    return found if last is None else [torch.cat([ids, torch.tensor([last])]) for ids in found]


@torch.no_grad()
def ours(model: GPT, parts: Sequence[Tensor]) -> Tensor:
    return class_logits(model, torch.cat(list(parts))[None], [len(part) for part in parts])


@torch.no_grad()
def alone(peer: Any, parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([peer(part[None]).logits for part in parts])


@torch.no_grad()
def padded(peer: Any, parts: Sequence[Tensor], side: str, pad: int = PAD, *, real_positions: bool = False) -> Tensor:
    """Return the logits of a batch in `transformers`, padded on one side."""
    longest = max(map(len, parts))
    ids, mask = torch.full((len(parts), longest), pad), torch.zeros(len(parts), longest, dtype=torch.int64)
    for row, part in enumerate(parts):
        place = slice(0, len(part)) if side == "right" else slice(longest - len(part), longest)
        ids[row, place], mask[row, place] = part, 1
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)} if real_positions else {}
    return peer(ids, attention_mask=mask, **positions).logits


def difference(left: Tensor, right: Tensor) -> float:
    assert left.shape == right.shape
    assert left.std() > 0.2
    return float((left - right).abs().max())


@every_family
@pytest.mark.parametrize("max_bytes", [10**9, 20_000])
def test_an_export_has_its_logits_in_transformers_alone_and_padded_on_either_side(
    transformers: Any, tmp_path: Path, name: str, max_bytes: int
) -> None:
    model = saved(tmp_path, shape_of(name), max_shard_bytes=max_bytes)
    peer = opened(transformers, tmp_path)
    assert type(peer).__name__ == CLASSES[name]
    assert peer.config.id2label == dict(enumerate(LABELS))
    assert peer.config.label2id["gut"] == 2
    assert peer.config.num_labels == 3
    expected = ours(model, texts())
    assert difference(alone(peer, texts()), expected) < 1e-5
    assert difference(padded(peer, texts(), "right"), expected) < 1e-5
    # its GPT-2 counts positions from the row's beginning, over the padding, unless it is given them
    left = padded(peer, texts(), "left")
    assert (difference(left, expected) < 1e-5) == (name != "gpt2")
    assert difference(padded(peer, texts(), "left", real_positions=True), expected) < 1e-5


@every_family
def test_padding_that_is_the_end_token_changes_no_text_that_does_not_end_in_it(
    transformers: Any, tmp_path: Path, name: str
) -> None:
    model = saved(tmp_path, shape_of(name), padding_id=END)
    peer = opened(transformers, tmp_path)
    assert difference(padded(peer, texts(), "right", END), ours(model, texts())) < 1e-5
    assert difference(padded(peer, texts(), "left", END, real_positions=True), ours(model, texts())) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_end_token_that_is_also_padding_is_the_last_token_for_us_and_is_passed_over_by_transformers(
    transformers: Any, tmp_path: Path, name: str
) -> None:
    (tmp_path / "end").mkdir()
    (tmp_path / "other").mkdir()
    model = saved(tmp_path / "end", shape_of(name), padding_id=END)
    saved(tmp_path / "other", shape_of(name), padding_id=PAD)
    peer, other = opened(transformers, tmp_path / "end"), opened(transformers, tmp_path / "other")
    with_end = ours(model, texts(END))
    # the same weights with another padding token tell what is right
    assert difference(alone(other, texts(END)), with_end) < 1e-5
    assert difference(padded(other, texts(END), "right"), with_end) < 1e-5
    # where it is the padding token, transformers pools the token before it, and nothing else changes
    assert difference(alone(peer, texts(END)), ours(model, texts())) < 1e-5
    assert difference(with_end, ours(model, texts())) > 0.1


@every_family
def test_an_import_has_the_logits_of_transformers(transformers: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "ours").mkdir()
    saved(tmp_path / "ours", shape_of(name))
    settings = json.loads((tmp_path / "ours/config.json").read_text())
    del settings["id2label"], settings["label2id"], settings["problem_type"]
    config = transformers.AutoConfig.for_model(**settings, num_labels=4)
    peer = drawn(transformers.AutoModelForSequenceClassification.from_config(config))
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert json.loads((tmp_path / "theirs/config.json").read_text())["model_type"] == name
    model = load_huggingface(LocalFolder(tmp_path / "theirs")).eval()
    assert model.config.classifier == ClassifierConfig(labels=("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"))
    assert difference(ours(model, texts()), alone(peer, texts())) < 1e-5


@every_family
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_an_export_read_back_is_the_same_model(tmp_path: Path, name: str, attention: str) -> None:
    config = shape_of(name, attention)
    model = saved(tmp_path, config, max_shard_bytes=20_000)
    again = load_huggingface(LocalFolder(tmp_path)).eval()
    assert again.config == config
    assert torch.equal(ours(again, texts()), ours(model, texts()))
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    assert not (tmp_path / "generation_config.json").exists()


@every_family
@pytest.mark.parametrize("max_bytes", [10**9, 20_000])
def test_a_bidirectional_classifier_is_opened_by_no_class_of_transformers(
    transformers: Any, tmp_path: Path, name: str, max_bytes: int
) -> None:
    saved(tmp_path, shape_of(name, "bidirectional"), max_shard_bytes=max_bytes)
    for auto in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"):
        with pytest.raises(ValueError, match="model type `gpt_orchestrator_bidirectional_classifier`"):
            getattr(transformers, auto).from_pretrained(tmp_path)
    # a class that is named by the user does not look at the model_type
    with pytest.raises(OSError, match="no file named model.safetensors"):
        getattr(transformers, CLASSES[name]).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"architectures": ["GPT2ForTokenClassification"]}, "architectures is 'GPT2ForTokenClassification'"),
        ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}, "architectures is 'GPT2DoubleHeadsModel'"),
        ("llama", {"architectures": ["LlamaForQuestionAnswering"]}, "architectures is 'LlamaForQuestionAnswering'"),
        ("qwen2", {"architectures": ["Qwen2ForRewardModel"]}, "architectures is 'Qwen2ForRewardModel'"),
        ("llama", {"problem_type": "multi_label_classification"}, "problem_type is 'multi_label_classification'"),
        ("llama", {"problem_type": "regression"}, "problem_type is 'regression'"),
        ("gpt2", {"id2label": {"0": "LABEL_0"}}, "id2label is .*a single label makes a regression"),
        ("gpt2", {"id2label": {"1": "a", "2": "b"}}, "id2label is .*the numbers from 0 on"),
        ("gpt2", {"id2label": {"0": "a", "1": "a"}}, "label 'a' is named 2 times"),
        ("gpt2", {"id2label": ["a", "b"]}, "id2label is .*must be an object"),
        ("gpt2", {"body": {"model_type": "gpt2"}}, "body is .*not known here"),
        ("gpt2", {"model_type": "gpt_orchestrator_bidirectional_classifier"}, "body is None; it must hold"),
        ("gpt2", {"id2label": None, "num_labels": 10**12}, "4096"),
    ],
)
def test_another_head_is_refused_by_name(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    saved(tmp_path, shape_of(name))
    settings = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(InputError, match=message):
        from_huggingface({**settings, **changes})


def test_labels_that_nobody_named_are_those_of_transformers(tmp_path: Path) -> None:
    saved(tmp_path, shape_of("gpt2"))
    settings = json.loads((tmp_path / "config.json").read_text())
    for given, labels in (({}, ("LABEL_0", "LABEL_1")), ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2"))):
        assert from_huggingface({**settings, "id2label": None, **given}).classifier == ClassifierConfig(labels=labels)


def test_a_classifier_without_padding_token_is_not_exported(tmp_path: Path) -> None:
    model = GPT(shape_of("gpt2"), VOCAB)
    with pytest.raises(InputError, match="a classifier needs a token that fills up texts"):
        save_huggingface(tmp_path, model.config, VOCAB, model.named_parameters(), end_ids=[END])


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("attention", [None, "causal"])
def test_the_transformer_below_a_head_is_read_without_it(tmp_path: Path, name: str, attention: str | None) -> None:
    config = shape_of(name, attention)
    model = saved(tmp_path, config)
    weights = Weights(LocalFolder(tmp_path), config, reads_head=False)
    body = {key: p.detach() for key, p in model.named_parameters() if key not in ("head.weight", "score.weight")}
    assert set(weights.shapes) == set(body)
    read = {key: torch.empty(p.numel()) for key, p in body.items()}
    weights.fill(Range(key, 0, len(view), view) for key, view in read.items())
    assert all(torch.equal(read[key][: VOCAB * 32], p.flatten()[: VOCAB * 32]) for key, p in body.items())
