"""What is started once a configuration is valid, while this process imports what it needs itself."""

from typing import TYPE_CHECKING

from orchestrator.cluster import fork_server

if TYPE_CHECKING:
    from modules.config import Config


def give_head_start(config: "Config") -> None:
    """Start the fork server for a training with several local workers: its imports take longer than all else.

    Nothing is written. Where the training is refused meanwhile, for want of hardware or data, the server ends with
    this process.
    """
    from orchestrator.configuration.commands import TrainingRunConfig

    if not isinstance(config, TrainingRunConfig):
        return
    if config.cluster.name == "local" and max(config.cluster.worker_counts) > 1:
        fork_server.start()
