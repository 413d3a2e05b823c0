"""Texts of a mixture in the configuration: what each takes from `data`, and every mistake with its path."""

from typing import Any

import pytest

from modules.config import DataConfig, ObjectiveConfig, SourceConfig
from orchestrator.artifacts.recipe import identity
from orchestrator.configuration.commands import (
    CompareConfig,
    EvaluateConfig,
    FinetuneConfig,
    PrepareConfig,
    PretrainConfig,
)
from orchestrator.configuration.mistakes import mistakes_in, validated
from orchestrator.configuration.schema import field_at
from orchestrator.configuration.signatures import without_signatures

A, B = {"name": "a", "path": "a.jsonl"}, {"name": "b", "path": ["b.txt", "c.txt"], "weight": 2}


def pretrain(data: dict[str, Any], **others: Any) -> list[str]:
    return mistakes_in({"data": data, **others}, PretrainConfig)


def test_a_source_has_the_fields_of_data_that_it_leaves_out() -> None:
    raw = {"text_field": "body", "val_fraction": 0.2, "sources": [A, {**B, "text_field": "own", "max_epochs": 4}]}
    first, second = validated({"data": raw}, PretrainConfig).data.sources
    assert (first.source, first.path, first.text_field, first.val_fraction) == ("files", ("a.jsonl",), "body", 0.2)
    assert (first.weight, first.max_epochs) == (1.0, None)
    assert (second.path, second.text_field, second.weight, second.max_epochs) == (("b.txt", "c.txt"), "own", 2.0, 4.0)
    assert first.text() == DataConfig(source="files", path=("a.jsonl",), text_field="body", val_fraction=0.2)


def test_a_mixture_that_was_validated_is_valid_as_it_is() -> None:
    made = DataConfig.model_validate({"sources": [A, B, {"name": "c", "source": "stdlib"}]})
    assert DataConfig.model_validate(made.model_dump()) == made
    hub = DataConfig.model_validate({"source": "huggingface", "hub_split": "x", "sources": [{**A, "path": "o/a"}]})
    assert (hub.sources[0].source, hub.sources[0].hub_split) == ("huggingface", "x")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"sources": [A, A]}, "data.sources=…: several are called a; give each a name of its own"),
        ({"sources": [{**A, "weight": 0}, {**B, "weight": 0}]}, "data.sources=…: the weights sum to nothing"),
        ({"sources": [A, {"name": "b"}]}, "data.sources.1: source=files needs path: name a file"),
        ({"path": "x", "source": "files", "sources": [A]}, "data.path=x: with data.sources each text has its own"),
        ({"sources": [{**A, "name": "a/b"}]}, "data.sources.0.name=a/b: must match"),
        ({"sources": [{**A, "weight": -1}]}, "data.sources.0.weight=-1: must be at least 0"),
        ({"sources": [{**A, "max_epochs": 0}]}, "data.sources.0.max_epochs=0: must be above 0"),
        ({"sources": [{**A, "wieght": 2}]}, "data.sources.0.wieght=2: unknown; did you mean data.sources.0.weight?"),
        ({"sources": [{"path": "x"}]}, "data.sources.0.name: must be given"),
        ({"sources": [{**A, "split_field": "part"}]}, "data.sources.0.split_field=part: belongs to the rows of a task"),
        ({"sources": [{**A, "sources": []}]}, "data.sources.0.sources=[]: unknown"),
    ],
)
def test_a_mistake_in_a_mixture_is_one_line_with_its_path(data: dict[str, Any], said: str) -> None:
    (line,) = pretrain(data)
    start, _, rest = said.partition("…")
    assert line.startswith(start)
    assert rest in line


