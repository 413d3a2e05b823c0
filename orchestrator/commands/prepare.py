"""`orchestrator prepare`: text to token shards."""

from orchestrator.artifacts.prepared_data import DataRequirements, check_data, data_notes, prepared_data
from orchestrator.configuration.commands import PrepareConfig
from orchestrator.display.progress import prepare_progress
from orchestrator.display.terminal import print_line
from orchestrator.storage.store import Storage


def run(config: PrepareConfig) -> None:
    """Prepare the data unless that is done already, check it, and print its URL."""
    storage = Storage(config.storage.root)
    with prepare_progress() as progress:
        name = prepared_data(storage, config.data, config.tokenizer, DataRequirements(), progress)
    check_data(storage, name)
    for line in data_notes(storage, name):
        print_line(line)
    print_line(f"data: {storage.url(name)}")
