"""What `orchestrator runs` shows: one line per run, or everything about one run."""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.configuration.faults import SAVE_KINDS
from orchestrator.display.terminal import loss, new_console, new_table, print_line, printable
from orchestrator.display.units import age, duration, percent
from orchestrator.distributed.runtime import Event
from orchestrator.runs.state import RunState

_STATE_STYLES = {
    "damaged": "bold red",
    "done": "green",
    "running": "bold green",
    "stopped": "yellow",
    "interrupted": "red",
}
_UNKNOWN = "-"


def show_runs(states: Sequence[RunState]) -> None:
    """Show one line per run: state, steps, last loss, goodput, restarts, and how long ago it began."""
    # without borders, unlike our other tables, so that a name of 17 characters and six-digit steps fit into 80 columns
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("name", overflow="fold")
    table.add_column("state", no_wrap=True)
    for title in ("step", "loss", "goodput", "restarts", "age"):
        table.add_column(title, justify="right", no_wrap=True)
    for state in states:
        figures = [_UNKNOWN] * 5 if state.damage else _figures(state)
        table.add_row(state.run.name, Text(state.state, style=_STATE_STYLES[state.state]), *figures)
    new_console().print(table)
    for state in states:
        if state.damage:
            print_line(state.damage)


def _figures(state: RunState) -> list[str]:
    """Return step, loss, goodput, restarts and age of a run."""
    return [
        _steps(state),
        _UNKNOWN if state.loss is None else loss(state.loss),
        percent(state.goodput.fraction) if state.events else _UNKNOWN,
        str(len(state.goodput.recovery_seconds)),
        age(time.time() - state.events[0]["time"]) if state.events else _UNKNOWN,
    ]


def show_run(state: RunState, checkpoints: Mapping[int, bool], locations: Sequence[str]) -> None:
    """Show everything that is known about one run.

    Args:
        state: The run's state.
        checkpoints: Their steps, and whether each is complete.
        locations: Lines to show below the tables.
    """
    console = new_console()
    table = new_table(f"Run {state.run.name}")
    table.add_column("what")
    table.add_column("value", overflow="fold")
    for label, value in {**_condition(state), **_times(state), **_saved(checkpoints)}.items():
        table.add_row(label, value)
    console.print(table)
    if state.faults:
        console.print(_faults_table(console, state))
    for line in locations:
        print_line(line)


def _condition(state: RunState) -> dict[str, str | Text]:
    holder = state.holder
    where = f" (process {holder['pid']} on {holder['host']})" if holder and state.state == "running" else ""
    return {
        "state": Text(state.state + where, style=_STATE_STYLES[state.state]),
        "steps": _steps(state),
        "last loss": _UNKNOWN if state.loss is None else loss(state.loss),
    }


def _times(state: RunState) -> dict[str, str]:
    if not state.events:
        return {}
    goodput, began = state.goodput, state.events[0]["time"]
    counts = {"workers": ", then ".join(map(str, state.worker_counts))} if state.worker_counts else {}
    preempted = f", {state.num_preemptions} of them after preemptions" if state.num_preemptions else ""
    return {
        "began": f"{_moment(began)}, {age(time.time() - began)} ago",
        "goodput": f"{percent(goodput.fraction)} of {duration(goodput.wall_seconds)}",
        "in steps that count": duration(goodput.lasting_seconds),
        "waiting for checkpoints": duration(goodput.stall_seconds),
        "restarts": f"{len(goodput.recovery_seconds)}{preempted}",
        **({"requested faults": "; ".join(map(_injection, state.injected))} if state.injected else {}),
        **_bad_steps(state),
        **counts,
    }


def _bad_steps(state: RunState) -> dict[str, str]:
    skipped, rollbacks = state.skipped_steps, state.rollbacks
    steps = {"skipped steps": f"{len(skipped)} ({_ranges(skipped)})"} if skipped else {}
    back = "; ".join(f"from step {event['from_step']} to {event['step']}" for event in rollbacks)
    return {**steps, "rollbacks": back} if rollbacks else steps


def _ranges(numbers: Iterable[int]) -> str:
    """Return the numbers in the given order, with consecutive ones as `first to last`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join(" to ".join(map(str, ends)) for ends in found)


def _injection(event: Event) -> str:
    # a fault within a step is shown with that step's number counted from 1, one in a save with the last finished step's
    when = f"in the save after step {event['step']}" if event["fault"] in SAVE_KINDS else f"in step {event['step'] + 1}"
    return f"{event['fault']} on rank {event['rank']} {when}"


def _saved(checkpoints: Mapping[int, bool]) -> dict[str, str]:
    complete = [str(step) for step, is_complete in checkpoints.items() if is_complete]
    others = [str(step) for step, is_complete in checkpoints.items() if not is_complete]
    saved = {"checkpoints after steps": "  ".join(complete) or "none"}
    return {**saved, "incomplete checkpoints": "  ".join(others)} if others else saved


def _faults_table(console: Console, state: RunState) -> Table:
    table = new_table("Faults")
    table.add_column("at", no_wrap=True)
    table.add_column("what happened", overflow="fold")
    table.add_column("recovered in", justify="right")
    for fault in state.faults:
        recovery = "not yet" if fault.recovery_seconds is None else duration(fault.recovery_seconds)
        table.add_row(_moment(fault.time), Text(printable(console, fault.text)), recovery)
    return table


def _steps(state: RunState) -> str:
    return str(state.step) + ("" if state.num_steps is None else f"/{state.num_steps}")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
