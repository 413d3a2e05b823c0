"""Prepared data of one text, or of all texts of a mixture with one tokenizer, each prepared and kept on its own."""

from collections.abc import Callable, Mapping

from modules.config import DataConfig, SourceConfig, TokenizerConfig
from modules.data.learned_text import Crew
from modules.data.prepare import OnProgress
from orchestrator.artifacts import artifact
from orchestrator.artifacts.mixture import mixture_name, of_source, publish_mixture, sources_of
from orchestrator.artifacts.opened_data import check_data
from orchestrator.artifacts.prepared_data import DataRequirements, data_name, data_notes, prepared_data, preview_data
from orchestrator.artifacts.shared_tokenizer import shared_tokenizer, trained_tokenizer
from orchestrator.storage.store import Storage


def prepared_texts(
    storage: Storage,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    requirements: DataRequirements,
    progress: Callable[[int], OnProgress],
    crew: Crew | None = None,
) -> str:
    """Return the name of the prepared data of a text or a mixture; what of it is not there is made first.

    Raises:
        UserError, InputError: a text cannot be used, or does not fit the requirements.
    """
    if data.is_single:
        return prepared_data(storage, data, tokenizer, requirements, progress, crew)
    shared = shared_tokenizer(storage, data, tokenizer)
    names = {}
    for source in data.sources:
        with of_source(source.name):
            names[source.name] = prepared_data(storage, source.text(), shared, requirements, progress, crew)
    return publish_mixture(storage, names)


def preview_texts(data: DataConfig) -> list[str]:
    """Return lines for the user on what would be left out of a text, or of each of a mixture; nothing is written.

    Raises:
        UserError, InputError: a text cannot be used.
    """
    if data.is_single:
        return preview_data(data)
    lines: list[str] = []
    for source in data.sources:
        with of_source(source.name):
            lines += [f"source {source.name}: {line}" for line in preview_data(source.text())]
    return lines


def texts_name(storage: Storage, data: DataConfig, tokenizer: TokenizerConfig) -> str:
    """Return the name that the prepared data of a text or a mixture has.

    Raises:
        ArtifactError: the tokenizer of a mixture, from which it follows, has not been trained.
    """
    if data.is_single:
        return data_name(data, tokenizer)
    shared = trained_tokenizer(storage, data, tokenizer)
    return mixture_name({source.name: data_name(source.text(), shared) for source in data.sources})


def text_notes(storage: Storage, name: str) -> list[str]:
    """Return lines for the user on prepared data, as `data_notes`; those on a source say which."""
    found = sources_of(storage, name).items()
    return [f"source {source}: {line}" if source else line for source, of in found for line in data_notes(storage, of)]


def check_texts(storage: Storage, name: str) -> None:
    """Raise ArtifactError, with the remedy, unless the prepared data is whole, as `check_data`."""
    for of in sources_of(storage, name).values():
        check_data(storage, of)


def num_train_tokens(storage: Storage, name: str) -> dict[str, int]:
    """Return the tokens of the training split of each source."""
    found = sources_of(storage, name).items()
    return {source: artifact.read_manifest(storage, of)["num_tokens"]["train"] for source, of in found}


def by_name(data: DataConfig) -> list[SourceConfig]:
    """Return the sources in the order of their names, in which the texts of a mixture are numbered."""
    return sorted(data.sources, key=lambda source: source.name)


def weights_of(data: DataConfig) -> Mapping[str, float]:
    """Return the weight of each source; empty for a single text."""
    return {source.name: source.weight for source in by_name(data)}
