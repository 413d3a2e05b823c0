"""`orchestrator runs`: the runs below a storage root, or one of them; and what of all that nothing refers to."""

from orchestrator.artifacts import artifact
from orchestrator.configuration.commands import PruneRunsConfig, RunsConfig
from orchestrator.display.leftovers import show_leftovers
from orchestrator.display.runs import show_run, show_runs
from orchestrator.display.stages import show_stored
from orchestrator.display.terminal import print_line
from orchestrator.display.units import size
from orchestrator.pipeline.stored import stored_stages
from orchestrator.runs.prune import Leftover, find_leftovers, remove_data, remove_folders
from orchestrator.runs.run import Run, has_folder, no_such_run
from orchestrator.runs.state import checkpoints_of, read_run, read_runs
from orchestrator.storage.local import cache_folder
from orchestrator.storage.store import Storage


def run(config: RunsConfig | PruneRunsConfig) -> None:
    """Show the run or the pipeline that is named, or a table of all runs; or remove what nothing refers to."""
    storage = Storage(config.storage.root)
    if isinstance(config, PruneRunsConfig):
        _prune(storage, config)
    elif config.name is not None:
        _show(storage, config.name)
    elif states := read_runs(storage):
        show_runs(states)
        pipelines = dict.fromkeys(state.run.name.partition("/")[0] for state in states if "/" in state.run.name)
        for name in pipelines:
            print_line(f"pipeline {name}: orchestrator runs show {name}")
    else:
        print_line(f"no runs in {storage.url('runs')}")


def _prune(storage: Storage, config: PruneRunsConfig) -> None:
    """Show what nothing refers to, and remove it if that is wanted."""
    found = find_leftovers(storage, config.names)
    show_leftovers(storage.url(), [(one.path, one.num_bytes, one.why) for one in (*found.folders, *found.data)])
    for line in found.stay:
        print_line(line)
    if not config.apply:
        if found.folders or found.data:
            print_line("nothing was removed; apply=true removes it, and prepared data only with prepared_data=true")
        return
    ended = remove_folders(storage, found.folders)
    ended += remove_data(storage, found.data) if config.prepared_data and found.data else []
    _show_ended(ended)


def _show_ended(ended: list[tuple[Leftover, str | None]]) -> None:
    gone = [one for one, why in ended if why is None]
    print_line(f"removed {len(gone)} folders, {size(sum(one.num_bytes for one in gone))}")
    for one, why in ended:
        if why is not None:
            print_line(f"{one.path}: stays; {why}")


def _show(storage: Storage, name: str) -> None:
    """Show the stages of a pipeline, or a run; both if they have the same name."""
    # these folders alone are runs or pipelines: a model's folder, deeper down, also has a recipe
    is_there = has_folder(storage, name)
    stages = stored_stages(storage, name) if is_there else []
    state = read_run(storage, name) if is_there else None
    if not stages and state is None:
        raise no_such_run(storage, "name", name)
    if stages:
        show_stored(name, stages)
    if state is not None:
        show_run(state, checkpoints_of(storage, name), _locations(storage, state.run))


def _locations(storage: Storage, this_run: Run) -> list[str]:
    """Return lines that say where the model, the metrics and W&B's data are, as far as they exist."""
    has_model = artifact.is_committed(storage, this_run.model_name)
    has_metrics = storage.exists(this_run.metrics_name)
    return [
        f"model: {storage.url(this_run.model_name) if has_model else 'none yet'}",
        f"metrics: {storage.url(this_run.metrics_name) if has_metrics else 'none yet'}",
        *(this_run.where_to_look(storage) or [_wandb_data(storage, this_run)]),
    ]


def _wandb_data(storage: Storage, this_run: Run) -> str:
    """Return the line about W&B's data for a run that has not recorded where it is: a run does so when it ends."""
    folder = (storage.local_path(this_run.folder) or cache_folder() / this_run.folder) / "wandb"
    return f"W&B data: {folder if folder.is_dir() else 'none on this machine'}"
