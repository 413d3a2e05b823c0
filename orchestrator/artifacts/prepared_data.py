"""Prepared data: found by the recipe's fingerprint, or made. The same text and settings give the same artifact."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from modules.config import DataConfig, TokenizerConfig
from modules.data.hub import hub_commit, is_on_this_machine
from modules.data.learned_text import Crew, Work
from modules.data.prepare import OnProgress, prepare_tokens, preview, training_texts
from modules.data.quality.sieve import Others
from modules.data.shards import TokenData, check_length
from modules.data.source_files import SourceFile, check_formats
from modules.data.stdlib import stdlib_files
from modules.data.tokenizer import joins_at_words
from orchestrator.artifacts import artifact
from orchestrator.artifacts.digests import digest_bytes
from orchestrator.artifacts.kept_parts import kept_parts, remove_parts
from orchestrator.artifacts.recipe import fingerprint, identity
from orchestrator.artifacts.source_rows import listed_names
from orchestrator.artifacts.staging import staging_folder
from orchestrator.errors import ConfigError, UserError
from orchestrator.storage.access import check_url, is_local, path_of
from orchestrator.storage.input_files import StoredFile, find_files
from orchestrator.storage.redaction import redact, without_query
from orchestrator.storage.store import Storage

_FORMAT = 3
"""Must change whenever the same text and settings give another result, manifest included."""
_FIRST_FORMAT = 2
"""What is still right for tokenizers that encode the pieces of a document as they encode the whole."""


@dataclass(frozen=True)
class DataRequirements:
    """What a model requires of its data."""

    max_vocab_size: int | None = None
    """The model's vocabulary; None where it follows the tokenizer's."""
    sequence_length: int | None = None
    """Tokens of a sample; None where nothing is trained."""

    def check(self, facts: Mapping[str, Any]) -> None:
        """Raise an error if the data, by the `facts` in its manifest, does not fit.

        Raises:
            ConfigError: the tokenizer is larger than the model's vocabulary.
            InputError: a split has text, but not enough for one sample.
        """
        check_vocab_size(facts["vocab_size"], self.max_vocab_size)
        for split, num_tokens in facts["num_tokens"].items():
            if self.sequence_length is not None and (num_tokens or split == "train"):
                check_length(num_tokens, self.sequence_length)


def prepared_data(
    storage: Storage,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    requirements: DataRequirements,
    progress: Callable[[int], OnProgress],
    crew: Crew | None = None,
) -> str:
    """Return the name of the prepared data; make it first if it is not there.

    Args:
        progress: Takes the number of bytes to read; returns the callback that receives the progress.
        crew: Who reads the files and makes the tokens; None takes processes of this machine.

    Raises:
        UserError, InputError: the text cannot be used, or does not fit the requirements; nothing is left behind.
    """
    files, tokenizer_file = _source_files(data), read_tokenizer_file(tokenizer)
    if earlier := _of_unknown_revision(storage, data, tokenizer, tokenizer_file):
        requirements.check(artifact.read_manifest(storage, earlier))
        return earlier
    data = with_commit(data)
    recipe = data_recipe(data, tokenizer, files, tokenizer_file)
    name = _name(data, recipe)
    if artifact.is_committed(storage, name):
        remove_parts(storage, name)  # a process that was killed has left them after its commit
        requirements.check(artifact.read_manifest(storage, name))
        return name
    is_hub = data.source == "huggingface"
    with (
        staging_folder(storage, name) as folder,
        kept_parts(storage, name, folder, also_after_mistakes=is_hub) as parts,
    ):
        total = sum(file.num_bytes for file in files)
        shown = progress(min(total, data.max_bytes or total))
        read = () if is_hub else files  # `datasets` reads its own
        made = prepare_tokens(read, data, tokenizer, tokenizer_file, folder, shown, _others(data), Work(parts, crew))
        facts = _facts(folder)
        requirements.check(facts)
        extra = {name: value for name, value in made._asdict().items() if value}
        extra |= listed_names(data, [file.name for file in read] or data.path)
        artifact.publish(storage, folder, name, {"kind": "data", "recipe": recipe, **facts, **extra})
    return name


def preview_data(data: DataConfig) -> list[str]:
    """Return lines for the user on what would be left out of the text and replaced in it; nothing is written.

    Raises:
        UserError, InputError: the text cannot be used.
    """
    files, data = _source_files(data), with_commit(data)
    return preview(() if data.source == "huggingface" else files, data, _others(data)).notes


def data_notes(storage: Storage, name: str) -> list[str]:
    """Return lines for the user on prepared data: what its tokens lack, and which state of the text it is."""
    manifest = artifact.read_manifest(storage, name)
    recipe = manifest["recipe"]
    if recipe["data"]["source"] != "huggingface" or not isinstance(recipe["files"][0], str):
        return manifest.get("notes", [])
    path, *commit = recipe["files"]
    state = f"commit {commit[0]}" if commit else "an unknown state; data.revision=main prepares the newest"
    return [f"hub data set {path}: {state}", *manifest.get("notes", [])]


def _facts(folder: Path) -> dict[str, Any]:
    data = TokenData.open(folder)
    return {
        "vocab_size": data.tokenizer.vocab_size,
        "num_tokens": {"train": len(data.train), "val": len(data.val)},
    }


def data_recipe(
    data: DataConfig, tokenizer: TokenizerConfig, files: Sequence[Any], tokenizer_file: bytes | None
) -> dict[str, Any]:
    """Return what determines the tokens: the text's identity, the settings, and the version of the format."""
    return {
        "command": "prepare",
        "format": _format(tokenizer_file),
        "data": identity(data),
        "tokenizer": identity(tokenizer),
        "tokenizer_file": digest_bytes(tokenizer_file).xxh3_128 if tokenizer_file else None,
        # by content and not by path, so that the same text prepared elsewhere is the same data
        "files": identity_of(files) or _hub_identity(data),
        **_others_identity(data),
    }


