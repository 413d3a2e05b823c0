"""The choice of the launcher. External systems are imported only when they are chosen."""

from orchestrator.cluster.base import Launcher
from orchestrator.configuration.commands import TrainingRunConfig


def launcher_for(config: TrainingRunConfig) -> Launcher:
    """Return the launcher that `config` selects; the local one never imports Ray.

    Raises:
        HardwareError: there is less hardware than the workers request, or it does not support the configuration.
    """
    if config.cluster.name == "ray":
        from orchestrator.cluster.ray_cluster import RayLauncher

        return RayLauncher(config)
    from orchestrator.cluster.local import LocalLauncher

    return LocalLauncher(config)
