"""The adapter_config.json of PEFT: what is written, what is computed, and what is refused by its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules.errors import InputError
from modules.huggingface.folder import ModelFolder, read_json, stored
from modules.initial_values import VOCABULARY
from modules.lora import adapted_names, trained_rows_of
from modules.model_config import ModelConfig

_SAVED_MODULES = ("score", "classifier", "embed_tokens", "wte", "lm_head")
_ONLY = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "task_type": ("CAUSAL_LM", "SEQ_CLS", None),
    # others change the base model's weights, too
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}
"""Settings of which these values are computed here."""
_READ = {"r", "lora_alpha", "use_rslora", "trainable_token_indices", "modules_to_save"}
# What is adapted is read off the tensors, so what says it is not needed.
_WITHOUT_EFFECT = frozenset(
    """
    auto_mapping base_model_name_or_path ensure_weight_tying exclude_modules fan_in_fan_out inference_mode
    layers_pattern layers_to_transform lora_dropout megatron_core peft_version qalora_group_size revision runtime_config
    target_modules
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class AdapterSettings:
    """The settings that decide what an adapter computes."""

    rank: int
    scale: float
    tokens: tuple[int, ...]


def settings_of(config: ModelConfig, names: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    """Return the adapter_config.json with which PEFT computes what our model does.

    Args:
        config: The model with its adapters.
        names: Of all that was trained, in our words.
        base: The frozen model, where others find it.
    """
    assert config.lora is not None
    lora, has_head = config.lora, "score.weight" in names
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if has_head else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": config.revision,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": adapted_names(config, lora),
        "fan_in_fan_out": config.family == "gpt2",
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": ["score"] if has_head else None,
        "trainable_token_indices": _token_indices(config, names, list(lora.trained_tokens)),
    }


def _token_indices(config: ModelConfig, names: Mapping[str, Any], tokens: list[int]) -> Any:
    """Return PEFT's list for the embedding, with which a tied head goes, or one for each layer."""
    layers = [name for name in VOCABULARY if trained_rows_of(name) in names]
    if len(layers) < 2:
        return tokens if layers else None
    return {stored(config, name, 1).tensors[0][0].split(".")[-2]: tokens for name in layers}


def read_settings(folder: ModelFolder, name: str) -> AdapterSettings:
    """Return the settings of an adapter.

    Raises:
        InputError: There is no such file, or a setting says something that is not computed here.
    """
    where = f"{folder.url}/{name}"
    if not folder.has(name):
        raise InputError(f"{folder.url}: no {name}; give a folder that holds an adapter in PEFT's form")
    content = read_json(folder, name)
    for key, value in content.items():
        if key in _ONLY and value not in _ONLY[key]:
            raise _not_computed(where, key, value)
        if key not in {*_ONLY, *_READ, *_WITHOUT_EFFECT} and value not in (None, False, {}, [], ""):
            raise _not_computed(where, key, value)
    for module in content.get("modules_to_save") or ():
        if module.rpartition(".")[2] not in _SAVED_MODULES:
            raise _not_computed(where, "modules_to_save", content["modules_to_save"])
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise InputError(f"{where}: r is {rank!r} and lora_alpha {alpha!r}; both must be numbers above 0")
    scale = alpha / rank**0.5 if content.get("use_rslora") else alpha / rank
    return AdapterSettings(rank, scale, _tokens(where, content.get("trainable_token_indices")))


def _tokens(where: str, value: Any) -> tuple[int, ...]:
    lists: Sequence[Any] = list(value.values()) if isinstance(value, dict) else [value or []]
    if any(tokens != lists[0] for tokens in lists) or not all(isinstance(token, int) for token in lists[0]):
        raise _not_computed(where, "trainable_token_indices", value)
    return tuple(lists[0])


def _not_computed(where: str, key: str, value: Any) -> InputError:
    return InputError(
        f"{where}: {key} is {value!r}, which is not computed here; merge the adapter with peft (merge_and_unload), and "
        "give the merged model"
    )
