"""A run's folder: its configuration and its recipe. A run continues under its name only with the same recipe."""

import logging
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from orchestrator.artifacts.recipe import fingerprint, flat, identity
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.names import newest_committed
from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.configuration.names import PARTS_OF_A_RUN
from orchestrator.configuration.schema import nearest, shown
from orchestrator.errors import DamagedFileError, RunMismatchError, UserError
from orchestrator.planning.continuation import is_same_but_for_length, obstacle
from orchestrator.runs.json_files import read_object, write_object
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.redaction import without_secrets
from orchestrator.storage.store import Storage

if TYPE_CHECKING:
    from modules.objective import Objective

log = logging.getLogger(__name__)
_FOLDER = "runs"
_NUM_READERS = 8
_NO_FILES: Mapping[str, bytes] = MappingProxyType({})
_NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})
_RECIPE, _CONFIG, _IDENTITY, _METRICS = "recipe.json", "config.yaml", "run.json", "metrics.json"


@dataclass(frozen=True)
class Run:
    """One named execution of a training command."""

    name: str
    recipe: dict[str, Any]
    wandb_run_id: str

    @property
    def folder(self) -> str:
        """Relative to the storage root."""
        return f"{_FOLDER}/{self.name}"

    @property
    def model_name(self) -> str:
        """The exported model's artifact, relative to the storage root."""
        return f"{self.folder}/model"

    @property
    def adapter_name(self) -> str:
        """The exported adapter's artifact, if adapters were trained, relative to the storage root."""
        return f"{self.folder}/adapter"

    @property
    def base_name(self) -> str:
        """The small files of the model that is continued, if there is one, relative to the storage root."""
        return f"{self.folder}/base_model"

    @property
    def num_steps(self) -> int:
        """Steps after which it is done, unless it stops before because it no longer gets better."""
        return self.recipe["training"]["num_steps"]

    @property
    def metrics_name(self) -> str:
        """The file of the final metrics, relative to the storage root."""
        return f"{self.folder}/{_METRICS}"

    def base_place(self, storage: Storage) -> tuple[str, str | None]:
        """Return the path and the revision of the model that is continued.

        Raises:
            DamagedFileError: the configuration, which holds them, is damaged.
        """
        name = f"{self.folder}/{_CONFIG}"
        try:
            model = yaml.safe_load(storage.read_bytes(name))["model"]
            return str(model["path"]), model["revision"]
        except (NotFoundError, yaml.YAMLError, TypeError, KeyError) as error:
            raise DamagedFileError(f"{storage.url(name)}: names no model ({error}); restore it from a copy") from error

    def metrics(self, storage: Storage) -> dict[str, float] | None:
        """Return the final metrics; None until the run is complete."""
        return read_object(storage, self.metrics_name, "delete it and run the same command again to write it anew")

    def is_complete(self, storage: Storage) -> bool:
        """Return whether all its steps are done; a run that was complete may now have more of them."""
        metrics = self.metrics(storage)
        if metrics is None:
            return False
        return "progress/stopped_early" in metrics or metrics.get("progress/step", self.num_steps) >= self.num_steps

    def exported_step(self, storage: Storage) -> int | None:
        """Return the step whose model it has exported; None until it is complete."""
        metrics = self.metrics(storage)
        if metrics is None or not self.is_complete(storage):
            return None
        return int(metrics.get("progress/exported_step", metrics.get("progress/step", self.num_steps)))

    def where_to_look(self, storage: Storage) -> list[str]:
        """Return lines that say where the tracked data is and how to look at it."""
        return _read_identity(storage, self.name).get("where_to_look", [])

    def write_identity(self, storage: Storage, where_to_look: list[str]) -> None:
        """Write what stays the same across all restarts."""
        content = {"wandb_run_id": self.wandb_run_id, "where_to_look": where_to_look}
        write_object(storage, f"{self.folder}/{_IDENTITY}", content)

    def write_metrics(self, storage: Storage, metrics: dict[str, float]) -> None:
        """Write the final metrics, which a run does last."""
        write_object(storage, self.metrics_name, metrics)


class ObjectiveSource(Protocol):
    """The source of the workers' training objective; plain data, so that it can be sent to any process."""

    @property
    def data_name(self) -> str:
        """The prepared data's artifact, relative to the storage root."""
        ...

    def open(self, storage: Storage) -> "Objective":
        """Return the training objective.

        Raises:
            OrchestratorError: the data is damaged, or cannot be read.
        """
        ...


@dataclass(frozen=True)
class Job:
    """What every worker needs to train; it can be sent to any process."""

    config: TrainingRunConfig
    """Its storage root is absolute, because workers may start in other folders."""
    run: Run
    attempt: Attempt
    objective: ObjectiveSource
    driver_has_wandb_key: bool = False
    """Whether W&B would find a key on the driver's machine, which a worker's may lack."""


def training_recipe(
    config: TrainingRunConfig,
    data_name: str,
    base: dict[str, Any] | None = None,
    command: str = "pretrain",
    weights: Mapping[str, float] = _NO_WEIGHTS,
) -> dict[str, Any]:
    """Return what decides the weights: the prepared data, and every setting that is marked `Identity`.

    Args:
        base: Identity of the model that is continued; None for weights from the seed.
        command: The command that trains.
        weights: Of the sources of a mixture, by name.
    """
    decides = identity(config)
    groups = {name: fields for name, fields in decides.items() if name not in ("run", "data", "tokenizer")}
    begun = {} if base is None else {"base_model": base}
    mixed = {"mixture": dict(weights)} if weights else {}
    return {"command": command, "data": data_name, **mixed, "seed": decides["run"]["seed"], **begun, **groups}


