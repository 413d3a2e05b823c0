"""Rules on what is left out of a text: the rows of a task are all used."""

from typing import Any

from modules.quality_config import GROUPS
from orchestrator.configuration.commands import PredictConfig, PrepareConfig


def filters_belong_to_text(config: Any) -> list[str]:
    """Refuse filters for the rows of a task."""
    data = config.data
    is_of_task = getattr(config, "task", None) is not None or isinstance(config, PredictConfig)
    if data is None or not is_of_task:
        return []
    given = [name for name in GROUPS if getattr(data, name) != type(data).model_fields[name].default]
    return [f"data.{name}: belongs to plain text, and the rows of a task are all used; leave it out" for name in given]


def dry_run_belongs_to_text(config: PrepareConfig) -> list[str]:
    """Refuse to say what filters would do where there are none."""
    if not config.dry_run or config.task is None:
        return []
    return ["dry_run=true: says what filters would leave out of a text, and the rows of a task are all used"]
