"""The configuration of `orchestrator run`: the stages of a pipeline, and which of them are to run."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from modules.config import Config, Identity, Paths, Runtime
from orchestrator.configuration.groups import ClusterConfig, StorageConfig
from orchestrator.configuration.names import PipelineName, StageName


def _with_dotted_keys(value: Any) -> Any:
    """Return `{model: {path: base}}` as `{model.path: base}`: Hydra reads dots in a key of an override so."""
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for key, item in value.items():
        inside = _with_dotted_keys(item)
        found |= {f"{key}.{name}": of for name, of in inside.items()} if isinstance(inside, dict) else {key: item}
    return found


Inputs = Annotated[dict[str, StageName | tuple[StageName, ...]], BeforeValidator(_with_dotted_keys)]


class StageConfig(Config):
    """One command of a pipeline, and where its inputs come from."""

    command: Identity[str]
    """The command, as it is typed after `orchestrator`."""
    overrides: Identity[tuple[str, ...]] = ()
    """Its groups and fields, as they are typed after the command."""
    inputs: Identity[Inputs] = {}
    """A setting of the command -> the stage whose result it is, or a list of stages."""
    after: Runtime[tuple[StageName, ...]] = ()
    """Stages that must be done before, though nothing of them is read."""


class PipelineConfig(Config):
    """Stages, each a command; the graph follows from their inputs."""

    name: Runtime[PipelineName]
    """The first part of the names of its runs, before the slash."""
    stages: Identity[Annotated[dict[StageName, StageConfig], Field(min_length=1)]]
    """Each stage by its name."""


class RunPipelineConfig(Config):
    """`orchestrator run`: the stages of a pipeline that are not done yet."""

    pipeline: PipelineConfig
    """The pipeline: an option of conf/pipeline/."""
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()
    dry_run: Runtime[bool] = False
    """Show what would run, and why, and write nothing."""
    force: Runtime[Paths] = ()
    """Stages that run although they are done; a stage or a list."""
    only: Runtime[Paths] = ()
    """Run these stages and what they need, and nothing else; a stage or a list; empty runs all."""
    keep_going: Runtime[bool] = False
    """After a failed stage, go on with those that do not depend on it."""
