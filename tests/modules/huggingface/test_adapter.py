"""Adapters that `peft` opens as we wrote them, and that we open as `peft` wrote them, for both families."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from published_models import write_published
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from modules.errors import InputError
from modules.huggingface.adapter import read_adapter, save_adapter
from modules.huggingface.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LocalFolder, read_config
from modules.huggingface.weights import load_huggingface, trained_shapes
from modules.lora import merge
from modules.model import GPT
from modules.model_config import LoraConfig, ModelConfig

NUM_ROWS, NUM_TOKENS = 300, 302
"""Of the base models' vocabulary, and with two new tokens."""
IDS = torch.arange(0, 299, 7)[None]
IDS_WITH_NEW = torch.tensor([[5, 300, 17, 301, 300, 2]])
# peft 0.21.2 asks transformers 5.23 by a name that it will not have for ever
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("gpt2", "llama", "untied"):
        write_published(folder / kind, kind, num_rows=NUM_ROWS)
    return folder


def trained(base: Path, **lora: Any) -> tuple[ModelConfig, GPT]:
    """Return a model with adapters, all of whose trained weights are random, beside those of the base model."""
    tokens = lora.get("trained_tokens", ())
    config = read_config(LocalFolder(base))
    rows = max(NUM_ROWS, *tokens, 0) + 1 if tokens else NUM_ROWS
    config = config.model_copy(update={"lora": LoraConfig(**lora), "vocab_size": max(rows, NUM_ROWS)})
    plain = load_huggingface(LocalFolder(base), vocab_size=config.vocab_size)
    model = GPT(config, config.vocab_size or 0).eval()
    weights, generator = dict(plain.named_parameters()), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(drawn if parameter.requires_grad else weights[name])
    return config, model


def written(folder: Path, config: ModelConfig, model: GPT) -> Path:
    folder.mkdir()
    shapes = trained_shapes(config, config.vocab_size or 0)
    weights = dict(model.named_parameters())
    save_adapter(folder, config, shapes, ((name, weights[name]) for name in shapes), base="somebody/base")
    return folder


def in_transformers(base: Path, num_rows: int = NUM_ROWS) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    if num_rows > NUM_ROWS:
        model.resize_token_embeddings(num_rows, mean_resizing=False)
    return model


def merged(base: Path, adapter: Path) -> GPT:
    """Return our model with an adapter merged into it."""
    config = read_config(LocalFolder(base))
    held = read_adapter(LocalFolder(adapter), config)
    model = load_huggingface(LocalFolder(base), vocab_size=held.vocab_size).eval()
    for name, parameter in model.named_parameters():
        merge(config, name, parameter.detach(), held.tensors, held.scale, held.tokens)
    return model


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model.head.logits(model(ids)) if isinstance(model, GPT) else model(ids).logits


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("gpt2", {"rank": 4, "alpha": 16}),
        ("gpt2", {"rank": 3, "alpha": 5, "target_layers": ["c_attn"]}),
        ("gpt2", {"rank": 2, "target_layers": ["mlp.c_proj"], "trained_tokens": [4, 300, 301]}),
        ("llama", {"rank": 4, "alpha": 2.5}),
        ("llama", {"rank": 2, "target_layers": ["q_proj", "v_proj"], "trained_tokens": [300, 301]}),
        ("untied", {"rank": 2, "target_layers": ["up_proj", "k_proj"], "trained_tokens": [7, 300, 301]}),
    ],
)
def test_peft_opens_our_adapter_with_equal_logits(bases: Path, tmp_path: Path, kind: str, lora: dict[str, Any]) -> None:
    config, model = trained(bases / kind, **lora)
    folder = written(tmp_path / "adapter", config, model)
    num_rows, ids = (NUM_TOKENS, IDS_WITH_NEW) if "trained_tokens" in lora else (NUM_ROWS, IDS)
    base = in_transformers(bases / kind, num_rows)
    unadapted = logits(base, ids)
    opened = peft.PeftModel.from_pretrained(base, folder).eval()
    expected = logits(model, ids)
    assert (expected - unadapted).abs().max() > 5e-3
    torch.testing.assert_close(logits(opened, ids), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(opened.merge_and_unload(), ids), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(merged(bases / kind, folder), ids), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_head_of_classes_goes_with_the_adapter(bases: Path, tmp_path: Path, kind: str) -> None:
    config, model = trained(bases / kind, rank=2, target_layers=["c_attn" if kind == "gpt2" else "v_proj"])
    shapes, weights = trained_shapes(config, NUM_ROWS), dict(model.named_parameters())
    score = torch.randn(3, 32, generator=torch.Generator().manual_seed(5))
    (tmp_path / "a").mkdir()
    given = ((name, score if name == "score.weight" else weights[name]) for name in [*shapes, "score.weight"])
    save_adapter(tmp_path / "a", config, {**shapes, "score.weight": (3, 32)}, given)
    base = AutoModelForSequenceClassification.from_pretrained(bases / kind, num_labels=3)
    opened = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(IDS).logits, model(IDS)[:, -1] @ score.t(), rtol=0, atol=1e-6)


