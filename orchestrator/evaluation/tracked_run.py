"""The run that has trained a model, and the figures of an evaluation under its id in Weights & Biases."""

from collections.abc import Callable, Mapping

import yaml
from pydantic import ValidationError

from orchestrator.artifacts.model_folders import StoredFolder
from orchestrator.configuration.groups import TrackingConfig
from orchestrator.runs.json_files import read_object
from orchestrator.runs.run import Run, find_run
from orchestrator.runs.tracking import Tracker, make_tracker
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.local import cache_folder
from orchestrator.storage.store import Storage


def run_of(model: StoredFolder, root: Storage) -> Run | None:
    """Return the run below a storage root whose model that folder is; None if it is another's."""
    runs, url = root.url("runs"), model.url.rstrip("/")
    if not url.startswith(f"{runs}/") or not url.endswith("/model"):
        return None
    name = url.removeprefix(f"{runs}/").removesuffix("/model")
    if name.count("/") > 1:
        return None
    identity = read_object(root, f"runs/{name}/run.json", "restore it, or remove it to evaluate without W&B")
    return find_run(root, name) if identity and "wandb_run_id" in identity else None


def track(
    run: Run,
    root: Storage,
    metrics: Mapping[str, float],
    notify: Callable[[str], None],
    log_plots: Callable[[Tracker], None] = lambda _: None,
) -> list[str]:
    """Add figures to the summary of a run in W&B, and return lines that say where they are.

    The run is tracked as it was in its training: online, offline, or not at all.

    Args:
        metrics: By the names that they get there.
        notify: Receives a line that the user should see, such as that W&B cannot be reached.
        log_plots: Logs what is no figure.
    """
    settings = _settings(run, root)
    folder = root.local_path(run.folder) or cache_folder() / run.folder
    tracker = make_tracker(settings, run.name, run.wandb_run_id, folder, {}, notify)
    log_plots(tracker)
    tracker.finish(metrics)
    return tracker.describe()


def _settings(run: Run, root: Storage) -> TrackingConfig:
    """Return how a run is tracked; not at all where its configuration cannot be read."""
    try:
        content = yaml.safe_load(root.read_bytes(f"{run.folder}/config.yaml"))
        return TrackingConfig.model_validate(content.get("tracking", {}))
    except (NotFoundError, yaml.YAMLError, AttributeError, ValidationError):
        return TrackingConfig(mode="disabled")
