"""The model from which a training continues: its shape, its tokenizer and the identity of its content."""

from dataclasses import dataclass
from typing import Any

from modules.config import TokenizerConfig
from modules.data.pretrained_tokenizer import load_pretrained, read_json
from modules.data.tokenizer import END_OF_TEXT, MASK, Tokenizer
from modules.data.tokenizer_names import TOKENIZER_FILE
from modules.errors import InputError
from modules.huggingface.folder import CONFIG, GENERATION_CONFIG, read_config, weight_files
from modules.model_config import ClassifierConfig, ModelConfig
from orchestrator.artifacts import artifact
from orchestrator.artifacts.model_folders import FoundModel, StoredFolder, find_model, no_output_head, read_files
from orchestrator.errors import ConfigError, UserError
from orchestrator.storage.input_files import find_files
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage

_SHOWN_LABELS = 5
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BaseModel:
    """A model from which a training continues."""

    config: ModelConfig
    """Its shape, and where every worker finds it."""
    tokenizer_config: TokenizerConfig
    """How `prepare` makes the tokenizer."""
    tokenizer: Tokenizer
    """The model's own, with the files that came with it."""
    files: dict[str, bytes]
    """Its settings, tokenizer and chat template, with the mask token where one was added."""
    identity: dict[str, Any]
    """What changes with its content."""
    classifier: ClassifierConfig | None = None
    """Its labels, if it is a classifier already."""

    def score_note(self, classifier: ClassifierConfig) -> str | None:
        """Return a line for the user if its own labels are lost in the training of a classifier; None otherwise."""
        own = self.classifier
        if own is None or own == classifier:
            return None
        return (
            f"note: the model at model.path classifies by {own.attention} attention with the labels "
            f"{', '.join(own.labels[:_SHOWN_LABELS])}{', …' * (len(own.labels) > _SHOWN_LABELS)}, which are other ones "
            "(or in another order) than those of this training, so its score begins anew from the seed"
        )


def open_base_model(config: ModelConfig, needs_mask: bool, *, to_classify: bool = False) -> BaseModel:
    """Return the model at `config.path`, with all that can be wrong with it found before anything is written.

    Args:
        config: The configuration as given; fields of the shape are left at their defaults.
        needs_mask: Whether the training masks tokens; the vocabulary gets a mask token if it has none.
        to_classify: Whether a classifier is made of it, which needs no output head.

    Raises:
        UserError, InputError: there is no such model, or it cannot be continued.
        ArtifactError: it is damaged.
    """
    # these import torch, which only this case needs in the driver
    from modules.huggingface.weights import Weights
    from modules.lora import check_target_layers

    assert config.path is not None
    found = find_model(config.path, config.revision)
    _verify(found)
    stored = read_config(found.folder)
    files = read_files(found.folder)
    tokenizer = load_pretrained(files, f"model.path={redact(config.path)}", with_mask=needs_mask)
    if tokenizer.end_token is None:
        raise InputError(
            f"model.path={redact(config.path)}: the model has no token that ends a document; name one as eos_token_id "
            f"in a copy of its {CONFIG}"
        )
    if stored.classifier is not None and not to_classify:
        raise no_output_head(config.path)
    Weights(found.folder, stored, reads_head=not to_classify or stored.classifier is not None)
    try:
        shape = config.of(_path_for_workers(config.path, found), found.commit, stored)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if shape.lora is not None:
        check_target_layers(shape, shape.lora)
    shape = with_rows_for(shape, stored.vocab_size or 0, tokenizer.vocab_size, stored.vocab_size or 0)
    settings = _tokenizer_config(tokenizer, found, needs_mask)
    files |= tokenizer.files or {}
    return BaseModel(shape, settings, tokenizer, files, model_identity(config.path, found), stored.classifier)


@dataclass(frozen=True)
class KeptModel:
    """What a run has kept of the model that it continues."""

    tokenizer: Tokenizer
    special_ids: dict[str, int]
    """The begin and the padding token that its settings name, by setting."""
    dtype: str
    """The type of its weights, as its settings name it; float32 if they name none."""


