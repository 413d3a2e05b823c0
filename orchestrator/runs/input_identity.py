"""What changes with the content of a command's inputs, found by their types and computed as the commands do it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from modules.config import Config, DataConfig, Role, TokenizerConfig
from modules.huggingface.folder import ADAPTER_WEIGHTS
from modules.model_config import ModelConfig
from orchestrator.artifacts.base_model import model_identity
from orchestrator.artifacts.mixture import of_source
from orchestrator.artifacts.model_folders import find_adapter, find_model, hub_commit_of, read_files
from orchestrator.artifacts.prepared_data import identity_of, text_identity, tokenizer_identity
from orchestrator.artifacts.prepared_task import TaskRequest, examples_name, rows_identity
from orchestrator.artifacts.prepared_texts import texts_name
from orchestrator.artifacts.recipe import fingerprint
from orchestrator.checkpoints.names import newest_committed
from orchestrator.configuration.commands import USUAL_LENGTH, ModelPath, NoModelPath, OtherModel, PrepareConfig
from orchestrator.configuration.groups import BegunRun
from orchestrator.errors import UserError
from orchestrator.runs.run import find_run, no_such_run
from orchestrator.storage.input_files import find_files
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage


class Inputs:
    """Reads the inputs of several commands, each once: they may read the same files, which takes a while."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._found: dict[tuple[str, ...], Any] = {}

    def identities(self, config: Config, links: Mapping[str, Any]) -> dict[str, Any]:
        """Return the identity of each input of a command by the setting that names it.

        Args:
            config: The command's configuration.
            links: Identities of the inputs that are results of other stages, by setting.

        Raises:
            UserError, InputError: an input is not there.
        """
        is_task = getattr(config, "task", None) is not None
        return {**links, **self._within(config, "", links, is_task)}

    def _within(self, config: Config, prefix: str, links: Mapping[str, Any], is_task: bool) -> dict[str, Any]:
        if isinstance(config, DataConfig):
            return self._texts(config, prefix, links, is_task)
        found: dict[str, Any] = {}
        for name, field in type(config).model_fields.items():
            setting, value = f"{prefix}{name}", getattr(config, name)
            if isinstance(value, Config):
                found |= self._within(value, f"{setting}.", links, is_task)
            elif Role.INPUT in field.metadata and setting not in links and value not in (None, ()):
                identity = self._identity(config, name, value)
                found |= {} if identity is None else {setting: identity}
        return found

    def _identity(self, config: Config, name: str, value: Any) -> Any:
        """Return the identity of one input; None where another setting's holds it."""
        if name == "revision":
            return None  # of a model, whose identity holds its commit
        if isinstance(config, TokenizerConfig):
            return tokenizer_identity(config)
        if isinstance(config, BegunRun):
            return _run_identity(value, self._storage)
        if name == "path" and isinstance(config, ModelConfig | ModelPath | NoModelPath | OtherModel):
            key = ("model", value, str(config.revision))
            return self._once(key, lambda: _model_identity(value, config.revision))
        if name == "adapter":
            return identity_of(find_files([f"{find_adapter(value).folder.url}/{ADAPTER_WEIGHTS}"]))
        if isinstance(value, str | tuple):
            return fingerprint({"files": identity_of(find_files([value] if isinstance(value, str) else value))})
        return value

    def _texts(self, config: DataConfig, prefix: str, links: Mapping[str, Any], is_task: bool) -> dict[str, Any]:
        """Return the identity of a text, or of each source of a mixture, unless it is the result of another stage."""
        if config.is_single:
            is_linked = any(name.startswith(prefix) for name in links)
            return {} if is_linked else {prefix.rstrip("."): self._data(config, is_task)}
        found: dict[str, Any] = {}
        for number, source in enumerate(config.sources):
            if not any(name.startswith(f"{prefix}sources.{number}.") for name in links):
                with of_source(source.name):
                    found[f"{prefix}sources.{source.name}"] = self._data(source.text(), is_task)
        return found

    def _data(self, config: DataConfig, is_task: bool) -> str:
        read = rows_identity if is_task else text_identity
        key = ("rows" if is_task else "text", config.model_dump_json())
        return self._once(key, lambda: fingerprint({"files": read(config)}))

    def _once(self, key: tuple[str, ...], read: Callable[[], Any]) -> Any:
        if key not in self._found:
            self._found[key] = read()
        return self._found[key]


def _model_identity(path: str, revision: str | None) -> dict[str, Any]:
    commit = hub_commit_of(path, revision)
    return {"hub": path, "commit": commit} if commit else model_identity(path, find_model(path, revision))


def _run_identity(name: str, storage: Storage) -> dict[str, Any]:
    """Return what changes with the newest checkpoint of a run."""
    run = find_run(storage, name)
    if run is None:
        raise no_such_run(storage, "run.name", name)
    step = next(newest_committed(storage, name), None)
    if step is None:
        raise UserError(f"run.name={name}: it has no finished checkpoint yet")
    return {"recipe": fingerprint(run.recipe), "step": step}


def named_inputs(config: Config, links: Mapping[str, Sequence[str] | str]) -> dict[str, list[str]]:
    """Return what each input of a command is called, without secrets: the stages in `links`, or its paths."""
    return {**dict(_paths(config)), **{setting: _listed(value) for setting, value in links.items()}}


def _paths(config: Config, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _paths(value, f"{prefix}{name}.")
        elif Role.INPUT in field.metadata and isinstance(value, str | tuple) and value:
            yield f"{prefix}{name}", [redact(one) for one in _listed(value)]


def _listed(value: Sequence[str] | str) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def prepared_name(storage: Storage, config: PrepareConfig, overrides: Sequence[str]) -> str:
    """Return the name of what `prepare` has made, relative to the storage root.

    Args:
        storage: The storage root.
        config: Its configuration.
        overrides: Those of its command line; the last model.path is the place of the model.
    """
    if config.task is None:
        return texts_name(storage, config.data, config.tokenizer)
    paths = [word.partition("=")[2] for word in overrides if word.startswith("model.path=")]
    found = find_model(paths[-1] if paths else str(config.model.path), config.model.revision)
    length = config.sequence_length or USUAL_LENGTH
    return examples_name(TaskRequest(config.task, config.data, read_files(found.checked().folder), length))
