"""The tokenizer that all sources of a mixture share: given, or trained on some of them and kept as an artifact."""

from dataclasses import dataclass
from typing import Any

from modules.config import DataConfig, TokenizerConfig
from modules.data.shards import TOKENIZER_FILE
from modules.data.taking_turns import taking_turns
from modules.data.tokenizer import build_tokenizer
from orchestrator.artifacts import artifact
from orchestrator.artifacts.mixture import of_source
from orchestrator.artifacts.prepared_data import text_identity, training_text
from orchestrator.artifacts.recipe import fingerprint, identity
from orchestrator.artifacts.staging import staging_folder
from orchestrator.storage.local import cache_folder
from orchestrator.storage.store import Storage

_FORMAT = 1
"""Must change whenever the same texts and settings give another tokenizer."""


def shared_tokenizer(storage: Storage, data: DataConfig, tokenizer: TokenizerConfig) -> TokenizerConfig:
    """Return the tokenizer of a mixture as a given one, trained first if it has to be.

    Raises:
        UserError, InputError: a text that it learns from cannot be read.
    """
    if not tokenizer.learns:
        return tokenizer
    training = _Training.of(data, tokenizer)
    if not artifact.is_committed(storage, training.name):
        with staging_folder(storage, training.name) as folder:
            made = build_tokenizer(tokenizer, lambda: taking_turns(map(training_text, training.texts)), None)
            made.save(folder / TOKENIZER_FILE)
            artifact.publish(storage, folder, training.name, {"kind": "tokenizer", "recipe": training.recipe})
    return _as_given(storage, training.name)


def trained_tokenizer(storage: Storage, data: DataConfig, tokenizer: TokenizerConfig) -> TokenizerConfig:
    """Return what `shared_tokenizer` does of a tokenizer that has been trained.

    Raises:
        ArtifactError: it has not been.
    """
    return _as_given(storage, _Training.of(data, tokenizer).name) if tokenizer.learns else tokenizer


def _as_given(storage: Storage, name: str) -> TokenizerConfig:
    folder = artifact.local_copy(storage, name, cache_folder())
    return TokenizerConfig(kind="file", path=str(folder / TOKENIZER_FILE))


@dataclass(frozen=True)
class _Training:
    """What a tokenizer learns from, whatever its sources are called and how much they weigh."""

    texts: list[DataConfig]
    recipe: dict[str, Any]

    @property
    def name(self) -> str:
        return f"tokenizer/{self.recipe['tokenizer']['kind']}-{fingerprint(self.recipe)}"

    @classmethod
    def of(cls, data: DataConfig, tokenizer: TokenizerConfig) -> "_Training":
        found: list[tuple[dict[str, Any], DataConfig]] = []
        for source in data.sources:
            if source.name in (tokenizer.sources or (source.name,)):
                with of_source(source.name):
                    text = source.text()
                    found.append(({"data": identity(text), "files": text_identity(text)}, text))
        found.sort(key=lambda pair: fingerprint(pair[0]))
        settings = identity(tokenizer.model_copy(update={"sources": ()}))
        texts = [about for about, _ in found]
        recipe = {"command": "prepare", "format": _FORMAT, "tokenizer": settings, "texts": texts}
        return cls([text for _, text in found], recipe)
