"""How examples were classified, as tables: the confusion matrix, and the scores of each label."""

from collections.abc import Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modules.tasks.classification_metrics import Matrix, class_scores
from orchestrator.display.terminal import new_console, new_table, print_line, printable
from orchestrator.display.units import count, percent

_GAP = 2
"""Spaces between columns."""
_SHORTEST_NAME = 12
"""Letters of a label that a row must have room for."""


def show_classification(labels: Sequence[str], confusion: Matrix) -> None:
    """Show the confusion matrix, or its most frequent mistakes if it is too wide, and the scores of each class."""
    console = new_console()
    names = [printable(console, " ".join(label.split())) for label in labels]
    matrix = _matrix(console, names, confusion)
    if matrix is None:
        print_line(f"The confusion matrix of {len(labels)} labels is too wide to be shown here.")
    console.print(_mistakes(names, confusion) if matrix is None else matrix)
    console.print(_scores(names, confusion))


def _matrix(console: Console, names: Sequence[str], confusion: Matrix) -> Table | None:
    """Return the confusion matrix, None if it is too wide; columns have numbers where their names do not fit."""
    numbers = [str(number) for number in range(1, len(names) + 1)]
    cells = [[_cell(value) for value in row] for row in confusion]
    heads, room = names, 0
    for heads in (names, numbers):
        columns = [numbers, *([head, *column] for head, column in zip(heads, zip(*cells, strict=True), strict=True))]
        room = console.width - sum(max(map(cell_len, column)) + _GAP for column in columns) - 2 * _GAP
        if room >= min(_SHORTEST_NAME, max(map(cell_len, names))):
            break
    else:
        return None
    table = new_table("Confusion matrix: rows are labels, columns what was predicted")
    table.box, table.padding = SIMPLE_HEAD, (0, 0, 0, _GAP - 1)
    table.add_column(justify="right")
    table.add_column("label", no_wrap=True, max_width=room)
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for row, name in enumerate(names):
        shown = [Text(cell, style="bold" if row == column else "") for column, cell in enumerate(cells[row])]
        table.add_row(numbers[row], Text(name, overflow="ellipsis"), *shown)
    return table


def _cell(number: float) -> str:
    return "·" if number == 0 else f"{number:.0f}" if number < 100_000 else count(number)


def _mistakes(names: Sequence[str], confusion: Matrix) -> Table:
    """Return the most frequent pairs of a label and another that was predicted."""
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    table = new_table("Most frequent mistakes")
    for head in ("label", "predicted"):
        table.add_column(head, overflow="fold")
    table.add_column("examples", justify="right")
    for row, column in (divmod(int(cell), len(names)) for cell in order):
        if wrong[row, column]:
            table.add_row(Text(names[row]), Text(names[column]), count(float(wrong[row, column])))
    return table


def _scores(names: Sequence[str], confusion: Matrix) -> Table:
    table = new_table("Scores of each label")
    table.add_column("", justify="right")
    table.add_column("label", overflow="fold")
    for head in ("precision", "recall", "F1", "examples"):
        table.add_column(head, justify="right")
    for number, (name, precision, recall, f1, support) in enumerate(
        zip(names, *class_scores(confusion), strict=True), start=1
    ):
        table.add_row(str(number), Text(name), percent(precision), percent(recall), percent(f1), count(support))
    return table
