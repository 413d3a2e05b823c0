"""What `orchestrator run` shows: what would run and why, and the stages as they run."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.display.terminal import new_console, new_table
from orchestrator.display.units import age, duration

STYLES = {
    "done": "green",
    "running": "bold green",
    "run": "bold",
    "resume": "yellow",
    "failed": "bold red",
    "skipped": "dim",
    "stopped": "yellow",
}

_ORDER = {state: number for number, state in enumerate(("failed", "running", "stopped", "waiting", "skipped"))}
_LONGEST_REASON = 60


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


@dataclass(frozen=True)
class StoredRow:
    """One attempt at a stage, as it is stored."""

    name: str
    command: str
    state: str
    seconds: float | None
    began: float
    path: str


def show_stored(pipeline: str, rows: Sequence[StoredRow]) -> None:
    """Show every attempt at the stages of a pipeline."""
    table = new_table(f"Pipeline {pipeline}")
    for column in ("stage", "command", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("time", "age"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for row in rows:
        seconds = "" if row.seconds is None else duration(row.seconds)
        state = Text(row.state, style=STYLES.get(row.state, ""))
        table.add_row(row.name, row.command, state, seconds, age(time.time() - row.began), row.path)
    new_console().print(table)


@dataclass(frozen=True)
class StageRow:
    """How far one stage is."""

    name: str
    state: str
    step: str
    loss: str
    left: str
    why: str
    """Why it waits or runs, or how it has ended."""
    seconds: str


class StagesDisplay:
    """The stages as they run: a live table on a terminal, elsewhere a line for each change of a state."""

    def __init__(self, title: str, what: str = "stage") -> None:
        """Take the title, and what one of them is called."""
        self._title, self._what, self._console = title, what, new_console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_interactive else None
        self._told: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, rows: Sequence[StageRow]) -> None:
        """Show how far the stages are."""
        if self._live:
            self._live.update(self._table(rows), refresh=True)
            return
        for row in rows:
            # of a stage that waits, only for whom it waits is worth a line
            said = row.state if row.state != "waiting" else row.why if "process" in row.why else ""
            if said and self._told.get(row.name) != said:
                self._told[row.name] = said
                took = f"({row.seconds})" if row.seconds and row.state != "running" else ""
                parts = [row.name, row.state, *filter(None, [row.why, took])]
                self._console.print(Text("  ".join(parts)), soft_wrap=True)

    def _table(self, rows: Sequence[StageRow]) -> Table:
        table = Table(
            title=Text(self._title),
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
            header_style="dim",
            title_style="bold",
            caption_justify="left",
        )
        for column in (self._what, "state"):
            table.add_column(column, no_wrap=True)
        for column in ("step", "loss", "left", "time"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("")  # the one that wraps, so that it leaves the others their width
        shown = self._fitting(rows)
        for row in shown:
            style = STYLES.get(row.state.split()[0], "")
            figures = (row.step, row.loss, row.left, row.seconds)
            table.add_row(row.name, Text(row.state, style=style), *figures, Text(_shortened(row.why)))
        if len(shown) < len(rows):
            counts = Counter(row.state for row in rows)
            table.caption = f"{len(rows)} {self._what}s: " + ", ".join(
                f"{count} {state}" for state, count in counts.items()
            )
        return table

    def _fitting(self, rows: Sequence[StageRow]) -> Sequence[StageRow]:
        """Return the stages that fit on the terminal: those that run or have failed before all others."""
        room = max(1, (self._console.height - 4) // 2)  # most have a second line
        if len(rows) <= room:
            return rows
        rank = {number: _ORDER.get(row.state, len(_ORDER)) for number, row in enumerate(rows)}
        first = sorted(rank, key=lambda number: (rank[number], number))[:room]
        return [rows[number] for number in sorted(first)]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 1]}…"
