"""The stages of a pipeline in an order in which each follows those that it needs; all mistakes are told at once."""

import graphlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from modules.config import Config, Role
from modules.errors import InputError
from orchestrator.configuration.composer import Composer
from orchestrator.configuration.pipeline import PipelineConfig, RunPipelineConfig, StageConfig
from orchestrator.configuration.schema import field_at, nearest, typed
from orchestrator.errors import ConfigError, UserError
from orchestrator.pipeline import places
from orchestrator.storage.store import Storage


@dataclass(frozen=True)
class Stage:
    """One stage, checked."""

    name: str
    command: str
    overrides: tuple[str, ...]
    """As the user has typed them."""
    links: Mapping[str, tuple[str, ...] | str]
    """A setting of its command -> the stage or stages whose results it is."""
    needs: tuple[str, ...]
    """Stages that come before it."""
    config: Config
    """Its configuration, with places of results that need not be there yet."""


def checked_stages(config: RunPipelineConfig, composer: Composer) -> dict[str, Stage]:
    """Return the stages, each after those that it needs.

    Raises:
        ConfigError: with every mistake of every stage, one line each.
    """
    pipeline = config.pipeline
    order, mistakes = _order(pipeline)
    for field in ("force", "only"):
        mistakes += [
            f"{field}={name}: {_no_such(name, pipeline.stages)}"
            for name in getattr(config, field)
            if name not in pipeline.stages
        ]
    stages: dict[str, Stage] = {}
    for name in order:
        try:
            stages[name] = _checked(name, config, composer)
        except (ConfigError, UserError, InputError) as error:
            mistakes += [f"pipeline.stages.{name}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return stages


def with_needed(stages: Mapping[str, Stage], names: Collection[str]) -> dict[str, Stage]:
    """Return the stages of these names and all that they need, in order; all stages if no name is given."""
    if not names:
        return dict(stages)
    wanted: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in wanted:
            wanted.add(name)
            left += stages[name].needs
    return {name: stage for name, stage in stages.items() if name in wanted}


def linked(value: tuple[str, ...] | str) -> tuple[str, ...]:
    """Return the stage, or the stages, that an input names."""
    return (value,) if isinstance(value, str) else value


def _needs(stage: StageConfig) -> tuple[str, ...]:
    named = [name for value in stage.inputs.values() for name in linked(value)]
    return tuple(dict.fromkeys([*named, *stage.after]))


def _order(pipeline: PipelineConfig) -> tuple[list[str], list[str]]:
    """Return the names in an order that suits the inputs, and what is wrong with these."""
    mistakes, graph = [], {}
    for name, stage in pipeline.stages.items():
        where = {other: f"inputs.{field}" for field, value in stage.inputs.items() for other in linked(value)}
        where = dict.fromkeys(stage.after, "after") | where
        mistakes += [
            f"pipeline.stages.{name}.{field}={other}: {_no_such(other, pipeline.stages)}"
            for other, field in where.items()
            if other not in pipeline.stages
        ]
        graph[name] = [other for other in _needs(stage) if other in pipeline.stages]
    try:
        return list(graphlib.TopologicalSorter(graph).static_order()), mistakes
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        rule = "these stages need each other in a circle; take one input or `after` out of it"
        return list(graph), [*mistakes, f"pipeline.stages: {circle}: {rule}"]


def _no_such(name: str, stages: Mapping[str, StageConfig]) -> str:
    near = nearest(name, list(stages))
    return "no such stage; " + (f"did you mean {near}?" if near else f"there are {', '.join(stages)}")


def _checked(name: str, config: RunPipelineConfig, composer: Composer) -> Stage:
    """Return one stage with its composed configuration.

    Raises:
        ConfigError: with every mistake in it.
    """
    settings, pipeline = config.pipeline.stages[name], config.pipeline
    kind = composer.kind(settings.command)
    places.check_makes_something(settings.command)
    mistakes = [line for field in settings.inputs if (line := _wrong_input(kind, field))]
    mistakes += places.own_settings(settings.overrides, kind)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    storage = Storage(config.storage.root)
    names = [name, *_needs(settings)]
    folders = {other: places.folder(pipeline.name, other, "0" * 16) for other in names}
    # one that is unknown is told already, and must not hide what else is wrong
    commands = {of: pipeline.stages[of].command if of in pipeline.stages else "pretrain" for of in names}
    filled = [
        places.input_override(storage, kind, field, value, folders, commands)
        for field, value in settings.inputs.items()
    ]
    own = places.overrides(config.storage.root, kind, settings.command, folders[name])
    composed = composer.compose(settings.command, [*settings.overrides, *filled, *own])
    return Stage(name, settings.command, settings.overrides, settings.inputs, _needs(settings), composed)


def _wrong_input(kind: type[Config], field: str) -> str | None:
    """Return what is wrong with an input's setting; None if nothing is."""
    found = field_at(kind, field.split("."))
    if found is not None and Role.INPUT in found.metadata:
        return None
    names = places.input_fields(kind)
    near = nearest(field, names)
    remedy = f"did you mean {near}?" if near else f"its inputs are {typed(names)}" if names else "it has none"
    return f"inputs.{field}: {'is no input of' if found else 'no such setting of'} its command; {remedy}"
