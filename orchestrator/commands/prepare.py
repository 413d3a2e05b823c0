"""`orchestrator prepare`: text to token shards, or rows to the examples of a task."""

from contextlib import AbstractContextManager, nullcontext

from modules.data.learned_text import Crew
from orchestrator.artifacts.model_folders import find_model, read_files
from orchestrator.artifacts.prepared_data import DataRequirements
from orchestrator.artifacts.prepared_task import TaskRequest, prepared_task
from orchestrator.artifacts.prepared_texts import check_texts, prepared_texts, preview_texts, text_notes
from orchestrator.configuration.commands import USUAL_LENGTH, PrepareConfig
from orchestrator.display.progress import prepare_progress
from orchestrator.display.terminal import print_line
from orchestrator.storage.store import Storage


def run(config: PrepareConfig) -> None:
    """Prepare the data unless that is done already, check it, and print its URL; or say what filters would do."""
    if config.dry_run:
        for line in preview_texts(config.data):
            print_line(line)
        return
    storage = Storage(config.storage.root)
    if config.task is None:
        with _crew(config) as crew, prepare_progress() as progress:
            name = prepared_texts(storage, config.data, config.tokenizer, DataRequirements(), progress, crew)
        notes = text_notes(storage, name)
    else:
        name, notes = _examples(config, storage)
    check_texts(storage, name)
    for line in notes:
        print_line(line)
    print_line(f"data: {storage.url(name)}")


def _crew(config: PrepareConfig) -> AbstractContextManager[Crew | None]:
    """Return a context with the processes of a cluster; None for those of this machine."""
    if config.cluster.name != "ray":
        return nullcontext()
    from orchestrator.cluster.ray_parts import ray_crew

    paths = [path for text in config.data.sources or (config.data,) for path in text.path]
    return ray_crew(config.cluster, config.storage.root, paths)


def _examples(config: PrepareConfig, storage: Storage) -> tuple[str, list[str]]:
    """Return the name of the prepared examples, and lines for the user on them."""
    assert config.task is not None
    assert config.model.path is not None, "a rule of the configuration"
    files = read_files(find_model(config.model.path, config.model.revision).checked().folder)
    request = TaskRequest(config.task, config.data, files, config.sequence_length or USUAL_LENGTH)
    with prepare_progress() as progress:
        examples = prepared_task(storage, request, progress)
    return examples.name, list(examples.notes)
