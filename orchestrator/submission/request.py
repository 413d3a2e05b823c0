"""What is asked of the cluster: a command whose settings were composed and checked here, under the name of its run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules.config import Config, Role, holds_groups
from orchestrator.artifacts.recipe import fingerprint, identity
from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.configuration.composer import Composer
from orchestrator.configuration.submission import SubmitConfig
from orchestrator.errors import UserError
from orchestrator.runs.lease import EXPIRY_SECONDS
from orchestrator.storage.redaction import redact, without_query
from orchestrator.submission.package import CONFIG_DIR

STOP_MARGIN_SECONDS = 30
"""Beyond `checkpoint.grace_seconds` until Ray kills a job: its driver ends its workers and gives back its lease."""
LEASE_WAIT_SECONDS = EXPIRY_SECONDS + 30
"""The next attempt follows a driver that was lost with its machine, whose lease has to expire."""
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
_LEASE_WAIT = "cluster.lease_wait_seconds"
_HERE_ALONE = ("submit", "jobs", "logs", "stop", "chat")


@dataclass(frozen=True)
class Request:
    """A command for the cluster."""

    run: str
    """The run's name, or a name from its settings for a command that has no run; its jobs are NAME-attemptN."""
    command: str
    overrides: tuple[str, ...]
    """With what the cluster needs besides those that were given."""
    configs: tuple[Config, ...]
    """The command's configuration; with --multirun that of each of its runs."""
    added: tuple[str, ...]
    """Overrides that were not given."""
    multirun: bool = False

    @property
    def root(self) -> str:
        """The storage root; empty for a command that stores nothing."""
        storage = getattr(self.configs[0], "storage", None)
        return redact(storage.root) if storage else ""

    def env_vars(self, stages: Mapping[str, Config]) -> dict[str, str]:
        """Return what the job finds in its environment; anyone who may list jobs can read it.

        Args:
            stages: The configurations of a pipeline's stages, whose checkpoints take time as well.
        """
        saving = [getattr(config, "checkpoint", None) for config in (*self.configs, *stages.values())]
        grace_seconds = max((checkpoint.grace_seconds for checkpoint in saving if checkpoint), default=0)
        return {_STOP_WAIT: str(math.ceil(grace_seconds) + STOP_MARGIN_SECONDS)}


def requested(config: SubmitConfig, composer: Composer) -> Request:
    """Return the request, composed and validated here.

    Raises:
        UserError: the command cannot be submitted, or its settings have mistakes.
    """
    command, given, multirun = config.command, tuple(config.overrides), config.submit.multirun
    if command in _HERE_ALONE:
        raise UserError(f"command={command}: runs here alone; submit what trains, measures or makes something")

    def composed(overrides: Sequence[str]) -> tuple[Config, ...]:
        return (*composer.compose_all(command, overrides),) if multirun else (composer.compose(command, overrides),)

    configs = composed(given)
    own = configs[0]
    run = _sweep_name(command, given) if multirun else _run_name(command, own)
    added = (*_added_for_cluster(own, given), *(() if multirun else _added_for_run(own, given, run)))
    return Request(run, command, given + added, composed(given + added) if added else configs, added, multirun)


def _run_name(command: str, config: Config) -> str:
    """Return the run's own name for what trains; another command of that run is a job beside it."""
    if isinstance(config, TrainingRunConfig) and config.run.name:
        return config.run.name
    pipeline = getattr(getattr(config, "pipeline", None), "name", None)
    return f"{command}-{pipeline or fingerprint(_content(config))[:8]}"


def _sweep_name(command: str, given: Sequence[str]) -> str:
    """Return the name of a sweep, or one from what was typed, so that the same sweep has the same name."""
    named = [text.partition("=")[2] for text in given if text.lstrip("+").startswith("sweep.name=")]
    return named[-1] if named else f"{command}-sweep-{fingerprint({'overrides': sorted(given)})[:8]}"


def _content(config: Config) -> dict[str, Any]:
    """Return what decides the result, and what is read, so that the same command has the same name."""
    places, storage = dict(inputs_of(config)), getattr(config, "storage", None)
    return {"identity": identity(config), "inputs": places, "root": f"root={storage.root!r}" if storage else ""}


def inputs_of(config: Config, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each setting that says where an input lies, with its texts, without signatures."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from inputs_of(value, f"{prefix}{name}.")
        elif holds_groups(value):
            for number, item in enumerate(value):
                yield from inputs_of(item, f"{prefix}{name}.{number}.")
        elif Role.INPUT in field.metadata and value is not None and value != ():
            texts = value if isinstance(value, tuple) else (value,)
            yield prefix + name, [without_query(str(text)) for text in texts]


def _added_for_cluster(config: Config, given: Sequence[str]) -> Iterator[str]:
    """Yield what is needed to train with the cluster's workers."""
    cluster = getattr(config, "cluster", None)
    if cluster is None:
        return
    chosen = any(text.lstrip("+").startswith(("cluster=", "cluster.name=")) for text in given)
    if cluster.name == "local" and not chosen:
        yield "cluster=ray"
    if cluster.address is None and (cluster.name == "ray" or not chosen):
        yield "cluster.address=auto"


def _added_for_run(config: Config, given: Sequence[str], run: str) -> Iterator[str]:
    """Yield the run's name, and that its driver waits for the lease of one that was lost."""
    if not isinstance(config, TrainingRunConfig):
        return
    if config.run.name is None:
        yield f"run.name={run}"
    is_given = any(text.lstrip("+").startswith(f"{_LEASE_WAIT}=") for text in given)
    if not is_given and config.cluster.lease_wait_seconds == 0:
        yield f"{_LEASE_WAIT}={LEASE_WAIT_SECONDS:g}"


def settings_of(
    request: Request,
    environment: str,
    versions: Mapping[str, Any],
    has_wandb_key: bool,
    has_options: bool,
) -> dict[str, Any]:
    """Return what the entry on the cluster reads, as plain data.

    Args:
        versions: What is checked there.
        has_options: Whether a folder of options is sent as well.
    """
    flags = [*(["--multirun"] if request.multirun else []), *(["--config-dir", CONFIG_DIR] if has_options else [])]
    return {
        "command": request.command,
        "overrides": [*flags, *request.overrides],
        "environment": environment,
        **versions,
        "wandb_key": has_wandb_key,
    }
