"""The graph of a pipeline's stages as places in pixels: each stage below all that it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from orchestrator.display.units import duration
from orchestrator.errors import UserError

BOX_WIDTH, BOX_HEIGHT = 140, 58
_GAP_X, _GAP_Y, _EDGE = 16, 34, 4
_ASIDE = 8
"""How far from the boxes an arrow goes that passes them."""
_MOST_IN_A_ROW = 3
"""More would be too small to read on a telephone."""


Place = tuple[float, float]
"""The upper left corner of a box."""


@dataclass(frozen=True)
class Box:
    """A stage."""

    x: float
    y: float
    name: str
    command: str
    state: str
    time: str


@dataclass(frozen=True)
class Graph:
    """The stages, and the lines between them."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    paths: tuple[str, ...]


def stage_graph(stages: Mapping[str, Mapping[str, Any]]) -> Graph:
    """Return the graph of stages, each with `command`, `state`, `seconds` and `inputs` (the names of stages).

    Raises:
        UserError: stages need one another in a circle.
    """
    rows = _rows(stages)
    width = 2 * _EDGE + max(map(len, rows), default=1) * (BOX_WIDTH + _GAP_X) - _GAP_X
    places = {name: place for number, names in enumerate(rows) for name, place in _row(names, number, width).items()}
    boxes = tuple(
        Box(x, y, name, str(stages[name].get("command", "")), str(stages[name].get("state", "")), _time(stages[name]))
        for name, (x, y) in places.items()
    )
    arrows = [(places[one], places[name]) for name in places for one in _inputs(stages, name)]
    paths = tuple(_path(*arrow) for arrow in arrows)
    width += _ASIDE + _EDGE if any(_passes_rows(*arrow) for arrow in arrows) else 0
    return Graph(width, 2 * _EDGE + len(rows) * (BOX_HEIGHT + _GAP_Y) - _GAP_Y, boxes, paths)


def _inputs(stages: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """Return the stages that a stage needs, each once; others that are named are not of this graph."""
    return [one for one in dict.fromkeys(stages[name].get("inputs") or ()) if one in stages]


def _rows(stages: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the stages of each row; those of one depth take several rows where they are many."""
    by_depth: dict[int, list[str]] = {}
    for name, depth in _depths(stages).items():
        by_depth.setdefault(depth, []).append(name)
    return [
        names[start : start + _MOST_IN_A_ROW]
        for _, names in sorted(by_depth.items())
        for start in range(0, len(names), _MOST_IN_A_ROW)
    ]


def _depths(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    @cache
    def depth(name: str) -> int:
        return 1 + max(map(depth, _inputs(stages, name)), default=-1)

    try:
        return {name: depth(name) for name in stages}
    except RecursionError:
        raise UserError("graph: its stages need one another in a circle; correct `inputs`") from None


def _row(names: Sequence[str], row: int, width: float) -> dict[str, Place]:
    left = (width - len(names) * (BOX_WIDTH + _GAP_X) + _GAP_X) / 2
    return {
        name: (left + number * (BOX_WIDTH + _GAP_X), _EDGE + row * (BOX_HEIGHT + _GAP_Y))
        for number, name in enumerate(names)
    }


def _passes_rows(start: Place, stop: Place) -> bool:
    """Return whether there are rows between two stages."""
    return stop[1] - start[1] > BOX_HEIGHT + _GAP_Y


def _path(start: Place, stop: Place) -> str:
    x, y = start[0] + BOX_WIDTH / 2, start[1] + BOX_HEIGHT
    to_x, to_y = stop[0] + BOX_WIDTH / 2, stop[1] - 5
    if not _passes_rows(start, stop):
        middle = (y + to_y) / 2
        return f"M{x:g} {y:g}C{x:g} {middle:g} {to_x:g} {middle:g} {to_x:g} {to_y:g}"
    # past the rows between them, where a straight line would run behind their boxes
    aside = (
        min(x, to_x) - (BOX_WIDTH + _GAP_X) / 2 if min(x, to_x) > BOX_WIDTH else max(x, to_x) + BOX_WIDTH / 2 + _ASIDE
    )
    near, far = y + _GAP_Y / 2, to_y - _GAP_Y / 2
    return f"M{x:g} {y:g}Q{x:g} {near:g} {aside:g} {near + 9:g}V{far - 4:g}Q{to_x - 20:g} {far:g} {to_x:g} {to_y:g}"


def _time(stage: Mapping[str, Any]) -> str:
    seconds = stage.get("seconds")
    return "" if seconds is None else duration(float(seconds))
