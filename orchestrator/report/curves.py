"""Curves as points, and axes with round numbers: what is computed before anything is drawn."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

_MOST_DECADES_LINEAR = 1.5
"""Positive values that span more powers of ten are drawn on a logarithmic axis where the plot allows one."""


@dataclass(frozen=True)
class Axis:
    """The range of an axis, and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_logarithmic: bool = False

    def share(self, value: float) -> float:
        """Return where a value is on the axis: 0 at its low end, 1 at its high end."""
        if self.is_logarithmic:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def texts(self) -> list[str]:
        """Return the ticks as text."""
        if self.is_logarithmic:
            return [f"{tick:g}" if 1e-4 < tick < 1e6 else _scientific(tick) for tick in self.ticks]
        return _linear_texts(self.ticks)


def axis(values: Iterable[float], num_ticks: int = 5, may_be_logarithmic: bool = False) -> Axis:
    """Return an axis from one round tick to another that holds all finite values; there must be one."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known), max(known)
    if may_be_logarithmic and low > 0 and math.log10(high / low) > _MOST_DECADES_LINEAR:
        return _logarithmic(low, high)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    step = _round_step((high - low) / num_ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def step_axis(last: float, num_ticks: int = 5) -> Axis:
    """Return an axis from 0 to the last step, which need not be a tick."""
    last = max(last, 1.0)
    step = max(1.0, _round_step(last / num_ticks))
    return Axis(0.0, last, tuple(number * step for number in range(int(last / step + 1e-9) + 1)))


def _round_step(wanted: float) -> float:
    """Return the smallest step of 1, 2 or 5 times a power of ten that is not below `wanted`."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= wanted * (1 - 1e-9))


def _logarithmic(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = -(-(last - first) // 6)
    last = first + every * -(-(last - first) // every)
    ticks = tuple(10.0**power for power in range(first, last + 1, every))
    return Axis(ticks[0], ticks[-1], ticks, is_logarithmic=True)


_PREFIXES = ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))
"""From which largest tick on, what the ticks are divided by, and the prefix."""


def _linear_texts(ticks: Sequence[float]) -> list[str]:
    """Return evenly spaced ticks with the same number of digits and the same prefix."""
    largest, step = max(map(abs, ticks)), ticks[1] - ticks[0]
    if largest < 1e-2 or largest >= 1e15:
        return [_scientific(tick) for tick in ticks]
    scale, prefix = next(((by, prefix) for start, by, prefix in _PREFIXES if largest >= start), (1.0, ""))
    digits = max(0, -math.floor(math.log10(step / scale) + 1e-9))
    return [f"{tick / scale + 0.0:.{digits}f}{prefix if tick else ''}" for tick in ticks]


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    digits, power = f"{value:.3e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def thinned(points: Sequence[Point], low: float, high: float, num_columns: int) -> list[list[Point]]:
    """Return the lines that a curve consists of, with at most four points in each column of pixels.

    In a column the first, the lowest, the highest and the last point are kept, so that the picture is the same as
    with all of them and no spike is lost. Where a value is not finite, the curve has a gap.

    Args:
        points: By x.
        low: The x at the left end.
        high: The x at the right end.
        num_columns: Columns of pixels.

    Source: M4 (Jugel et al. 2014, PVLDB 7.10).
    """
    lines: list[list[Point]] = []
    column, cell, is_broken = -1, list[Point](), True
    for x, y in points:
        if not math.isfinite(y):
            is_broken = True
            continue
        number = int((x - low) / ((high - low) or 1) * num_columns)
        if is_broken or number != column:
            _add(lines, cell)
            cell, column = [], number
        if is_broken:
            lines.append([])
            is_broken = False
        cell.append((x, y))
    _add(lines, cell)
    return lines


def _add(lines: list[list[Point]], cell: list[Point]) -> None:
    if cell:
        numbers = range(len(cell))
        lowest, highest = min(numbers, key=lambda n: cell[n][1]), max(numbers, key=lambda n: cell[n][1])
        lines[-1] += [cell[number] for number in sorted({0, lowest, highest, len(cell) - 1})]
