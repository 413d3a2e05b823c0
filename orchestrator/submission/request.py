"""What is asked of the cluster: a command whose settings were composed and checked here, under the name of its run."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.config import Config, Role
from orchestrator.artifacts.recipe import fingerprint, identity
from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.configuration.composer import Composer
from orchestrator.configuration.schema import shown
from orchestrator.configuration.submission import SubmitConfig
from orchestrator.errors import ConfigError, UserError
from orchestrator.storage.access import is_local, path_of
from orchestrator.storage.redaction import redact, without_query, without_secrets
from orchestrator.storage.store import Storage
from orchestrator.submission.package import CONFIG_DIR

STOP_MARGIN_SECONDS = 30
"""Beyond `checkpoint.grace_seconds` until Ray kills a job: its driver ends its workers and gives back its lease."""
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
_HERE_ALONE = ("submit", "jobs", "logs", "stop", "chat")
_OUTPUTS = ("output", "to")


@dataclass(frozen=True)
class Request:
    """A command for the cluster."""

    run: str
    """The run's name, or a name from its settings for a command that has no run; its jobs are NAME-attemptN."""
    command: str
    overrides: tuple[str, ...]
    """With what the cluster needs besides those that were given."""
    config: Config
    added: tuple[str, ...]
    """Overrides that were not given."""

    @property
    def root(self) -> str:
        """The storage root; empty for a command that stores nothing."""
        storage = getattr(self.config, "storage", None)
        return redact(storage.root) if storage else ""

    @property
    def env_vars(self) -> dict[str, str]:
        """What the job finds in its environment; anyone who may list jobs can read it."""
        checkpoint = getattr(self.config, "checkpoint", None)
        return {_STOP_WAIT: str(math.ceil(checkpoint.grace_seconds if checkpoint else 0) + STOP_MARGIN_SECONDS)}

    @property
    def leased_run(self) -> str:
        """The run whose lease its driver takes; empty for a command that takes none."""
        return self.run if isinstance(self.config, TrainingRunConfig) else ""


def requested(config: SubmitConfig, composer: Composer) -> Request:
    """Return the request, composed and validated here.

    Raises:
        UserError: the command cannot be submitted, or its settings have mistakes.
    """
    command, given = config.command, tuple(config.overrides)
    if command in _HERE_ALONE:
        raise UserError(f"command={command}: runs here alone; submit what trains, measures or makes something")
    own = composer.compose(command, given)
    run = _run_name(command, own)
    added = tuple(_added(own, given, run))
    return Request(run, command, given + added, composer.compose(command, given + added), added)


def _run_name(command: str, config: Config) -> str:
    """Return the run's own name for what trains; another command of that run is a job beside it."""
    if isinstance(config, TrainingRunConfig) and config.run.name:
        return config.run.name
    pipeline = getattr(getattr(config, "pipeline", None), "name", None)
    return f"{command}-{pipeline or fingerprint(_content(config))[:8]}"


def _content(config: Config) -> dict[str, Any]:
    """Return what decides the result, and what is read, so that the same command has the same name."""
    places, storage = dict(_inputs(config)), getattr(config, "storage", None)
    return {"identity": identity(config), "inputs": places, "root": f"root={storage.root!r}" if storage else ""}


