"""The files of model folders that others publish, as far as they belong to a tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreign_tokenizers import foreign


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def model_files(kind: str, **settings: Any) -> dict[str, bytes]:
    """Return the files of a model with the tokenizer of a kind, and `settings` in its tokenizer_config.json."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **settings}
    return {"tokenizer.json": foreign(kind), "tokenizer_config.json": as_json(config)}


def written(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder, and return it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
