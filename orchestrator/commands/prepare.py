"""`orchestrator prepare`: text to token shards."""

from orchestrator.config import PrepareConfig
from orchestrator.console import prepare_progress, say
from orchestrator.data import Needs, prepared_data
from orchestrator.storage import Storage


def run(config: PrepareConfig) -> None:
    """Prepare the data, or find it prepared, and say where it is."""
    storage = Storage(config.storage.root)
    with prepare_progress() as progress:
        name = prepared_data(storage, config.data, config.tokenizer, Needs(), progress)
    say(f"data: {storage.url(name)}")
