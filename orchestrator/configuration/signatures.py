"""A configuration without the credentials of its inputs."""

from typing import Any, TypeVar

from modules.config import Config, Role, holds_groups
from orchestrator.storage.redaction import redact

AnyConfig = TypeVar("AnyConfig", bound=Config)


def without_signatures(config: AnyConfig) -> AnyConfig:
    """Return the configuration with redacted URLs of its inputs, once nothing more is read from them.

    The model stays as it is: workers read its weights.
    """
    groups = {name: getattr(config, name) for name in type(config).model_fields if name != "model"}
    return config.model_copy(
        update={name: _redacted(group) for name, group in groups.items() if isinstance(group, Config)}
    )


def _redacted(group: Config) -> Config:
    fields = type(group).model_fields
    inputs = {name: getattr(group, name) for name, field in fields.items() if Role.INPUT in field.metadata}
    lists = {name: value for name in fields if holds_groups(value := getattr(group, name))}
    return group.model_copy(
        update={
            **{name: _without_credentials(value) for name, value in inputs.items()},
            **{name: tuple(map(_redacted, value)) for name, value in lists.items()},
        }
    )


def _without_credentials(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_without_credentials, value))
    return redact(value) if isinstance(value, str) else value