def kept_model(storage: Storage, name: str) -> KeptModel | None:
    """Return what a run has kept of the model that it continues; None if it continues none.

    Args:
        name: The folder of the kept files, relative to the storage root.
    """
    files = read_files(StoredFolder(storage, name))
    if TOKENIZER_FILE not in files:
        return None
    settings = {**read_json(files, CONFIG, name), **read_json(files, GENERATION_CONFIG, name)}
    named = {key: settings.get(key) for key in ("bos_token_id", "pad_token_id")}
    special_ids = {key: number for key, number in named.items() if isinstance(number, int)}
    dtype = settings.get("dtype") or settings.get("torch_dtype")  # the latter of transformers before 5
    return KeptModel(load_pretrained(files, storage.url(name)), special_ids, dtype if dtype in _DTYPES else "float32")


def _path_for_workers(path: str, found: FoundModel) -> str:
    local = found.folder.storage.local_path(found.folder.name)
    return path if found.commit or local is None else str(local)


def with_rows_for(shape: ModelConfig, num_stored: int, num_tokens: int, first_new: int) -> ModelConfig:
    """Return the shape with a row for each token; those of new tokens are trained beside its adapters.

    Args:
        shape: The model's shape.
        num_stored: Rows of its vocabulary so far.
        num_tokens: Tokens of the tokenizer.
        first_new: Number of the first token that the model does not know; its row may be there.

    Raises:
        InputError: `model.lora.trained_tokens` names a token that there is not.
    """
    shape = shape.model_copy(update={"vocab_size": max(num_stored, num_tokens)})
    if shape.lora is None:
        return shape
    tokens = tuple(sorted({*shape.lora.trained_tokens, *range(first_new, num_tokens)}))
    if tokens and tokens[-1] >= max(num_stored, num_tokens):
        raise InputError(
            f"model.lora.trained_tokens={tokens[-1]}: the vocabulary ends at {max(num_stored, num_tokens) - 1}"
        )
    return shape.model_copy(update={"lora": shape.lora.model_copy(update={"trained_tokens": tokens})})


def _verify(found: FoundModel) -> None:
    """Verify a model of ours: every byte on a local disk, presence and sizes in a remote store."""
    storage, name = found.folder.storage, found.folder.name
    if found.is_ours:
        (artifact.verify if storage.is_local else artifact.verify_sizes)(storage, name)


def check_is_same(path: str, revision: str | None, identity: dict[str, Any]) -> None:
    """Raise UserError unless the model at a path is the one of this identity, which a run has recorded.

    Raises:
        UserError: there is none, or another one.
    """
    if model_identity(path, find_model(path, revision)) != identity:
        raise UserError(
            f"{redact(path)}: is not the model any more beside which the run trained adapters; restore it there"
        )


def model_identity(path: str, found: FoundModel) -> dict[str, Any]:
    """Return what changes with the content of a model."""
    if found.commit:
        return {"hub": path, "commit": found.commit}
    storage, name = found.folder.storage, found.folder.name
    if found.is_ours:
        return {"committed": artifact.manifest_digest(storage, name)}
    files = [CONFIG, *weight_files(found.folder)]
    return {"files": [[file, find_files([f"{found.folder.url}/{file}"])[0].identity()] for file in files]}


def _tokenizer_config(tokenizer: Tokenizer, found: FoundModel, needs_mask: bool) -> TokenizerConfig:
    """Return how `prepare` makes the same tokenizer from the model's tokenizer.json."""
    own_mask = None if tokenizer.mask_token == MASK else tokenizer.mask_token
    return TokenizerConfig(
        kind="file",
        path=f"{found.folder.url}/{TOKENIZER_FILE}",
        end_token=None if tokenizer.end_token == END_OF_TEXT else tokenizer.end_token,
        begin_token=tokenizer.begin_token,
        mask_token=own_mask,
        added_tokens="mask" if needs_mask and own_mask is None else "none",
    )
