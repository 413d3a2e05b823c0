"""The model from which a training continues: found, checked, and described by its content."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from published_models import write_published
from tiny_models import LLAMA, random_model

from modules.errors import InputError
from modules.huggingface.export import save_huggingface
from modules.model_config import ClassifierConfig, LoraConfig, ModelConfig
from orchestrator.artifacts.base_model import open_base_model
from orchestrator.errors import ConfigError, UserError
from orchestrator.storage.store import Storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_published(tmp_path / "model", "llama")
    return tmp_path / "model"


def opened(path: object, *, needs_mask: bool = False, **fields: Any) -> Any:
    return open_base_model(ModelConfig(path=str(path), **fields), needs_mask)


def test_shape_and_tokenizer_are_those_of_the_model(folder: Path) -> None:
    base = opened(folder)
    assert (base.config.family, base.config.num_layers, base.config.num_kv_heads) == ("llama", 2, 2)
    assert base.tokenizer.end_token == "<|end|>"
    assert base.config.path == str(folder)


def test_path_is_made_absolute_for_workers_in_other_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert opened("model").config.path == str(folder)


@pytest.mark.parametrize("path", [".", "../model", "file://{}"])
def test_any_form_of_a_local_path_leads_to_the_folder(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert opened(path.format(folder)).config.path == str(folder)


def test_identity_is_that_of_the_content_wherever_it_lies(folder: Path) -> None:
    before = opened(folder).identity
    shutil.copytree(folder, folder.parent / "copy")
    assert opened(folder.parent / "copy").identity == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert opened(folder).identity != before


def test_a_folder_in_a_store_is_read_there(folder: Path) -> None:
    storage = Storage("memory://models")
    storage.upload(folder, "mine")
    try:
        base = opened("memory://models/mine")
        assert base.config.path == "memory://models/mine"
        assert base.config.num_layers == 2
        assert base.tokenizer_config.path == "memory://models/mine/tokenizer.json"
    finally:
        storage.remove("mine")


def test_every_field_that_contradicts_the_model_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.num_layers=3: the model at model.path has 2.*\n.*model.rope_theta"):
        opened(folder, family="llama", num_layers=3, rope_theta=7.0)


def test_dropout_is_a_setting_of_the_training_and_stays(folder: Path) -> None:
    assert opened(folder, dropout=0.25).config.dropout == 0.25


@pytest.mark.parametrize("revision", ["main", None])
def test_what_is_not_there_is_said(tmp_path: Path, revision: str | None) -> None:
    with pytest.raises(UserError, match=r"model.path=.*nowhere: no model there"):
        opened(tmp_path / "nowhere", revision=revision)


def test_a_revision_of_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="model.revision=main: belongs to a hub name"):
        opened(folder, revision="main")


def test_a_missing_tensor_is_found_before_anything_is_written(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"model\.layers\.2\..*not among the weights"):
        opened(folder)


def test_a_hub_name_is_fetched_at_its_revision_and_known_by_its_commit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[Any] = []
    snapshot = folder.rename(folder.parent / "0123abcd")

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    base = opened("someone/something", revision="v1")
    assert asked == [("someone/something", "v1")]
    assert (base.config.path, base.config.revision) == ("someone/something", "0123abcd")
    assert base.identity == {"hub": "someone/something", "commit": "0123abcd"}


@pytest.mark.parametrize(("num_rows", "grown"), [(None, True), (320, False)])
def test_a_mask_token_is_added_after_the_highest_in_rows_of_padding_where_there_are_some(
    tmp_path: Path, num_rows: int | None, grown: bool
) -> None:
    write_published(tmp_path / "model", "llama", num_rows=num_rows)
    plain, masked = (opened(tmp_path / "model", needs_mask=needs_mask) for needs_mask in (False, True))
    assert plain.tokenizer.mask_id is None
    assert masked.tokenizer.mask_id == plain.tokenizer.vocab_size
    assert masked.tokenizer_config.added_tokens == "mask"
    assert masked.config.vocab_size == plain.config.vocab_size + grown


def classifier_folder(folder: Path, *labels: str) -> Path:
    """Write a classifier beside the tokenizer of a published model."""
    classifier = ClassifierConfig(labels=labels)
    model = random_model(LLAMA.model_copy(update={"classifier": classifier}), 300)
    save_huggingface(folder, model.config, 300, model.named_parameters(), padding_id=0)
    return folder


def test_a_classifier_is_no_language_model_to_go_on_with(folder: Path) -> None:
    with pytest.raises(UserError, match="model.path=.*: is a classifier, which predicts labels and no tokens"):
        opened(classifier_folder(folder, "a", "b"))


def test_a_classifier_is_made_of_a_language_model_or_of_a_classifier(folder: Path) -> None:
    wanted = ClassifierConfig(labels=("a", "b"))
    base = open_base_model(ModelConfig(path=str(folder)), needs_mask=False, to_classify=True)
    assert (base.config.classifier, base.classifier, base.score_note(wanted)) == (None, None, None)
    base = open_base_model(
        ModelConfig(path=str(classifier_folder(folder, "a", "b"))), needs_mask=False, to_classify=True
    )
    assert (base.config.classifier, base.classifier, base.score_note(wanted)) == (None, wanted, None)


def test_labels_that_are_lost_are_told(folder: Path) -> None:
    found = ModelConfig(path=str(classifier_folder(folder, *"abcdefg")))
    note = open_base_model(found, needs_mask=False, to_classify=True).score_note(ClassifierConfig(labels=("b", "a")))
    assert note is not None
    assert "classifies by causal attention with the labels a, b, c, d, e, …, which are other ones" in note
    assert "its score begins anew from the seed" in note


def test_an_unknown_layer_and_a_token_beyond_the_vocabulary_are_refused_before_anything_is_written(
    folder: Path,
) -> None:
    with pytest.raises(InputError, match=r"target_layers=query: .* there are q_proj, .*, and all-linear for all"):
        opened(folder, lora=LoraConfig(target_layers=("q_proj", "query")))
    with pytest.raises(InputError, match="trained_tokens=299: the vocabulary ends at 298"):
        opened(folder, lora=LoraConfig(trained_tokens=(4, 299)))


def test_the_row_of_a_token_that_is_new_is_trained_beside_adapters(folder: Path) -> None:
    lora = LoraConfig(trained_tokens=(7, 4))
    assert opened(folder, lora=lora).config.lora.trained_tokens == (4, 7)
    assert opened(folder, lora=lora, needs_mask=True).config.lora.trained_tokens == (4, 7, 299)
    assert opened(folder, needs_mask=True).config.lora is None
