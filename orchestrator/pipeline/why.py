"""Why a stage would run: what differs from the newest earlier attempt at it, in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.configuration.schema import shown
from orchestrator.pipeline.graph import Stage, linked
from orchestrator.runs.input_identity import named_inputs

_UNSET = "unset"
_MOST_NAMES = 3


def differences(
    stage: Stage, recipe: Mapping[str, Any], earlier: Mapping[str, Any], made_by: Mapping[str, Any]
) -> list[str]:
    """Return a line for each difference between a stage and what is stored of an earlier attempt at it.

    Args:
        stage: The stage.
        recipe: The content of its recipe.
        earlier: Recipe and named inputs of the attempt.
        made_by: The identity of each stage's result, by the stage's name.
    """
    before, called = earlier["recipe"], earlier.get("inputs", {})
    lines = [
        f"{path.removeprefix('settings.')}: was {_value(was)}, now {_value(now)}"
        for path, was, now in _changes({**before, "inputs": {}}, {**recipe, "inputs": {}})
    ]
    for setting in sorted({*before["inputs"], *recipe["inputs"]}):
        was = before["inputs"].get(setting)
        if was != recipe["inputs"].get(setting):
            lines += _of_input(setting, was, stage, called, made_by)
    return list(dict.fromkeys(lines))


def _changes(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs between two recipes: the dotted name, what it was and what it is."""
    for name in sorted({*before, *now}):
        was, is_now, inner = before.get(name, _UNSET), now.get(name, _UNSET), f"{path}.{name}".lstrip(".")
        if isinstance(was, dict) and isinstance(is_now, dict):
            yield from _changes(was, is_now, inner)
        elif was != is_now:
            yield inner, was, is_now


def _value(value: Any) -> str:
    """Return a value as it is typed, and a group by its name."""
    return shown(value.get("name", value) if isinstance(value, dict) else value)


def _of_input(setting: str, was: Any, stage: Stage, called: Mapping[str, Any], made_by: Mapping[str, Any]) -> list[str]:
    """Return lines about an input: it is called otherwise, or what is called the same is another one."""
    group, names = f"{setting.removesuffix('.path')}.", named_inputs(stage.config, stage.links)
    own = [name for name in sorted({*called, *names}) if name == setting or name.startswith(group)]
    changed = {name: (called.get(name), names.get(name)) for name in own if called}
    lines = [
        f"input {name}: was {_called(was_called, is_called)}, now {_called(is_called, was_called)}"
        for name, (was_called, is_called) in changed.items()
        if was_called != is_called
    ]
    known = called.get(setting) if lines else None
    makers = [of for of in linked(stage.links.get(setting, ())) if known is None or of in known]
    others = [of for of in makers if made_by[of] not in (was if isinstance(was, list) else [was])]
    if others:
        listed = ", ".join(others[:_MOST_NAMES])
        more = f" and {len(others) - _MOST_NAMES} more" if len(others) > _MOST_NAMES else ""
        lines.append(f"input {setting}: {listed}{more} {'is' if len(others) == 1 else 'are'} made otherwise")
    if not lines:
        what = "; ".join(_called(names[name], None) for name in own if name in names)
        lines.append(f"input {setting}: other content" + (f" in {what}" if what else ""))
    return lines


def _called(value: Sequence[str] | None, other: Sequence[str] | None) -> str:
    """Return what an input is called, and of a long list what the other one has not."""
    if value is None:
        return _UNSET
    own = [name for name in value if len(value) <= _MOST_NAMES or name not in (other or ())]
    return shown(own[0] if len(value) == 1 else own if len(own) == len(value) else ["…", *own])
