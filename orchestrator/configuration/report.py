"""The configuration of `orchestrator report`."""

from modules.config import Config, Input, Paths, Runtime
from orchestrator.configuration.groups import StorageConfig, TrackingConfig


class ReportConfig(Config):
    """`orchestrator report`: one page about runs, or about the stages of a pipeline."""

    runs: Input[Paths] = ()
    """Names of runs, as `orchestrator runs` lists them; one or a list."""
    stages: Input[Paths] = ()
    """Folders of a pipeline's stages, relative to storage.root; one or a list."""
    graph: Input[str | None] = None
    """A JSON file (any fsspec URL) with the graph of the stages and their times; null draws none."""
    title: Runtime[str | None] = None
    """Title of the page; null names what it is about."""
    to: Runtime[str | None] = None
    """A folder (any fsspec URL) for the page, index.html; null: one below reports/ in storage.root."""
    wandb: Runtime[bool] = False
    """Also save the layout as a workspace and a report in tracking.project of W&B (the extra `workspaces`)."""
    tracking: TrackingConfig = TrackingConfig()
    storage: StorageConfig = StorageConfig()
