"""The configuration of `orchestrator runs prune`."""

from modules.config import Config, Paths, Runtime
from orchestrator.configuration.groups import StorageConfig


class PruneRunsConfig(Config):
    """`orchestrator runs prune`: remove what nothing refers to."""

    names: Runtime[Paths] = ()
    """Runs, and pipelines with all their stages, that may go unless something else refers to them."""
    apply: Runtime[bool] = False
    """Remove what is listed; otherwise nothing is written."""
    prepared_data: Runtime[bool] = False
    """Remove listed prepared data, too; data that was prepared for a run to come is listed as well."""
    storage: StorageConfig = StorageConfig()