def open_run(storage: Storage, config: TrainingRunConfig, recipe: dict[str, Any]) -> Run:
    """Return the run that `config` names, new or existing; write nothing.

    An existing one may get another number of steps if that changes nothing about those that it has done.

    Raises:
        RunMismatchError: a run of this name has another recipe; the message lists what differs.
    """
    name = config.run.name or f"{recipe['command']}-{fingerprint(recipe)[:8]}"
    begun = find_run(storage, name)
    if begun is None:
        _check_is_new(storage, name)
        return Run(name, recipe, secrets.token_hex(4))
    if begun.recipe == recipe:
        return begun
    if not is_same_but_for_length(begun.recipe, recipe):
        raise RunMismatchError(_mismatch(name, begun.recipe, recipe))
    if reason := obstacle(begun.recipe, recipe, next(newest_committed(storage, name), 0)):
        raise RunMismatchError(f"{_mismatch(name, begun.recipe, recipe)}\n  {reason}")
    return replace(begun, recipe=recipe)


def _check_is_new(storage: Storage, name: str) -> None:
    """Raise RunMismatchError if there are checkpoints without a recipe, from which another run would continue."""
    if next(newest_committed(storage, name), None) is not None:
        raise RunMismatchError(
            f"run.name={name}: {storage.url(f'{_FOLDER}/{name}')} has checkpoints but no {_RECIPE}, which says how "
            f"they were made; restore it (a finished run has a copy in model/{_RECIPE}), or choose another run.name"
        )


def find_run(storage: Storage, name: str) -> Run | None:
    """Return the existing run of that name; None if there is none.

    Raises:
        DamagedFileError: its recipe is damaged.
    """
    remedy = "restore it (a finished run has a copy in model/recipe.json), or choose another run.name"
    recipe = read_object(storage, f"{_FOLDER}/{name}/{_RECIPE}", remedy)
    if recipe is None:
        return None
    return Run(name, recipe, _read_identity(storage, name).get("wandb_run_id") or secrets.token_hex(4))


def _read_identity(storage: Storage, name: str) -> dict[str, Any]:
    """Return what stays the same across all restarts; without it the run continues as a new one in W&B."""
    try:
        return read_object(storage, f"{_FOLDER}/{name}/{_IDENTITY}", "the run continues as a new one in W&B") or {}
    except DamagedFileError as error:
        log.warning("%s", error)
        return {}


def no_such_run(storage: Storage, field: str, name: str) -> UserError:
    """Return the error for a run that is not there, with the nearest name.

    Args:
        field: The setting that holds the name.
    """
    near = nearest(name, [other for other in folder_names(storage) if other != name])
    remedy = f"did you mean {near}?" if near else "`orchestrator runs` lists all"
    return UserError(f"{field}={shown(name)}: no such run in {storage.url(_FOLDER)}; {remedy}")


def existing_run(storage: Storage, field: str, name: str) -> Run:
    """Return the run of that name.

    Args:
        field: The setting that holds the name.

    Raises:
        UserError: there is none.
        DamagedFileError: its recipe is damaged.
    """
    found = find_run(storage, name) if has_folder(storage, name) else None
    if found is None:
        raise no_such_run(storage, field, name)
    return found


def folder_names(storage: Storage) -> list[str]:
    """Return the names of all folders that may be runs; `find_run` finds out which of them are.

    Those of a pipeline's stages lie in its folder, and their names have a slash.
    """
    outer = storage.list(_FOLDER, folders_only=True)

    def inside(name: str) -> list[str]:
        return [f"{name}/{part}" for part in storage.list(f"{_FOLDER}/{name}", folders_only=True)]

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        inner = [path for paths in pool.map(inside, outer) for path in paths]
    return sorted([*outer, *(path for path in inner if path.partition("/")[2] not in PARTS_OF_A_RUN)])


def has_folder(storage: Storage, name: str) -> bool:
    """Return whether `folder_names` has a name, without listing what lies in the folders of others."""
    outer, slash, inner = name.partition("/")
    if outer not in storage.list(_FOLDER, folders_only=True) or inner in PARTS_OF_A_RUN:
        return False
    return not slash or inner in storage.list(f"{_FOLDER}/{outer}", folders_only=True)


def begin(storage: Storage, run: Run, config: TrainingRunConfig, base_files: Mapping[str, bytes] = _NO_FILES) -> None:
    """Write configuration and recipe into the run's folder, the recipe last: with it the run has begun.

    Args:
        base_files: Small files of the model that is continued; the export needs them when that model may be gone.
    """
    storage.remove(run.metrics_name)  # of fewer steps
    for name, content in base_files.items():
        storage.write_bytes(f"{run.base_name}/{name}", content)
    _write(storage, run, config)


def keep(storage: Storage, run: Run, config: TrainingRunConfig) -> None:
    """Write configuration and recipe again if somebody has removed them from under the run; its metrics stay."""
    if not all(storage.exists(f"{run.folder}/{name}") for name in (_RECIPE, _CONFIG, _IDENTITY)):
        _write(storage, run, config)


def _write(storage: Storage, run: Run, config: TrainingRunConfig) -> None:
    settings = yaml.safe_dump(without_secrets(config.model_dump(mode="json")), sort_keys=False)
    storage.write_bytes(f"{run.folder}/{_CONFIG}", settings.encode())
    run.write_identity(storage, [])
    write_object(storage, f"{run.folder}/{_RECIPE}", run.recipe)


def _mismatch(name: str, stored: dict[str, Any], requested: dict[str, Any]) -> str:
    before, now = flat(stored), flat(requested)
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    lines = [f"  {key}: was {before.get(key)!r}, now {now.get(key)!r}" for key in changed]
    title = (
        f"run.name={name}: a run of this name was begun with other settings; choose another run.name or restore them:"
    )
    return "\n".join([title, *lines])
