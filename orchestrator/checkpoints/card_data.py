"""What the card of a model tells of the texts that it was trained on."""

from collections.abc import Mapping
from typing import Any

from orchestrator.artifacts.data_facts import DataFacts

_MOST_FILES = 5


def data_rows(data: DataFacts, recipe: Mapping[str, Any], source_tokens: Mapping[str, int]) -> dict[str, str]:
    """Return the rows of the table, by their titles.

    Args:
        recipe: Of the run; it has the weights of a mixture.
        source_tokens: Tokens that the training has read of each source of a mixture.
    """
    rows = {"source": _source(data), "revision": data.revision or ""}
    for split, label in (("train", "trained on"), ("val", "held out")):
        if data.num_tokens.get(split):
            rows[label] = f"{data.num_tokens[split]:,} tokens of {_amount(data, split)}"
    weights = recipe.get("mixture", {})
    for name, facts in data.sources.items():
        weight = f"weight {weights[name]:g}; " if name in weights else ""
        seen = f"; {source_tokens[name]:,} tokens seen" if name in source_tokens else ""
        own = (f"{label}: {text}" for label, text in data_rows(facts, {}, {}).items() if text and label != "source")
        rows[f"source {name}"] = f"{weight}{_source(facts)}; {'; '.join(own)}{seen}"
    return {**rows, "fingerprint": f"`{data.name.rpartition('-')[2]}`"}


def hub_names(data: DataFacts) -> list[str]:
    """Return the names of the hub data sets among the texts."""
    return [facts.hub_name for facts in (data, *data.sources.values()) if facts.hub_name]


def _source(data: DataFacts) -> str:
    more = f" and {len(data.files) - _MOST_FILES} more" if len(data.files) > _MOST_FILES else ""
    return {
        "stdlib": "source and documentation of Python's standard library",
        "files": f"files: {', '.join(data.files[:_MOST_FILES])}{more}",
        "huggingface": f"hub data set {data.hub_name}" if data.hub_name else f"files: {', '.join(data.files)}",
        "mixture": f"a mixture of {len(data.sources)} texts",
    }[data.source]


def _amount(data: DataFacts, split: str) -> str:
    if split in data.num_examples:
        return f"{data.num_examples[split]:,} examples"
    return f"{data.num_bytes[split]:,} bytes of text"
