"""What is sent to a Ray cluster's job server, and what is asked of it."""

from typing import Annotated, Literal

from pydantic import Field

from modules.config import Config, Runtime

SubmitEnvironment = Literal["none", "lock", "image"]


class SubmitSettings(Config):
    """Where a command is sent, and with what."""

    address: Runtime[str | None] = None
    """The address of the job server, http://HOST:8265, or the cluster (auto, ray://…); null: RAY_ADDRESS, else auto."""
    wait: Runtime[bool] = False
    """Follow the log to the end, and exit with the job's exit code."""
    multirun: Runtime[bool] = False
    """Run every combination of the settings, or a sweep, as --multirun does."""
    environment: Runtime[SubmitEnvironment] = "none"
    """`none`: packages are on the cluster; `lock`: it installs requirements.lock; `image`: it has the project, too."""
    max_bytes: Runtime[Annotated[int, Field(gt=0, le=500 * 2**20)]] = 100 * 2**20
    """Refuse a project larger than this: without what .gitignore names, data/, outputs/ and environments."""
    allow_insecure: Runtime[bool] = False
    """Send it over the network to a cluster that demands no token, where anyone who reaches it can run code."""


class SubmitConfig(Config):
    """`orchestrator submit`: a command runs on a Ray cluster, whether or not this machine stays on."""

    command: Runtime[str]
    """The command to run there, as in `orchestrator submit pretrain +experiment=quickstart`."""
    overrides: Runtime[tuple[str, ...]] = ()
    """What that command is given."""
    submit: SubmitSettings = SubmitSettings()


class JobsConfig(Config):
    """`orchestrator jobs`: what was submitted to a cluster."""

    address: Runtime[str | None] = None
    """The address of the job server, http://HOST:8265, or the cluster (auto, ray://…); null: RAY_ADDRESS, else auto."""
    allow_insecure: Runtime[bool] = False
    """Ask a cluster over the network that demands no token."""


class LogsConfig(JobsConfig):
    """`orchestrator logs`: what a job has printed."""

    name: Runtime[str]
    """The run whose newest job is meant, or a job's id."""
    follow: Runtime[bool] = False
    """Go on printing until the job ends."""


class StopConfig(JobsConfig):
    """`orchestrator stop`: a job saves and ends."""

    name: Runtime[str]
    """The run whose newest job is meant, or a job's id."""
