"""Rules on what is left out of a text: the rows of a task are all used."""

from typing import Any

from modules.quality_config import GROUPS
from orchestrator.configuration.commands import PredictConfig, PrepareConfig

_WHO = {False: "this machine or by cluster=ray", True: "this machine alone; leave it out"}


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


def cluster_prepares_files(config: PrepareConfig) -> list[str]:
    """Refuse a cluster for text that one process has to read in order, and workers that nobody has asked to prepare."""
    cluster, data = config.cluster.name, config.data
    if cluster == "local":
        return []
    if cluster != "ray" or config.task is not None:
        return [f"cluster={cluster}: {'a task is' if config.task else 'text is'} prepared by {_WHO[bool(config.task)]}"]
    texts = data.sources or (data,)
    mistakes = [
        f"cluster=ray: its nodes read files, and {text.prefix}source={text.source} is none; leave out cluster=ray"
        for text in texts
        if text.source != "files"
    ]
    if any(getattr(text, name) != type(text).model_fields[name].default for text in texts for name in GROUPS):
        mistakes.append(
            "cluster=ray: filters compare all documents on one machine; leave out cluster=ray, or the filters"
        )
    return mistakes
