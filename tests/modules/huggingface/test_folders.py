"""Export to and import from Hugging Face folders."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modules.errors import InputError
from modules.huggingface.export import save_huggingface
from modules.huggingface.folder import LocalFolder, read_config
from modules.huggingface.weights import load_huggingface
from modules.model import GPT, initialize
from modules.model_config import ModelConfig

VOCAB = 75
TIED = ModelConfig(num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=40, max_positions=12, dropout=0.1)
UNTIED = TIED.model_copy(update={"tie_embeddings": False})
INPUT_IDS = torch.arange(24).view(2, 12)


@pytest.fixture
def transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers


def new_model(config: ModelConfig = TIED) -> GPT:
    model = GPT(config, VOCAB).eval()
    initialize(model, seed=1)
    return model


@torch.no_grad()
def logits(model: GPT) -> torch.Tensor:
    return model.head.logits(model(INPUT_IDS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_huggingface(tmp_path, TIED, VOCAB, new_model().named_parameters(), end_ids=[7])
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("config", [TIED, UNTIED])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 5000])
def test_transformers_opens_an_export_with_equal_logits(
    transformers: Any, tmp_path: Path, config: ModelConfig, max_shard_bytes: int
) -> None:
    model = new_model(config)
    save_huggingface(tmp_path, config, VOCAB, model.named_parameters(), max_shard_bytes=max_shard_bytes)
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    with torch.no_grad():
        assert (peer.eval()(INPUT_IDS).logits - logits(model)).abs().max() < 1e-5


@pytest.mark.parametrize("config", [TIED, UNTIED])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 5000])
def test_import_gives_back_what_was_exported(tmp_path: Path, config: ModelConfig, max_shard_bytes: int) -> None:
    model = new_model(config)
    save_huggingface(tmp_path, config, VOCAB, model.named_parameters(), max_shard_bytes=max_shard_bytes)
    again = load_huggingface(LocalFolder(tmp_path)).eval()
    assert again.config == config.model_copy(update={"vocab_size": VOCAB})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_of_transformers_is_imported_with_equal_logits(
    transformers: Any, tmp_path: Path, tied: bool
) -> None:
    settings = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=12, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=tied
    )
    peer = transformers.GPT2LMHeadModel(settings).eval()
    peer.save_pretrained(tmp_path)
    with torch.no_grad():
        assert (peer(INPUT_IDS).logits - logits(load_huggingface(LocalFolder(tmp_path)).eval())).abs().max() < 1e-5


def test_a_bare_transformer_as_on_the_hub_is_imported(transformers: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    weights = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file({**bare, "h.0.attn.bias": torch.ones(1)}, folder / "model.safetensors")
    assert torch.equal(logits(load_huggingface(LocalFolder(folder)).eval()), logits(new_model()))


def test_export_holds_the_vocabulary_without_padding_and_no_pickle(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    assert weights["transformer.wte.weight"].shape == (VOCAB, 16)
    assert "lm_head.weight" not in weights
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_config_names_the_end_of_text_token_and_dropout(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    assert settings["eos_token_id"] == 7
    assert settings["n_inner"] == 40
    assert settings["resid_pdrop"] == settings["embd_pdrop"] == settings["attn_pdrop"] == 0.1


def test_shards_stay_below_the_limit_and_are_all_in_the_index(tmp_path: Path) -> None:
    save_huggingface(tmp_path, TIED, VOCAB, new_model().named_parameters(), max_shard_bytes=8000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 1
    assert {path.name for path in files} == set(index["weight_map"].values())
    for path in files:
        tensors = load_file(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 8000
        assert all(index["weight_map"][name] == path.name for name in tensors)


def test_tensors_are_asked_for_one_shard_at_a_time(tmp_path: Path) -> None:
    written = []

    def tensors() -> Any:
        for name, tensor in new_model().named_parameters():
            written.append(len(list(tmp_path.glob("*.safetensors"))))
            yield name, tensor

    save_huggingface(tmp_path, TIED, VOCAB, tensors(), max_shard_bytes=8000)
    assert written[-1] > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'.*only 'gpt2'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"n_head": 3}, "num_heads 3 does not divide hidden_dim 16"),
        ({"vocab_size": 80}, r"wte.weight: the file has shape \[75, 16\], but config.json requires \[80, 16\]"),
        ({"n_layer": 3}, "transformer.h.2.*not among the weights"),
        ({"n_embd": None}, "config.json"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        load_huggingface(LocalFolder(folder))


def test_a_missing_setting_is_named(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    del settings["n_embd"]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="n_embd is missing"):
        read_config(LocalFolder(folder))


def test_a_folder_of_pickles_is_refused_with_the_remedy(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickles.*save_pretrained"):
        load_huggingface(LocalFolder(folder))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_huggingface(LocalFolder(tmp_path))


def test_damaged_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_huggingface(LocalFolder(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        load_huggingface(LocalFolder(folder))


def test_an_index_cannot_lead_out_of_its_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="outside the folder"):
        load_huggingface(LocalFolder(folder))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return copies, since the tensors of `load_file` lie in the file, which is written again."""
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "transformer.wte.weight": "lm_head.weight"}])
def test_a_tied_weight_is_read_under_whichever_name_it_is_stored(
    transformers: Any, folder: Path, metadata: dict[str, str] | None
) -> None:
    weights = read_weights(folder)
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    save_file(weights, folder / "model.safetensors", metadata=metadata)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(logits(load_huggingface(LocalFolder(folder)).eval()), logits(new_model()))
        if metadata:
            torch.testing.assert_close(
                logits(load_huggingface(LocalFolder(folder)).eval()), peer(INPUT_IDS).logits, rtol=0, atol=1e-5
            )


def test_a_weight_that_no_file_holds_is_named_though_another_is_tied(folder: Path) -> None:
    weights = read_weights(folder)
    del weights["transformer.wte.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"transformer\.wte\.weight: not among the weights"):
        load_huggingface(LocalFolder(folder))


def test_weights_may_be_read_by_whoever_may_read_the_other_files(folder: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 3
    assert set(modes.values()) == {modes["config.json"]}


def test_settings_of_generation_are_those_that_are_known(tmp_path: Path) -> None:
    save_huggingface(tmp_path, TIED, VOCAB, new_model().named_parameters(), end_ids=[7, 9], begin_id=1, padding_id=0)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert found == {"bos_token_id": 1, "eos_token_id": [7, 9], "pad_token_id": 0}
    save_huggingface(tmp_path, TIED, VOCAB, new_model().named_parameters())
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {}


def test_a_full_disk_is_the_system_s_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Safetensors reports it as an error of its own, which was a traceback to the user."""

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("modules.huggingface.export.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_huggingface(tmp_path, TIED, VOCAB, new_model().named_parameters())
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(("value", "is_held"), [(65_504.0, True), (65_520.0, False)])
def test_a_number_that_float16_cannot_hold_is_refused(tmp_path: Path, value: float, is_held: bool) -> None:
    model = new_model()
    model.final_norm.weight.data[3] = value
    if is_held:
        save_huggingface(tmp_path, TIED, VOCAB, model.named_parameters(), dtype=torch.float16)
        assert load_file(tmp_path / "model.safetensors")["transformer.ln_f.weight"][3] == value
    else:
        with pytest.raises(InputError, match=r"final_norm\.weight: holds numbers beyond 65504"):
            save_huggingface(tmp_path, TIED, VOCAB, model.named_parameters(), dtype=torch.float16)
