"""What prepared data says of itself, and its tokenizer, read without its tokens."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from modules.data.shards import DATA_FILE, open_tokenizer
from modules.data.tokenizer import Tokenizer
from orchestrator.artifacts import artifact
from orchestrator.artifacts.mixture import PREFIX, sources_of
from orchestrator.artifacts.opened_data import small_files
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage


@dataclass(frozen=True)
class DataFacts:
    """What prepared data was made from, and how much of it there is."""

    name: str
    """Its artifact, whose last part holds the fingerprint of its recipe."""
    source: str
    """`stdlib`, `files`, `huggingface` or `mixture`."""
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
    sources: "Mapping[str, DataFacts]" = field(default_factory=dict)
    """Facts about each source of a mixture, by name; the other fields are then their sums, or empty."""

    @classmethod
    def read(cls, storage: Storage, name: str) -> "DataFacts | None":
        """Return the facts about the prepared data `name`; None if there is none, or it is of another kind.

        Raises:
            ArtifactError: data.json is damaged.
        """
        if not artifact.is_committed(storage, name):
            return None
        if name.startswith(PREFIX):
            return _of_mixture(storage, name)
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


def _of_mixture(storage: Storage, name: str) -> DataFacts | None:
    """Return the facts about a mixture; None if one of its sources is not there."""
    found = {source: DataFacts.read(storage, of) for source, of in sources_of(storage, name).items()}
    sources = {source: facts for source, facts in found.items() if facts is not None}
    if len(sources) < len(found):
        return None
    num_tokens, num_bytes = Counter[str](), Counter[str]()
    for facts in sources.values():
        num_tokens.update(facts.num_tokens)
        num_bytes.update(facts.num_bytes)
    return DataFacts(name, "mixture", (), None, None, dict(num_tokens), dict(num_bytes), {}, sources)


def tokenizer_of(storage: Storage, name: str) -> Tokenizer:
    """Return the tokenizer of prepared data.

    Raises:
        ArtifactError: there is no such data, or one of the files that are read for this is damaged.
    """
    first = next(iter(sources_of(storage, name).values()))  # all sources of a mixture share it
    return open_tokenizer(small_files(storage, first))
