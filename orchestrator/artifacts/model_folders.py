"""Where a model is: a directory of ours, a Hugging Face folder at any fsspec URL, or a hub name with a revision."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modules.data.tokenizer_names import READ_FILES
from modules.huggingface.folder import (
    ADAPTER_CONFIG,
    CONFIG,
    INDEX,
    OWN_INDEX,
    WEIGHTS,
    ModelFolder,
    read_bytes,
    read_config,
)
from modules.model_config import ModelConfig
from orchestrator.artifacts import artifact
from orchestrator.errors import ArtifactError, UserError
from orchestrator.storage.access import check_root, is_local, path_of
from orchestrator.storage.local import cache_folder
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage

RECIPE = "recipe.json"
_NEEDED = (*READ_FILES, WEIGHTS, INDEX, OWN_INDEX, "*.safetensors", RECIPE)


@dataclass(frozen=True)
class StoredFolder:
    """A model's folder in a store; see `ModelFolder`."""

    storage: Storage
    name: str

    @property
    def url(self) -> str:
        return self.storage.url(self.name)

    def has(self, name: str) -> bool:
        return self.storage.exists(f"{self.name}/{name}")

    def num_bytes(self, name: str) -> int:
        return self.storage.num_bytes(f"{self.name}/{name}")

    def read_into(self, name: str, start: int, target: memoryview) -> None:
        self.storage.read_into(f"{self.name}/{name}", start, target)


@dataclass(frozen=True)
class FoundModel:
    """A model's folder, and what kind it is."""

    folder: StoredFolder
    is_ours: bool
    """Whether it is committed by this program, with the digest of every file."""
    commit: str | None = None
    """Of a model from the hub."""
    field: str = "model.path"
    """The setting that named it."""

    @property
    def num_readers(self) -> int:
        """Requests at a time that its store bears."""
        return 2 if self.folder.storage.is_local else 16

    def checked(self) -> "FoundModel":
        """Return the same model with its files verified, or copied to this machine and verified, if it is ours.

        Raises:
            ArtifactError: it is damaged.
        """
        if not self.is_ours:
            return self
        storage, name = self.folder.storage, self.folder.name
        try:
            copy = artifact.local_copy(storage, name, cache_folder() / "models")
        except ArtifactError as error:
            raise ArtifactError(
                f"{self.field}={error}; restore it from a copy, or remove {storage.url(name)} and its run's "
                "metrics.json: the command that trained it then writes both anew from the last checkpoint"
            ) from None
        return replace(self, folder=_local(copy))


def find_model(path: str, revision: str | None = None) -> FoundModel:
    """Return the model that a user names.

    Args:
        path: A model directory or a Hugging Face folder, local or at any fsspec URL, or a hub name.
        revision: Commit, tag or branch of a hub name; None takes the newest.

    Raises:
        UserError: there is no such model, or a revision is given for what is no hub name.
    """
    check_root(path)
    folder = _folder(path)
    is_ours = folder.has(artifact.COMMITTED)  # one with a damaged manifest is ours, too, and is not read
    if is_ours or folder.has(CONFIG):
        if revision is not None:
            raise UserError(f"model.revision={revision}: belongs to a hub name, and {folder.url} is a folder")
        return FoundModel(folder, is_ours)
    if _is_hub_name(path):
        return _from_hub(path, revision, _NEEDED)
    raise UserError(f"model.path={redact(path)}: no model there; name a folder with {CONFIG} and {WEIGHTS}")


def read_shape(path: str, revision: str | None = None) -> ModelConfig:
    """Return the shape of the model that a user names; of a hub name nothing but its settings is fetched.

    Raises:
        UserError, InputError: there is no such model, or it is of a kind that cannot be loaded.
    """
    check_root(path)
    if _is_hub_name(path) and not _folder(path).has(CONFIG):
        return read_config(_from_hub(path, revision, [CONFIG]).folder)
    return read_config(find_model(path, revision).folder)


def check_output_head(path: str, revision: str | None = None) -> None:
    """Check that a model predicts tokens.

    Raises:
        UserError, InputError: it is a classifier, is not there, or is of a kind that cannot be loaded.
    """
    if read_config(find_model(path, revision).folder).classifier is not None:
        raise no_output_head(path)


def no_output_head(path: str) -> UserError:
    """Return the error for a classifier where a language model is needed."""
    return UserError(
        f"model.path={redact(path)}: is a classifier, which predicts labels and no tokens; use it with orchestrator "
        "predict, or name a language model"
    )


def find_adapter(path: str) -> FoundModel:
    """Return the adapter that a user names: a directory of ours or one in PEFT's form, local or at any fsspec URL.

    Raises:
        UserError: there is none.
    """
    check_root(path)
    folder = _folder(path)
    if not folder.has(ADAPTER_CONFIG):
        raise UserError(f"model.adapter={redact(path)}: no adapter there; name a folder with {ADAPTER_CONFIG}")
    return FoundModel(folder, folder.has(artifact.COMMITTED), field="model.adapter")


def _is_hub_name(path: str) -> bool:
    return path.count("/") <= 1 and not path.startswith((".", "/", "~")) and "://" not in path


def hub_commit_of(name: str, revision: str | None) -> str | None:
    """Return the commit of a model on the hub without a copy of it; None if the path leads to a folder.

    Raises:
        UserError: there is no such model, or the hub does not answer and this machine has no copy.
    """
    if is_local(name) and (Path(os.path.expanduser(path_of(name))) / CONFIG).exists():
        return None
    if not _is_hub_name(name):
        return None
    try:
        import huggingface_hub

        return huggingface_hub.HfApi().model_info(name, revision=revision).sha
    except Exception:  # without a network, or without the package: a copy on this machine, or the reason
        return _from_hub(name, revision, _NEEDED).commit


def _from_hub(name: str, revision: str | None, files: Sequence[str]) -> FoundModel:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"model.path={name}: no such folder; for hub names: pip install huggingface_hub") from None
    try:
        copy = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub client and the HTTP stack below it raise many unrelated types
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        at = f" at model.revision={revision}" if revision else ""
        raise UserError(
            f"model.path={name}: no such folder, and the hub does not provide it{at}: {reason[0]}"
        ) from None
    return FoundModel(_local(copy), is_ours=False, commit=copy.name)


def _folder(path: str) -> StoredFolder:
    if is_local(path):
        return _local(Path(os.path.abspath(os.path.expanduser(path_of(path)))))
    parent, _, name = path.rstrip("/").rpartition("/")
    return StoredFolder(Storage(parent), name)


def _local(path: Path) -> StoredFolder:
    return StoredFolder(Storage(str(path.parent)), path.name)


def read_files(folder: ModelFolder) -> dict[str, bytes]:
    """Return the small files of a folder that are there, by name: settings, tokenizer and chat template."""
    return {name: read_bytes(folder, name) for name in READ_FILES if "*" not in name and folder.has(name)}
