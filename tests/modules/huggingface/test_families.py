"""Every family and variant beside `transformers`, imported and exported, on random configs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modules.errors import InputError
from modules.huggingface.export import save_huggingface
from modules.huggingface.folder import LocalFolder, from_huggingface
from modules.huggingface.weights import load_huggingface
from modules.model import GPT
from modules.model_config import ModelConfig, RopeScaling

VOCAB = 75
LENGTH = 48
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "n_inner": 56,
    },
    "llama2": {"model_type": "llama", "num_key_value_heads": 4},
    "llama3": {"model_type": "llama", "num_key_value_heads": 2, "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama-linear": {
        "model_type": "llama",
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "llama-wide-heads": {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 1, "rope_theta": 1e6},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e6},
}
CASES = [
    (name, tied, num_kv_heads)
    for name in VARIANTS
    for tied in (True, False)
    for num_kv_heads in ((4,) if name == "gpt2" else (1, 2, 4))
]


@pytest.fixture(scope="module")
def transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers


def variant(name: str, tied: bool, num_kv_heads: int) -> dict[str, Any]:
    shared = {} if name == "gpt2" else {"num_key_value_heads": num_kv_heads}
    return {"tie_word_embeddings": tied, **shared}


def settings_of(name: str, **changes: Any) -> dict[str, Any]:
    shape = {} if name == "gpt2" else SHAPE
    return {**shape, **VARIANTS[name], **changes}


def peer_of(transformers: Any, name: str, **changes: Any) -> Any:
    """A model of transformers whose weights are so large that every part of it matters to the fourth digit."""
    torch.manual_seed(0)
    settings = settings_of(name, **changes)
    config = transformers.AutoConfig.for_model(**settings)
    peer = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(0, 0.2)
    return peer


def input_ids() -> Tensor:
    return torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model: GPT) -> Tensor:
    return model.head.logits(model(input_ids()))


@torch.no_grad()
def peer_logits(peer: Any) -> Tensor:
    return peer(input_ids()).logits


def largest_difference(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


@pytest.mark.parametrize(("name", "tied", "num_kv_heads"), CASES)
def test_an_import_has_the_logits_of_transformers(
    transformers: Any, tmp_path: Path, name: str, tied: bool, num_kv_heads: int
) -> None:
    peer = peer_of(transformers, name, **variant(name, tied, num_kv_heads))
    peer.save_pretrained(tmp_path, max_shard_size="20KB")
    model = load_huggingface(LocalFolder(tmp_path)).eval()
    assert model.config.tie_embeddings == tied
    assert largest_difference(logits(model), peer_logits(peer)) < 1e-4


@pytest.mark.parametrize(("name", "tied", "num_kv_heads"), CASES)
def test_an_export_is_opened_by_transformers(
    transformers: Any, tmp_path: Path, name: str, tied: bool, num_kv_heads: int
) -> None:
    config = from_huggingface(settings_of(name, **variant(name, tied, num_kv_heads)))
    torch.manual_seed(1)
    model = GPT(config, VOCAB).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    save_huggingface(tmp_path, config, VOCAB, model.named_parameters(), end_ids=[3], max_shard_bytes=20_000)
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert largest_difference(logits(model), peer_logits(peer.eval())) < 1e-4
    again = load_huggingface(LocalFolder(tmp_path)).eval()
    assert again.config == config
    assert torch.equal(logits(again), logits(model))
    assert greedy(model) == peer.generate(input_ids()[:1], max_new_tokens=12, do_sample=False).tolist()[0][LENGTH:]


@torch.no_grad()
def greedy(model: GPT) -> list[int]:
    ids = input_ids()[:1]
    for _ in range(12):
        ids = torch.cat([ids, model.head.logits(model(ids)[:, -1:]).argmax(-1)], 1)
        if int(ids[0, -1]) == 3:
            break
    return ids[0, LENGTH:].tolist()


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read(transformers: Any, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    peer_of(transformers, name).to(dtype).save_pretrained(tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    model = load_huggingface(LocalFolder(tmp_path)).eval()
    assert largest_difference(logits(model), peer_logits(peer)) < 1e-4


def test_a_bfloat16_model_differs_from_transformers_by_rounding_alone(transformers: Any, tmp_path: Path) -> None:
    peer = peer_of(transformers, "llama3")
    peer.save_pretrained(tmp_path)
    exact = peer_logits(peer)
    theirs = largest_difference(peer_logits(peer.bfloat16()).float(), exact)
    ours = largest_difference(logits(load_huggingface(LocalFolder(tmp_path)).eval().bfloat16()).float(), exact)
    assert ours < 1.5 * theirs


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2", "qwen3"])
def test_a_cache_and_left_padding_change_nothing(transformers: Any, tmp_path: Path, name: str) -> None:
    from modules.attention import KeyValueCache

    peer_of(transformers, name).save_pretrained(tmp_path)
    model = load_huggingface(LocalFolder(tmp_path)).eval()
    ids, pad = input_ids(), 5
    mask = torch.ones(3, LENGTH + pad, dtype=torch.bool)
    mask[:, :pad] = False
    padded = torch.cat([torch.zeros(3, pad, dtype=torch.int64), ids], 1)
    cache = KeyValueCache(model.config, 3, LENGTH + pad)
    with torch.no_grad():
        pieces = [
            model(piece, padding_mask=mask[:, :stop], cache=cache)
            for piece, stop in zip(padded.split([20, 1, 1, 31], 1), (20, 21, 22, 53), strict=True)
        ]
        assert largest_difference(torch.cat(pieces, 1)[:, pad:], model(ids)) < 1e-4


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling is .*yarn.*'llama3'"),
        ("llama2", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "rope_scaling.beta is 1"),
        (
            "llama2",
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            "rope_scaling.high_freq_factor is missing",
        ),
        ("llama2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters is .*dynamic"),
        ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama2", {"attention_bias": True}, "attention_bias is True"),
        ("llama2", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama2", {"quantization_config": {"bits": 4}}, "quantization_config is .*not known here"),
        ("llama2", {"sliding_window": 8}, "sliding_window is 8"),
        ("mistral", {"sliding_window": 8}, "sliding_window is 8"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8}, "sliding_window is 8"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is 'sliding_attention'"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("llama2", {"logit_scale": 0.5}, "logit_scale is 0.5"),
        ("gpt2", {"use_mup": True}, "use_mup is True"),
        ("llama2", {"num_key_value_heads": 3}, "num_kv_heads 3 does not divide num_heads 4"),
        ("llama2", {"model_type": "gemma"}, "model_type is 'gemma'; only 'gpt2', 'llama'"),
    ],
)
def test_what_is_not_computed_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_huggingface(settings_of(name, **changes))


def test_keys_of_published_models_that_change_nothing_are_taken() -> None:
    """As in the files of SmolLM2, Qwen 2.5, Llama 1 and distilgpt2."""
    from_huggingface(settings_of("llama2", is_llama_config=True, rope_interleaved=False, max_sequence_length=2048))
    from_huggingface(settings_of("qwen2", use_mrope=False, use_sliding_window=False, max_window_layers=28))
    from_huggingface(settings_of("gpt2", _num_labels=1, n_ctx=64, task_specific_params={"a": 1}, summary_type="mean"))


@pytest.mark.parametrize(("name", "changes"), [("mistral", {}), ("qwen3", {"use_sliding_window": True})])
def test_a_window_that_holds_every_position_is_none(name: str, changes: dict[str, Any]) -> None:
    assert from_huggingface(settings_of(name, sliding_window=64, **changes)).family == "llama"


def test_a_mistral_that_does_not_name_its_window_has_that_of_transformers() -> None:
    settings = settings_of("mistral", max_position_embeddings=8192)
    del settings["sliding_window"]
    with pytest.raises(InputError, match="sliding_window is 4096"):
        from_huggingface(settings)


def test_a_tensor_without_a_place_is_refused(transformers: Any, tmp_path: Path) -> None:
    peer = peer_of(transformers, "qwen2")
    peer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "model_type": "llama"}))
    with pytest.raises(InputError, match=r"self_attn\.[qkv]_proj\.bias: among the weights"):
        load_huggingface(LocalFolder(tmp_path))


def test_rotary_scaling_survives_export_and_import(tmp_path: Path) -> None:
    scaling = RopeScaling(kind="llama3", factor=32.0, original_max_positions=128)
    config = ModelConfig(
        family="llama", vocab_size=VOCAB, hidden_dim=32, num_layers=1, mlp_dim=24, rope_theta=5e5, rope_scaling=scaling
    )
    model = GPT(config, VOCAB)
    save_huggingface(tmp_path, config, VOCAB, model.named_parameters())
    assert load_huggingface(LocalFolder(tmp_path)).config == config.model_copy(update={"num_kv_heads": 4})