def identity_of(files: Sequence[SourceFile]) -> list[list[str]]:
    """Return the name and the identity of each file's content."""
    return [[PurePosixPath(file.name).name, file.identity()] for file in files]


def text_identity(data: DataConfig) -> list[Any]:
    """Return what changes with the text that a configuration names.

    Raises:
        UserError, InputError: it is not there.
    """
    others = _others_identity(data)
    return (identity_of(_source_files(data)) or _hub_identity(with_commit(data))) + ([others] if others else [])


def training_text(data: DataConfig) -> Iterator[str]:
    """Return the text that a tokenizer learns from, in pieces.

    Raises:
        UserError, InputError: it cannot be read.
    """
    data = with_commit(data)
    return training_texts(() if data.source == "huggingface" else _source_files(data), data, _others(data))


def data_name(data: DataConfig, tokenizer: TokenizerConfig) -> str:
    """Return the name that the prepared data of this text has, whether it is there or not."""
    data = with_commit(data)
    return _name(data, data_recipe(data, tokenizer, _source_files(data), read_tokenizer_file(tokenizer)))


def tokenizer_identity(tokenizer: TokenizerConfig) -> str | None:
    """Return what changes with the content of a given tokenizer.json; None where none is given."""
    content = read_tokenizer_file(tokenizer)
    return digest_bytes(content).xxh3_128 if content else None


def _name(data: DataConfig, recipe: dict[str, Any]) -> str:
    return f"data/{data.source}-{fingerprint(recipe)}"


def _hub_identity(data: DataConfig) -> list[str]:
    names = [without_query(name) for name in data.path]
    return [*names, data.revision] if data.revision else names


def with_commit(data: DataConfig) -> DataConfig:
    """Return the configuration with the commit of a hub data set, which may otherwise be another one tomorrow."""
    if data.source != "huggingface" or is_on_this_machine(data.path[0]):
        return data
    return data.model_copy(update={"revision": hub_commit(data.path[0], data.revision)})


def _of_unknown_revision(
    storage: Storage, data: DataConfig, tokenizer: TokenizerConfig, tokenizer_file: bytes | None
) -> str | None:
    """Return the name of data that an earlier version prepared without a revision: runs begun with it go on with it."""
    if data.source != "huggingface" or data.revision is not None:
        return None
    name = _name(data, data_recipe(data, tokenizer, (), tokenizer_file))
    return name if artifact.is_committed(storage, name) else None


def _format(tokenizer_file: bytes | None) -> int:
    return _FIRST_FORMAT if tokenizer_file is None or joins_at_words(tokenizer_file) else _FORMAT


def check_vocab_size(vocab_size: int, max_vocab_size: int | None) -> None:
    """Raise an error if the tokenizer has tokens for which the model has no rows.

    Raises:
        ConfigError: the tokenizer is larger than the model's vocabulary.
    """
    if max_vocab_size is not None and vocab_size > max_vocab_size:
        raise ConfigError(
            f"model.vocab_size={max_vocab_size}: smaller than the tokenizer's {vocab_size} tokens; "
            f"set it to at least {vocab_size}, or to null to follow the tokenizer"
        )


def _source_files(data: DataConfig) -> Sequence[SourceFile]:
    if data.source == "huggingface":
        for name in data.path:
            check_url(name)
        return find_files(data.path) if is_on_this_machine(data.path[0]) else ()  # a copy is known by its content
    files = stdlib_files() if data.source == "stdlib" else find_files(data.path)
    check_formats(files)
    return files


def _others(data: DataConfig) -> Others:
    """Return the files that the text is compared with."""
    found = Others(
        *(find_files(paths) if paths else () for paths in (data.deduplicate.against, data.decontaminate.path))
    )
    check_formats([*found.against, *found.held_out])
    return found


def _others_identity(data: DataConfig) -> dict[str, Any]:
    """Return what changes with the texts that the text is compared with; nothing where there are none."""
    others = _others(data)
    return {name: identity_of(files) for name, files in others._asdict().items() if files}


def read_tokenizer_file(tokenizer: TokenizerConfig) -> bytes | None:
    """Return the content of the tokenizer.json that is given; None for a tokenizer that is made.

    Raises:
        UserError: there is none, or there are several.
    """
    if tokenizer.path is None:
        return None
    with _single_file(tokenizer.path).open() as file:
        return file.read()


def _single_file(path: str) -> StoredFile:
    """Return the tokenizer.json at `path`, or in the Hugging Face folder `path`.

    Raises:
        UserError: there is none, or there are several.
    """
    if is_local(path):
        is_folder = os.path.isdir(os.path.expanduser(path_of(path)))
    else:  # a signed URL leads to one file, and its query may have slashes
        is_folder = path == without_query(path) and not PurePosixPath(path).suffix
    files = find_files([f"{path.rstrip('/')}/tokenizer.json" if is_folder else path])
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:3])
        raise UserError(f"tokenizer.path={redact(path)}: matches {len(files)} files ({names}, …); name one of them")
    return files[0]
