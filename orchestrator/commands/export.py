"""`orchestrator export`: the model at any checkpoint of a run, as a folder for other tools."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from modules.model_config import ModelConfig
from orchestrator.artifacts import artifact
from orchestrator.checkpoints.checkpoint import open_checkpoint
from orchestrator.checkpoints.export import RECIPE, dtype_of, export_adapter, export_model, recipe_to_show
from orchestrator.checkpoints.model_card import BIDIRECTIONAL
from orchestrator.checkpoints.names import committed_steps, is_committed_step, name_of, newest_committed
from orchestrator.configuration.commands import ExportConfig
from orchestrator.display.terminal import print_line
from orchestrator.errors import ArtifactError, UserError
from orchestrator.runs.exportable import base_dtype, exportable
from orchestrator.runs.run import Run, existing_run
from orchestrator.storage.store import Storage


def run(config: ExportConfig) -> None:
    """Write the model, unless it is there already, and print where it is."""
    storage = Storage(config.storage.root)
    this_run = existing_run(storage, "run.name", config.run.name)
    step = _step(config, storage, this_run)
    target, name = _place(config, storage, this_run, step)
    url = target.url(name)
    if _is_there(config, storage, target, name, this_run, step):
        print_line(f"model: {url} holds it already (step {step}); nothing was written")
        return
    with _remedy(storage, this_run.name, step):
        source = exportable(storage, this_run, open_checkpoint(storage, name_of(this_run.name, step)))
        export_model(target, name, source, config.export)
        if source.base and (config.to, name) == (None, this_run.model_name):
            export_adapter(target, this_run.adapter_name, source)
    print_line(f"model: {url} (step {step}, {dtype_of(config.export, this_run.recipe, source.base_dtype)})")
    for line in _uses(source.model, url):
        print_line(line)


def _uses(model: ModelConfig, url: str) -> list[str]:
    """Return lines about what opens the model."""
    if model.classifier is None:
        return [f'try it: orchestrator generate model.path={url} prompt="import os"']
    try_it = f'try it: orchestrator predict model.path={url} text="a text"'
    return [BIDIRECTIONAL, try_it] if model.classifier.attention == "bidirectional" else [try_it]


def _step(config: ExportConfig, storage: Storage, this_run: Run) -> int:
    newest = next(newest_committed(storage, config.run.name), None)
    if newest is None:
        raise UserError(
            f"run.name={config.run.name}: it has no finished checkpoint yet; export it after its first save"
        )
    if config.step is not None and not is_committed_step(storage, config.run.name, config.step):
        there = ", ".join(map(str, committed_steps(storage, config.run.name)))
        raise UserError(
            f"step={config.step}: run {config.run.name} has no finished checkpoint after it; there are {there}"
        )
    done = this_run.exported_step(storage)
    is_there = done is not None and is_committed_step(storage, config.run.name, done)
    return config.step or (done if done is not None and is_there else newest)


def _place(config: ExportConfig, storage: Storage, this_run: Run, step: int) -> tuple[Storage, str]:
    """Return the store and the folder in it; a run's own model folder is only for what the run itself leaves there."""
    if config.to is not None:
        if not config.to.strip():
            raise UserError("to='': is empty; name a new folder or a URL, or null for a folder within the run")
        return Storage(config.to), ""
    if step == this_run.exported_step(storage):
        return storage, this_run.model_name
    return storage, f"{this_run.folder}/exports/step_{step:08d}"


def _is_there(config: ExportConfig, storage: Storage, target: Storage, name: str, this_run: Run, step: int) -> bool:
    """Return whether the folder holds this very model.

    Raises:
        UserError: the folder holds anything else, which is never overwritten.
        ArtifactError: it holds this model, damaged.
    """
    url, path = target.url(name), target.local_path(name)
    where = url if config.to is None else f"to={url}"
    if path is not None and path.is_file():
        raise UserError(f"{where}: is a file; name a new folder")
    if not target.exists(f"{name}/{artifact.COMMITTED}"):
        if config.to is not None and target.list(name, hidden=True):
            raise UserError(
                f"{where}: is not empty, and nothing is overwritten; name a new folder, or empty it if it is what an "
                "interrupted export has left"
            )
        return False
    try:
        if other := _differences(config, storage, target, name, this_run, step):
            raise UserError(f"{where}: holds {other}, and nothing is overwritten; name a new folder in to=")
        artifact.verify_sizes(target, name)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; remove {url}, and the same command writes it anew") from None
    return True


def _differences(config: ExportConfig, storage: Storage, target: Storage, name: str, this_run: Run, step: int) -> str:
    """Return in which way a folder holds something else than the requested model; empty if it holds that."""
    manifest = artifact.read_manifest(target, name)
    if manifest.get("kind") != "model":
        return f"an artifact of kind {manifest.get('kind')}"
    if json.loads(target.read_bytes(f"{name}/{RECIPE}")) != recipe_to_show(this_run.recipe):
        return "a model of another recipe"
    # what was exported by versions before this command was float32, and names no licence
    found = {"dtype": "float32", "license": None, **manifest}
    dtype = dtype_of(config.export, this_run.recipe, base_dtype(storage, this_run))
    wanted = {"step": step, "dtype": dtype, "license": config.export.license}
    other = [f"{key} {found[key]} instead of {value}" for key, value in wanted.items() if found[key] != value]
    return f"this run's model with {', '.join(other)}" if other else ""


@contextmanager
def _remedy(storage: Storage, run_name: str, step: int) -> Iterator[None]:
    """Say what to do about a checkpoint that cannot be read; the run may just have removed it."""
    url = storage.url(name_of(run_name, step))
    try:
        yield
    except ArtifactError as error:
        if not str(error).startswith(url):  # of the text or of the target
            raise
        steps = committed_steps(storage, run_name)
        others = ", ".join(str(other) for other in steps if other != step) or "none"
        if step in steps:
            raise ArtifactError(
                f"{error}; restore it from a copy, or export another one with step= ({others})"
            ) from None
        raise ArtifactError(
            f"{url}: the run has removed this checkpoint in the meantime; export another one with step= ({others}), or "
            "keep more of them with checkpoint.keep_last or checkpoint.keep_every_steps"
        ) from None
