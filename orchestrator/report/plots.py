"""A plot as places in pixels, from which the page draws it as SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.report.curves import Axis, Point, axis, step_axis, thinned
from orchestrator.report.layout import Panel

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 38
_COLUMNS = 2 * (WIDTH - LEFT - RIGHT)
"""Columns of pixels that a curve is thinned to; a dense screen has two for each unit of the drawing."""
_MOST_DOTS = 40
NUM_COLOURS = 7
OTHER = NUM_COLOURS
"""The colour of all runs for which there is none."""


@dataclass(frozen=True)
class Series:
    """The curves of one run, or of another part of a report with a colour of its own."""

    label: str
    colour: int
    metrics: Mapping[str, Sequence[Point]]
    """Points by step, for each metric."""
    marks: Sequence[tuple[float, str]] = ()
    """Steps at which something happened, and what."""


@dataclass(frozen=True)
class Tick:
    """A tick of an axis."""

    place: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One curve of a plot."""

    colour: int
    is_dashed: bool
    path: str
    dots: tuple[Point, ...]
    title: str


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step."""

    colour: int
    place: float
    title: str


@dataclass(frozen=True)
class Plot:
    """Everything that is drawn in one plot."""

    title: str
    about: str
    """The figures by name, their unit, and what the lines are."""
    steps: tuple[Tick, ...]
    values: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...]


def plot(panel: Panel, series: Sequence[Series]) -> Plot | None:
    """Return the plot of a panel; None if there is no finite value."""
    drawn = [(one, name, points) for one in series for name in panel.metrics if (points := one.metrics.get(name))]
    values = [y for _, _, points in drawn for _, y in points if abs(y) < float("inf")]
    if not values:
        return None
    steps = step_axis(max(x for _, _, points in drawn for x, _ in points))
    heights = axis(values, may_be_logarithmic=panel.may_be_logarithmic)
    marks = [(one, *mark) for one in series for mark in one.marks] if panel.shows_faults else []
    return Plot(
        panel.title,
        _about(panel, heights, has_marks=bool(marks)),
        tuple(Tick(_x(steps, step), text) for step, text in zip(steps.ticks, steps.texts(), strict=True)),
        tuple(Tick(_y(heights, value), text) for value, text in zip(heights.ticks, heights.texts(), strict=True)),
        tuple(_curve(panel, one, name, points, steps, heights) for one, name, points in drawn),
        tuple(Mark(one.colour, _x(steps, step), f"{one.label}: {text}") for one, step, text in marks),
    )


def _about(panel: Panel, heights: Axis, has_marks: bool) -> str:
    first, *others = panel.metrics
    parts = [
        first,
        f"dashed {', '.join(others)}" if others else "",
        panel.unit,
        "logarithmic" if heights.is_logarithmic else "",
        "dotted: faults and restarts" if has_marks else "",
    ]
    return "; ".join(filter(None, parts))


def _curve(panel: Panel, series: Series, name: str, points: Sequence[Point], steps: Axis, heights: Axis) -> Curve:
    lines = thinned(points, steps.low, steps.high, _COLUMNS)
    places = [[(_x(steps, x), _y(heights, y)) for x, y in line] for line in lines]
    number = sum(map(len, places))
    # a value between two gaps is a line of no length, which only a dot shows
    dots = [place for line in places for place in line if number <= _MOST_DOTS or len(line) == 1]
    path = "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in line) for line in places)
    last = next(y for _, y in reversed(points) if abs(y) < float("inf")) if places else float("nan")
    return Curve(
        series.colour,
        name != panel.metrics[0],
        path,
        tuple(dots),
        f"{series.label}: {name}, last {last:.4g}",
    )


def _x(steps: Axis, step: float) -> float:
    return round(LEFT + steps.share(step) * (WIDTH - LEFT - RIGHT), 1)


def _y(heights: Axis, value: float) -> float:
    return round(HEIGHT - BOTTOM - heights.share(value) * (HEIGHT - BOTTOM - TOP), 1)
