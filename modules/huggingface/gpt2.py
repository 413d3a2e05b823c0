"""The GPT-2 family: its config.json and the names of its tensors."""

from typing import Any

from modules.huggingface.settings import Settings
from modules.huggingface.stored import Stored
from modules.model_config import ModelConfig

PREFIX = "transformer."
"""Begins the names of all tensors but the head's."""
LEFT_OVER = (".attn.bias", ".attn.masked_bias")
"""Ends of the names of tensors that hold no weights: masks."""
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
# Our names within a block, and those of `transformers`. Its Conv1D stores a weight as [in, out], our Linear as
# [out, in].
_BLOCK_NAMES = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_MODEL_NAMES = {
    "token_embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
    "score.weight": "score.weight",
}


def to_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings from which `transformers` builds a GPT2LMHeadModel with the same logits."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": config.max_positions,
        "n_embd": config.hidden_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.feed_forward_dim,
        "activation_function": "gelu_new",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_epsilon,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }


def from_settings(settings: Settings) -> ModelConfig:
    """Return our config.

    Raises:
        InputError: A setting is missing, or computes what our model does not.
    """
    settings.only("scale_attn_weights", True)
    settings.only("scale_attn_by_inverse_layer_idx", False)
    settings.only("add_cross_attention", False)
    settings.only("activation_function", *_TANH_GELU)
    return ModelConfig(
        num_layers=settings.require("n_layer"),
        num_heads=settings.require("n_head"),
        hidden_dim=settings.require("n_embd"),
        mlp_dim=settings.get("n_inner"),
        max_positions=settings.require("n_positions"),
        vocab_size=settings.require("vocab_size"),
        dropout=settings.get("resid_pdrop", 0.1),
        tie_embeddings=settings.get("tie_word_embeddings", True),
        norm_epsilon=settings.get("layer_norm_epsilon", 1e-5),
    )


def stored(_: ModelConfig, name: str, num_rows: int) -> Stored:
    """Return where a parameter of `num_rows` rows lies."""
    if name in _MODEL_NAMES:
        return Stored(((_MODEL_NAMES[name], num_rows),))
    layer, rest = name.split(".", 2)[1:]
    module, kind = rest.rsplit(".", 1)
    is_transposed = kind == "weight" and not module.endswith("norm")
    return Stored(((f"transformer.h.{layer}.{_BLOCK_NAMES[module]}.{kind}", num_rows),), is_transposed)
