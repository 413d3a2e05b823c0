"""Names of the files beside a model's weights that belong to its tokenizer."""

TOKENIZER_FILE, SETTINGS_FILE, MAP_FILE = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE_FILE, TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"
KEPT_FILES = (
    *(TOKENIZER_FILE, SETTINGS_FILE, MAP_FILE, "added_tokens.json", TEMPLATE_FILE, f"{TEMPLATE_FOLDER}/*.jinja"),
    *("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"),
)
"""Patterns of the files that belong to a tokenizer; it is saved with those that came."""
READ_FILES = (*KEPT_FILES, "config.json", "generation_config.json")
"""Patterns of the files that `load_pretrained` and `modules.chat_template` look at."""
