"""What `orchestrator run` shows: what would run and why, and the stages as they run."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from orchestrator.display.terminal import new_console, new_table

STYLES = {
    "done": "green",
    "running": "bold green",
    "run": "bold",
    "resume": "yellow",
    "failed": "bold red",
    "skipped": "dim",
    "stopped": "yellow",
}


@dataclass(frozen=True)
class PlannedRow:
    """One stage in the table of a dry run."""

    name: str
    command: str
    state: str
    reasons: Sequence[str]


def show_plan(title: str, rows: Sequence[PlannedRow]) -> None:
    """Show what would run, and why."""
    table = new_table(title)
    for column in ("stage", "command", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", overflow="fold")
    for row in rows:
        style = STYLES.get(row.state.split()[0], STYLES.get(row.state.split()[-1], ""))
        table.add_row(row.name, row.command, Text(row.state, style=style), Text("\n".join(row.reasons)))
    new_console().print(table)


def new_stage_table(title: str) -> Table:
    """Return an empty table of running stages."""
    table = new_table(title)
    for column in ("stage", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("step", "loss", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    return table