def _inputs(config: Config, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each setting that says where an input lies, with its texts, without signatures."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _inputs(value, f"{prefix}{name}.")
        elif Role.INPUT in field.metadata and value is not None and value != ():
            texts = value if isinstance(value, tuple) else (value,)
            yield prefix + name, [without_query(str(text)) for text in texts]


def _added(config: Config, given: Sequence[str], run: str) -> Iterator[str]:
    """Yield what the cluster needs besides: the run's name, and to train with the cluster's workers."""
    if isinstance(config, TrainingRunConfig) and config.run.name is None:
        yield f"run.name={run}"
    cluster = getattr(config, "cluster", None)
    if cluster is None:
        return
    chosen = any(text.lstrip("+").startswith(("cluster=", "cluster.name=")) for text in given)
    if cluster.name == "local" and not chosen:
        yield "cluster=ray"
    if cluster.address is None and (cluster.name == "ray" or not chosen):
        yield "cluster.address=auto"


def check(request: Request, files: Collection[str], config_dir: Path | None) -> None:
    """Check what would be different on the cluster from here.

    Args:
        files: What is sent of this folder.
        config_dir: The user's folder of options.

    Raises:
        ConfigError: a setting holds a secret, or a path that is not there on the cluster, or that is lost with the job.
    """
    mistakes = [*_secrets(request.overrides, config_dir), *_lost(request.config), *_not_sent(request.config, files)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _secrets(overrides: Sequence[str], config_dir: Path | None) -> Iterator[str]:
    texts = [(text.partition("=")[0].lstrip("+"), text) for text in overrides]
    options = sorted(config_dir.rglob("*.yaml")) if config_dir else []
    texts += [(f"--config-dir: {path}", path.read_text(encoding="utf-8")) for path in options]
    for where, text in texts:
        if holds_secret(text):
            yield (
                f"{where}: holds a password, a key or a signed URL; what is submitted can be read in the cluster by "
                "whoever may use it. Let its nodes have the credentials (their environment, a role, a Kubernetes "
                "secret), and give the address without them"
            )


def holds_secret(text: str) -> bool:
    """Return whether a text holds a URL's credentials or signature, or the value of a secret environment variable."""
    return redact(text) != text or without_secrets(text) != text


def _lost(config: Config) -> Iterator[str]:
    """Yield a mistake for each place that lies in the job's own folder, which the cluster deletes."""
    storage = getattr(config, "storage", None)
    places = [("storage.root", storage.root)] if storage else []
    places += [(name, getattr(config, name)) for name in _OUTPUTS if isinstance(getattr(config, name, None), str)]
    for name, value in places:
        if _is_relative(value):
            yield (
                f"{name}={shown(value)}: a relative path lies in the job's own folder on the cluster, which is deleted "
                f"after it; give a URL such as s3://bucket/{value.strip('/') or 'outputs'}, or the absolute path of a "
                "folder that all its nodes share"
            )


def _is_relative(path: str) -> bool:
    return is_local(path) and not Path(path_of(path)).expanduser().is_absolute()


def _not_sent(config: Config, files: Collection[str]) -> Iterator[str]:
    for name, texts in _inputs(config):
        for text in texts:
            if _is_relative(text) and _stays_here(path_of(text), files):
                yield (
                    f"{name}={shown(text)}: is not among the files that are sent, so it is not on the cluster; put it "
                    "into storage that its nodes can read, and give the URL or the path there"
                )


def _stays_here(text: str, files: Collection[str]) -> bool:
    """Return whether a relative path or glob names something here, of which nothing is sent."""
    try:
        found = list(Path().glob(text)) if text.strip("./") else [Path(text)]
    except (ValueError, NotImplementedError):
        return False
    names = {path.as_posix() for path in found if path.exists()}
    return bool(names) and not any(
        file in names or any(file.startswith(f"{name}/") for name in names) for file in files
    )


def settings_of(
    request: Request,
    environment: str,
    tested: dict[str, str],
    allowed: dict[str, str],
    has_wandb_key: bool,
    config_dir: Path | None,
) -> dict[str, Any]:
    """Return what the entry on the cluster reads, as plain data."""
    folder = ["--config-dir", CONFIG_DIR] if config_dir else []
    return {
        "command": request.command,
        "overrides": [*folder, *request.overrides],
        "environment": environment,
        "tested": tested,
        "allowed": allowed,
        "wandb_key": has_wandb_key,
        "run": request.leased_run,
        "root": Storage(request.root).url() if request.root else "",
    }
