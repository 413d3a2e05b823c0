"""The choice of the launcher. External systems are imported only when they are chosen."""

from collections.abc import Callable
from typing import TypeVar

from orchestrator.cluster.base import Launcher
from orchestrator.cluster.quick_imports import quick_imports
from orchestrator.configuration.commands import TrainingRunConfig

C = TypeVar("C", bound=TrainingRunConfig)


def drive_run(config: C, drive: Callable[[C, Launcher], None]) -> None:
    """Call `drive` with the launcher that `config` selects, in the one process that drives the run.

    Under torchrun every other process trains what that one asks for.

    Raises:
        UserError: there is less hardware than the workers request, or it does not support the configuration.
    """
    if config.cluster.name == "torchrun":
        with quick_imports():
            from orchestrator.cluster.torchrun import drive_or_join

        drive_or_join(config, drive)
    else:
        drive(config, launcher_for(config))


def launcher_for(config: TrainingRunConfig) -> Launcher:
    """Return the launcher that `config` selects, which starts the workers; the local one never imports Ray.

    Raises:
        HardwareError: there is less hardware than the workers request, or it does not support the configuration.
    """
    if config.cluster.name == "ray":
        from orchestrator.cluster.ray_cluster import RayLauncher

        return RayLauncher(config)
    with quick_imports():
        from orchestrator.cluster.local import LocalLauncher

    return LocalLauncher(config)
