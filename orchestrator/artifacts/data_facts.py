"""What prepared data says of itself, and its tokenizer, read without its tokens."""

import json
from dataclasses import dataclass

from modules.data.shards import DATA_FILE, open_tokenizer
from modules.data.tokenizer import Tokenizer
from orchestrator.artifacts import artifact
from orchestrator.artifacts.opened_data import small_files
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage


@dataclass(frozen=True)
class DataFacts:
    """What prepared data was made from, and how much of it there is."""

    name: str
    """Its artifact, whose last part holds the fingerprint of its recipe."""
    source: str
    """`stdlib`, `files` or `huggingface`."""
    files: tuple[str, ...]
    """Names of the files; empty for the standard library and the hub."""
    hub_name: str | None
    """The hub data set's name."""
    revision: str | None
    """The hub data set's commit."""
    num_tokens: dict[str, int]
    """By split."""
    num_bytes: dict[str, int]
    """UTF-8 bytes of text, by split."""
    num_examples: dict[str, int]
    """Examples of a task, by split; empty for text."""

    @classmethod
    def read(cls, storage: Storage, name: str) -> "DataFacts | None":
        """Return the facts about the prepared data `name`; None if there is none, or it is of another kind.

        Raises:
            ArtifactError: data.json is damaged.
        """
        if not artifact.is_committed(storage, name):
            return None
        manifest = artifact.read_manifest(storage, name)
        recipe = manifest.get("recipe", {})
        if manifest.get("kind") not in ("data", "examples") or "data" not in recipe:
            return None
        folder = small_files(storage, name)
        splits = json.loads((folder / DATA_FILE).read_bytes())["splits"]
        files = recipe.get("files", [])
        if isinstance(files, dict):  # by split
            files = [file for of_split in files.values() for file in of_split]
        is_hub = recipe["data"]["source"] == "huggingface" and bool(files) and isinstance(files[0], str)
        return cls(
            name=name,
            source=recipe["data"]["source"],
            files=() if is_hub or recipe["data"]["source"] == "stdlib" else tuple(redact(file[0]) for file in files),
            hub_name=redact(files[0]) if is_hub else None,
            revision=files[1] if is_hub and len(files) > 1 else None,
            num_tokens=manifest.get("num_tokens") or {split: of["num_tokens"] for split, of in splits.items()},
            num_bytes={split: of["bytes"] for split, of in splits.items() if "bytes" in of},
            num_examples={split: of["num_examples"] for split, of in splits.items() if "num_examples" in of},
        )


def tokenizer_of(storage: Storage, name: str) -> Tokenizer:
    """Return the tokenizer of prepared data.

    Raises:
        ArtifactError: there is no such data, or one of the files that are read for this is damaged.
    """
    return open_tokenizer(small_files(storage, name))
