"""`orchestrator doctor`: checks the machine, the storage root and the services that a run would use."""

from functools import partial

from orchestrator.configuration.commands import DoctorConfig
from orchestrator.doctor import machine, packages, toolchain
from orchestrator.doctor.findings import Check, run_checks
from orchestrator.doctor.ray_address import ray_cluster
from orchestrator.doctor.report import show_findings
from orchestrator.doctor.storage_root import storage_root
from orchestrator.doctor.wandb_account import wandb_account
from orchestrator.errors import MachineError

LIMIT_SECONDS = 60


def run(config: DoctorConfig) -> None:
    """Show a line for each check, with the remedy.

    Raises:
        MachineError: a check has failed.
    """
    limit_seconds = LIMIT_SECONDS + (toolchain.BUILD_SECONDS if config.build else 0)
    failed = show_findings(run_checks(_checks(config), limit_seconds))
    if failed:
        raise MachineError(f"{len(failed)} check{'s' if len(failed) > 1 else ''} failed: {', '.join(failed)}")


def _checks(config: DoctorConfig) -> dict[str, Check]:
    return {
        "processors": machine.processors,
        "GPUs": machine.gpus,
        "shared memory": machine.shared_memory,
        "versions": packages.versions,
        "compiler": toolchain.compiler,
        "ninja": toolchain.ninja,
        "compile locks": partial(toolchain.locks, config.fix),
        "extensions": partial(toolchain.extensions, config.build),
        "storage": partial(storage_root, config.storage.root),
        "Ray": partial(ray_cluster, config.cluster, config.storage.root),
        "W&B": partial(wandb_account, config.tracking),
    }
