"""The content of a config.json, of which every key must be known."""

from collections.abc import Mapping
from typing import Any

from modules.errors import InputError

# Keys that change nothing of what is computed: names, versions, ids of tokens, and settings of training and sampling.
_WITHOUT_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _model_name_or_path _name_or_path _num_labels architectures
    attn_pdrop auto_map bos_token_id decoder_start_token_id do_sample dtype early_stopping embd_pdrop eos_token_id
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range
    is_decoder is_encoder_decoder is_llama_config label2id length_penalty max_length max_sequence_length
    max_window_layers min_length model_type n_ctx name_or_path no_repeat_ngram_size num_beam_groups num_beams
    num_labels num_return_sequences output_attentions output_hidden_states output_past output_scores pad_token_id
    predict_special_tokens prefix pretraining_tp problem_type pruned_heads remove_invalid_values
    reorder_and_upcast_attn repetition_penalty return_dict return_dict_in_generate sep_token_id summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params temperature
    tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p
    unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache vocab_size
    """.split()  # noqa: SIM905
)


class Settings:
    """Reads the keys of a config.json, and knows afterwards which of them nobody has read."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content
        self._known: set[str] = set(_WITHOUT_EFFECT)

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a key; `default` if it is missing or null."""
        self._known.add(name)
        value = self._content.get(name)
        return default if value is None else value

    def require(self, name: str) -> Any:
        """Return the value of a key.

        Raises:
            InputError: It is missing.
        """
        if name not in self._content:
            raise InputError(f"config.json: {name} is missing; take it from the original file")
        return self.get(name)

    def only(self, name: str, *supported: Any, default: Any = None) -> None:
        """Raise InputError unless a key has a value that is computed here."""
        value = self.get(name, supported[0] if default is None else default)
        if value not in supported:
            raise not_computed(name, value, f"only {' and '.join(map(repr, supported))} can be loaded")

    def check_all_are_known(self) -> None:
        """Raise InputError for a key that nobody has read, unless it is null or changes nothing of what is computed."""
        for name, value in self._content.items():
            if name not in self._known and value is not None:
                raise not_computed(name, value, "this setting is not known here, nor what it would change")


def not_computed(name: str, value: Any, rule: str) -> InputError:
    """Return the error for a setting that changes the computation in a way that is not computed here."""
    return InputError(f"config.json: {name} is {value!r}; {rule}")