def by_peft(base: Path, folder: Path, num_rows: int = NUM_ROWS, **settings: Any) -> Any:
    """Return a model that `peft` has trained for a few steps, and saved into a folder."""
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=base.name == "gpt2", **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        model = peft.get_peft_model(in_transformers(base, num_rows), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    ids = torch.randint(num_rows, (4, 16))
    for _ in range(5):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it saves no base model
        model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {"target_modules": ["c_attn"]}),
        ("gpt2", {"target_modules": "all-linear", "use_rslora": True, "r": 3, "trainable_token_indices": [1, 300]}),
        ("llama", {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1}),
        ("llama", {"target_modules": r".*\.0\.mlp\.(up|down)_proj", "trainable_token_indices": [300, 301]}),
        ("untied", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1, "r": 2, "lora_alpha": 7}),
        ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        ("llama", {"target_modules": ["o_proj"], "trainable_token_indices": [3, 9]}),
        ("untied", {"target_modules": ["down_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ("untied", {"target_modules": ["k_proj"], "trainable_token_indices": {"embed_tokens": [4], "lm_head": [4]}}),
    ],
)
def test_we_open_the_adapter_of_peft_with_equal_logits(
    bases: Path, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    has_new = "modules_to_save" in settings or 300 in (settings.get("trainable_token_indices") or ())
    num_rows, ids = (NUM_TOKENS, IDS_WITH_NEW) if has_new else (NUM_ROWS, IDS)
    expected = logits(by_peft(bases / kind, tmp_path / "a", num_rows, **settings), ids)
    found = logits(merged(bases / kind, tmp_path / "a"), ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - logits(load_huggingface(LocalFolder(bases / kind), vocab_size=num_rows), ids)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("modules_to_save", ["norm"]),
        ("init_lora_weights", "pissa"),
        ("layer_replication", [[0, 1]]),
        ("peft_type", "IA3"),
        ("target_parameters", ["mlp.up_proj"]),
        ("trainable_token_indices", {"embed_tokens": [1], "lm_head": [2]}),
        ("something_of_a_later_version", 3),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(bases: Path, tmp_path: Path, key: str, value: object) -> None:
    folder = written(tmp_path / "adapter", *trained(bases / "llama", rank=2))
    file = folder / ADAPTER_CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(InputError, match=f"{ADAPTER_CONFIG}: {key} is .* not computed here; merge"):
        merged(bases / "llama", folder)


@pytest.mark.parametrize(
    ("own", "other", "lora", "message"),
    [
        ("gpt2", "llama", {}, "h.0.attn.c_attn.lora_A.weight has no place in the model"),
        ("llama", "gpt2", {}, "q_proj.lora_A.weight has no place in the model"),
        ("llama", "wide", {}, r"k_proj.lora_B.weight has shape \[16, 2\], and the model .* needs \[32, 2\]"),
        ("llama", "shallow", {}, "layers.1.* has no place in the model"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    bases: Path, tmp_path: Path, own: str, other: str, lora: dict[str, Any], message: str
) -> None:
    folder = written(tmp_path / "adapter", *trained(bases / own, rank=2, **lora))
    changed = {"wide": {"num_kv_heads": 4}, "shallow": {"num_layers": 1}}.get(other, {})
    config = read_config(LocalFolder(bases / (own if changed else other))).model_copy(update=changed)
    with pytest.raises(InputError, match=message):
        read_adapter(LocalFolder(folder), config)


@pytest.mark.parametrize("shape", [(0,), (0, 32), (2, 16)])
def test_no_tensor_is_written_that_is_empty_or_a_shard(bases: Path, tmp_path: Path, shape: Sequence[int]) -> None:
    config, model = trained(bases / "llama", rank=2)
    model.blocks[0].attention.qkv.adapter.q_proj_a.data = torch.ones(shape)
    with pytest.raises(InputError, match=r"q_proj.lora_A.weight: has shape \[.*\] instead of \[2, 32\]"):
        written(tmp_path / "adapter", config, model)


@pytest.mark.parametrize(
    ("remove", "message"),
    [(".lora_B.", "lora_B.weight is missing beside"), (".lora_", "holds no adapter of a linear layer")],
)
def test_an_incomplete_adapter_is_refused(bases: Path, tmp_path: Path, remove: str, message: str) -> None:
    folder = written(tmp_path / "a", *trained(bases / "gpt2", rank=2, target_layers=["c_attn"], trained_tokens=[1]))
    held = load_file(folder / ADAPTER_WEIGHTS)
    save_file({name: values for name, values in held.items() if remove not in name}, folder / ADAPTER_WEIGHTS)
    with pytest.raises(InputError, match=message):
        merged(bases / "gpt2", folder)


@pytest.mark.parametrize("modules", [["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_a_vocabulary_that_peft_has_untied_is_refused(bases: Path, tmp_path: Path, modules: list[str]) -> None:
    by_peft(bases / "llama", tmp_path / "a", target_modules=["q_proj"], modules_to_save=modules)
    with pytest.raises(InputError, match="the embedding and the output head have other weights"):
        merged(bases / "llama", tmp_path / "a")


def test_pickles_and_folders_without_an_adapter_are_refused(bases: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no adapter_config.json"):
        merged(bases / "gpt2", bases / "gpt2")
    folder = written(tmp_path / "a", *trained(bases / "gpt2", rank=2))
    (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match="a .bin file is a pickle, which is never read"):
        merged(bases / "gpt2", folder)
