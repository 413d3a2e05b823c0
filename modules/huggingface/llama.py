"""The Llama family (Llama 2 and 3, SmolLM2, TinyLlama, Mistral, Qwen 2 and 3): settings and names of tensors."""

from collections.abc import Mapping
from typing import Any

from modules.errors import InputError
from modules.huggingface.settings import Settings, not_computed
from modules.huggingface.stored import Stored
from modules.model_config import ModelConfig, RopeScaling

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
PREFIX = "model."
"""Begins the names of all tensors but the head's."""
LEFT_OVER = (".rotary_emb.inv_freq",)
"""Ends of the names of tensors that hold no weights: frequencies that follow from the settings."""
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_MODEL_NAMES = {
    "token_embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "score.weight": "score.weight",
}
_BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.projection": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.down": "mlp.down_proj",
}
_DEFAULT_THETA = 10_000.0
_MISTRAL_WINDOW = 4096
"""Of a config.json that does not name it (`MistralConfig` of transformers 5.23)."""
_ROPE_KEYS = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def to_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings from which `transformers` builds a model with the same logits."""
    model_type = _model_type(config)
    settings = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.feed_forward_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width_per_head,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_settings(config.rope_scaling),
        "attention_dropout": config.dropout,
    }
    if model_type in ("llama", "qwen3"):
        settings["attention_bias"] = False
    if model_type == "llama":
        settings["mlp_bias"] = False
    if model_type == "mistral":
        settings["sliding_window"] = None
    if model_type in ("qwen2", "qwen3"):
        settings["use_sliding_window"] = False
    return settings


def _model_type(config: ModelConfig) -> str:
    if config.query_key_norm:
        return "qwen3"
    if config.qkv_bias:
        return "qwen2"
    # `transformers` refuses a llama whose width is no multiple of its heads; without its window a mistral is the same
    return "mistral" if config.hidden_dim % config.num_heads else "llama"


def _rope_settings(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    values = {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }
    return {"rope_type": scaling.kind, **{key: values[key] for key in values if key in _ROPE_KEYS[scaling.kind]}}


def from_settings(settings: Settings) -> ModelConfig:
    """Return our config.

    Raises:
        InputError: A setting is missing, or computes what our model does not.
    """
    model_type = settings.require("model_type")
    settings.only("hidden_act", "silu")
    settings.only("rope_interleaved", False)  # as in SmolLM2's config.json
    settings.only("use_mrope", False)  # as in that of Qwen 2.5
    if model_type in ("llama", "qwen3"):
        settings.only("attention_bias", False)
    if model_type == "llama":
        settings.only("mlp_bias", False)
    _check_window(settings, model_type)
    theta, scaling = _rope(settings)
    num_heads, width = settings.require("num_attention_heads"), settings.require("hidden_size")
    head_dim = settings.require("head_dim") if model_type == "qwen3" else settings.get("head_dim")
    num_kv_heads = settings.get if model_type == "llama" else settings.require
    return ModelConfig(
        family="llama",
        num_layers=settings.require("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads("num_key_value_heads"),
        head_dim=None if head_dim is not None and head_dim * num_heads == width else head_dim,
        hidden_dim=width,
        mlp_dim=settings.require("intermediate_size"),
        max_positions=settings.require("max_position_embeddings"),
        vocab_size=settings.require("vocab_size"),
        dropout=settings.get("attention_dropout", 0.0),
        tie_embeddings=settings.get("tie_word_embeddings", False),
        norm_epsilon=settings.require("rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=model_type == "qwen2",
        query_key_norm=model_type == "qwen3",
    )


def _check_window(settings: Settings, model_type: str) -> None:
    """Raise InputError unless every position attends to all before it."""
    for kind in settings.get("layer_types", ()):
        if kind != "full_attention":
            raise not_computed("layer_types", kind, "only 'full_attention' can be loaded")
    if model_type == "llama":
        settings.only("use_sliding_window", False)
        return  # it has no window, so `sliding_window` is refused as unknown
    default = _MISTRAL_WINDOW if model_type == "mistral" and "sliding_window" not in settings else None
    window = settings.get("sliding_window", default)
    is_used = model_type == "mistral" or settings.get("use_sliding_window", False)
    if is_used and window is not None and window < settings.require("max_position_embeddings"):
        raise not_computed("sliding_window", window, "attention to the last positions alone is not computed here")


def _rope(settings: Settings) -> tuple[float, RopeScaling | None]:
    """Return the base of the rotary frequencies and their scaling, from the settings of transformers 4 or 5."""
    theta = settings.get("rope_theta", _DEFAULT_THETA)
    settings.only("partial_rotary_factor", 1.0)
    scaling = None
    for name in ("rope_scaling", "rope_parameters"):
        rope = settings.get(name)
        if rope is not None:
            if not isinstance(rope, Mapping):
                raise not_computed(name, rope, "it must be an object")
            theta, scaling = rope.get("rope_theta", theta), _scaling(name, rope)
    return theta, scaling


def _scaling(name: str, rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    wanted = _ROPE_KEYS.get(kind, set())
    if kind != "default" and kind not in _ROPE_KEYS:
        raise not_computed(name, dict(rope), "only the types 'default', 'linear' and 'llama3' can be loaded")
    for key, value in rope.items():
        if key not in wanted | {"rope_type", "type", "rope_theta"} and value is not None:
            if key == "partial_rotary_factor" and value == 1:
                continue
            raise not_computed(f"{name}.{key}", value, f"it is not known here for the type {kind!r}")
    if missing := sorted(key for key in wanted if rope.get(key) is None):
        raise InputError(f"config.json: {name}.{missing[0]} is missing; take it from the original file")
    if kind == "default":
        return None
    given = {key: rope[key] for key in wanted}
    if kind == "llama3":
        given["original_max_positions"] = given.pop("original_max_position_embeddings")
    return RopeScaling(kind=kind, **given)


def stored(config: ModelConfig, name: str, num_rows: int) -> Stored:
    """Return where a parameter of `num_rows` rows lies."""
    if name in _MODEL_NAMES:
        return Stored(((_MODEL_NAMES[name], num_rows),))
    layer, rest = name.split(".", 2)[1:]
    module, kind = rest.rsplit(".", 1)
    block = f"model.layers.{layer}."
    if module == "attention.qkv":
        own, shared = (heads * config.width_per_head for heads in (config.num_heads, config.kv_heads))
        rows = (("q", own), ("k", shared), ("v", shared))
        return Stored(tuple((f"{block}self_attn.{part}_proj.{kind}", count) for part, count in rows))
    if module == "mlp.gate_up":
        return Stored(tuple((f"{block}mlp.{part}_proj.{kind}", num_rows // 2) for part in ("gate", "up")))
    return Stored(((f"{block}{_BLOCK_NAMES[module]}.{kind}", num_rows),))