def test_all_mistakes_are_reported_at_once_and_one_in_a_shared_field_only_where_it_was_made() -> None:
    assert pretrain({"val_fraction": 2, "sources": [{**A, "weight": "x"}, {"path": "y", "text_field": 3}]}) == [
        "data.val_fraction=2: must be below 1",
        "data.sources.0.weight=x: must be a number",
        "data.sources.1.text_field=3: must be text",
        "data.sources.1.name: must be given",
    ]


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"tokenizer": {"sources": ["a", "bb"]}}, "tokenizer.sources: bb is not in data.sources; did you mean b?"),
        ({"tokenizer": {"kind": "byte", "sources": ["a"]}}, "tokenizer.sources=[a]: needs kind=bpe or char"),
        (
            {"objective": {"phases": [{"weights": {"clm": 1}, "fraction": 1, "data_weights": {"web": 1}}]}},
            "objective.phases.0.data_weights: web is not in data.sources; the names are a, b",
        ),
        (
            {"objective": {"phases": [{"weights": {"clm": 1}, "fraction": 1, "data_weights": {"a": 0}}]}},
            "objective.phases.0.data_weights={a:0}: sum to nothing: at least one must be above 0",
        ),
    ],
)
def test_names_of_sources_elsewhere_are_those_of_the_mixture(others: dict[str, Any], said: str) -> None:
    (line,) = pretrain({"sources": [A, B]}, **others)
    assert line.startswith(said)


def test_names_of_sources_without_a_mixture_are_refused() -> None:
    phases = [{"weights": {"clm": 1}, "fraction": 1, "data_weights": {"a": 1}}]
    lines = pretrain({}, objective={"phases": phases}, tokenizer={"sources": ["a"]})
    assert [line.partition(":")[0] for line in lines] == ["tokenizer.sources", "objective.phases.0.data_weights"]


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        (FinetuneConfig, {"model": {"path": "x"}, "task": {"name": "dialogue"}}),
        (PrepareConfig, {"model": {"path": "x"}, "task": {"name": "dialogue"}}),
        (CompareConfig, {"model": {"path": "x"}, "task": {"name": "dialogue"}, "other": {"path": "y"}}),
        (EvaluateConfig, {"model": {"path": "x"}}),
    ],
)
def test_a_mixture_is_refused_where_one_text_or_the_rows_of_a_task_are_read(kind: Any, others: dict[str, Any]) -> None:
    assert mistakes_in({"data": {"sources": [A]}, **others}, kind) == [
        "data.sources: prepare and pretrain alone mix texts, and without a task; name one text in data.path"
    ]


def test_what_has_no_mixture_has_the_recipe_that_it_had() -> None:
    recipe = identity(PretrainConfig())
    assert "sources" not in recipe["data"] | recipe["tokenizer"]
    assert recipe["objective"]["phases"] == [{"weights": {"clm": 1.0}, "fraction": 1.0, "steps": None}]


def test_recipe_of_a_mixture_has_what_decides_it_and_no_path_and_no_bound() -> None:
    data = DataConfig.model_validate({"sources": [{**A, "max_epochs": 2, "num_processes": 3}, B]})
    first, _ = identity(data)["sources"]
    assert (first["name"], first["weight"], first["val_fraction"]) == ("a", 1.0, 0.01)
    assert not {"path", "max_epochs", "num_processes"} & first.keys()
    phase = {"weights": {"clm": 1}, "fraction": 1, "data_weights": {"a": 0.5}}
    assert identity(ObjectiveConfig.model_validate({"phases": [phase]}))["phases"][0]["data_weights"] == {"a": 0.5}


def test_a_field_of_a_source_is_found_by_the_key_that_is_typed() -> None:
    assert field_at(PretrainConfig, ["data", "sources", "0", "path"]) is SourceConfig.model_fields["path"]


def test_every_source_loses_its_signature() -> None:
    signed = "https://store/x?X-Amz-Signature=0123456789abcdef"
    config = PretrainConfig.model_validate({"data": {"sources": [{**A, "path": signed}, B]}})
    first, second = without_signatures(config).data.sources
    assert first.path == ("https://store/x?***",)
    assert second == SourceConfig.model_validate({**B, "source": "files"})
