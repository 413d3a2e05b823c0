"""Rules between the texts of a mixture and other groups."""

from typing import Any

from modules.config import DataConfig, OneTextConfig
from orchestrator.configuration.schema import nearest, shown

SPLIT_SETTINGS = ("val_path", "test_path", "split_field", "hub_val_split", "hub_test_split")
"""Fields of rows, by which a task says what is held out."""


def sources_are_for_pretraining(config: Any) -> list[str]:
    """Refuse several texts where one text, or the rows of a task, are read."""
    mixes = "tokenizer" in type(config).model_fields and getattr(config, "task", None) is None
    if mixes or config.data is None or not config.data.sources:
        return []
    return ["data.sources: prepare and pretrain alone mix texts, and without a task; name one text in data.path"]


def sources_have_no_rows_of_a_task(config: Any) -> list[str]:
    """Refuse settings of rows in a source."""
    data: DataConfig | None = config.data
    return [
        f"data.sources.{number}.{name}={shown(getattr(source, name))}: belongs to the rows of a task; leave it out"
        for number, source in enumerate(data.sources if data else ())
        for name in SPLIT_SETTINGS
        # what all have in common is reported once, as a field of data
        if getattr(source, name) not in (OneTextConfig.model_fields[name].default, getattr(data, name))
    ]


def tokenizer_names_sources(config: Any) -> list[str]:
    """Refuse a tokenizer that is to learn from sources that do not exist."""
    return _unknown("tokenizer.sources", config.tokenizer.sources, config.data)


def phases_name_sources(config: Any) -> list[str]:
    """Refuse weights of sources that do not exist."""
    return [
        line
        for number, phase in enumerate(config.objective.phases)
        for line in _unknown(f"objective.phases.{number}.data_weights", phase.data_weights or (), config.data)
    ]


def _unknown(field: str, named: Any, data: DataConfig) -> list[str]:
    names = [source.name for source in data.sources]
    if named and not names:
        return [f"{field}: needs data.sources, which names the texts of a mixture"]
    unknown = [name for name in named if name not in names]
    return [f"{field}: {shown(name)} is not in data.sources; {_meant(name, names)}" for name in unknown]


def _meant(name: str, names: list[str]) -> str:
    near = nearest(name, names)
    return f"did you mean {near}?" if near else f"the names are {', '.join(names)}"
