"""What commands show: lines, tables, samples. Readable at 80 columns, without colours and in a file."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.doctor.findings import Finding
from orchestrator.faults_config import SAVE_KINDS
from orchestrator.goodput import Goodput
from orchestrator.progress_display import ProgressDisplay, evaluate_progress, prepare_progress
from orchestrator.run_state import RunState
from orchestrator.runtime import Event
from orchestrator.units import age, count, duration, percent, size

__all__ = [
    "ProgressDisplay",
    "evaluate_progress",
    "prepare_progress",
    "say",
    "show_evaluation",
    "show_findings",
    "show_results",
    "show_run",
    "show_runs",
    "show_samples",
    "stream_text",
]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tab and line feed: a model's text must not move the cursor or set the terminal's title."""


def _loss(value: float) -> str:
    return f"{value:.4f}"


_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "val/bits_per_byte": ("validation bits per byte", _loss),
    "val/perplexity": ("validation perplexity", lambda value: f"{value:,.2f}"),
    "val/loss_clm": ("validation loss, causal (nats)", _loss),
    "val/loss_mlm": ("validation loss, masked (nats)", _loss),
    "val/mlm_accuracy": ("validation accuracy, masked", percent),
    "train/loss": ("training loss", _loss),
    "train/loss_clm": ("training loss, causal", _loss),
    "train/loss_mlm": ("training loss, masked", _loss),
    "progress/step": ("steps", lambda value: f"{value:,.0f}"),
    "progress/tokens": ("tokens seen", count),
    "optimizer/lr": ("learning rate", lambda value: f"{value:.2e}"),
    "optimizer/grad_norm": ("gradient norm", lambda value: f"{value:.3g}"),
    "throughput/tokens_per_second": ("tokens per second", count),
    "throughput/mfu": ("model FLOPs utilisation", lambda value: percent(value) if value else "peak not known"),
    "throughput/step_seconds": ("time per step", duration),
    "throughput/data_wait_fraction": ("waiting for data", percent),
    "memory/peak_bytes": ("peak memory of a worker", size),
    "checkpoint/stall_seconds": ("waiting for checkpoints", duration),
    "goodput/fraction": ("goodput", percent),
    "faults/restarts": ("restarts", count),
    "faults/recovery_seconds": ("last restart took", duration),
    "faults/skipped_steps": ("skipped steps", count),
    "faults/rollbacks": ("rollbacks", count),
}


_STATE_STYLES = {"done": "green", "running": "bold green", "stopped": "yellow", "interrupted": "red"}
_STATUS_STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}
_UNKNOWN = "-"


def say(line: str) -> None:
    """Print a line as it is, without wrapping, so that a path or a command in it can be copied."""
    _console().print(Text(line), soft_wrap=True)


def show_results(run_name: str, metrics: Mapping[str, float], goodput: Goodput, places: Sequence[str]) -> None:
    """Show the final figures of a run, what became of its time and where its parts lie.

    Args:
        run_name: The run's name.
        metrics: By metric name, as in metrics.json.
        goodput: Of the whole run, restarts included.
        places: Lines to show below the table.
    """
    _console().print(_figures_table(f"Results of {run_name}", metrics))
    for line in [_goodput_line(goodput), *places]:
        say(line)


def show_evaluation(model_path: str, metrics: Mapping[str, float], compression: Mapping[str, float]) -> None:
    """Show how well a model predicts a text, and how well compressors do on the same text.

    Args:
        model_path: As the user named it.
        metrics: By metric name.
        compression: Bits per byte by compressor.
    """
    console = _console()
    console.print(_figures_table(f"Evaluation of {model_path}", metrics))
    table = _table("Bits per byte on the same text")
    table.add_column("by")
    table.add_column("bits per byte", justify="right")
    rows = {"this model": metrics["val/bits_per_byte"], **compression}
    for name, bits in sorted(rows.items(), key=lambda row: row[1]):
        table.add_row(name, f"{bits:.4f}", style="bold" if name == "this model" else "")
    console.print(table)


def show_runs(states: Sequence[RunState]) -> None:
    """Show a line for each run: state, steps, last loss, goodput, restarts, and how long ago it began."""
    # without lines, unlike our other tables: so a name of 17 and six digits of steps fit into 80 columns
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("name", overflow="fold")
    table.add_column("state", no_wrap=True)
    for title in ("step", "loss", "goodput", "restarts", "age"):
        table.add_column(title, justify="right", no_wrap=True)
    for state in states:
        table.add_row(
            state.run.name,
            Text(state.state, style=_STATE_STYLES[state.state]),
            _steps(state),
            _UNKNOWN if state.loss is None else _loss(state.loss),
            percent(state.goodput.fraction) if state.events else _UNKNOWN,
            str(len(state.goodput.recovery_seconds)),
            age(time.time() - state.events[0]["time"]) if state.events else _UNKNOWN,
        )
    _console().print(table)


def show_run(state: RunState, checkpoints: Mapping[int, bool], places: Sequence[str]) -> None:
    """Show all that is known of one run.

    Args:
        state: What the run has come to.
        checkpoints: Their steps, and whether each is whole.
        places: Lines to show below the tables.
    """
    console = _console()
    table = _table(f"Run {state.run.name}")
    table.add_column("what")
    table.add_column("value", overflow="fold")
    for label, value in {**_condition(state), **_times(state), **_saved(checkpoints)}.items():
        table.add_row(label, value)
    console.print(table)
    if state.faults:
        console.print(_faults_table(console, state))
    for line in places:
        say(line)


def show_findings(findings: Iterable[tuple[str, Finding]]) -> list[str]:
    """Show a line for each check as soon as it is there, and what mends it; return the names of those that failed."""
    console, failed = _console(), []
    for name, finding in findings:
        if console.is_terminal:
            console.print(_finding_line(console, name, finding))
        else:
            mend = f"; mend: {finding.mend}" if finding.mend else ""
            say(f"{finding.status:9}{name:15}{finding.text}{mend}")
        if finding.status == "failure":
            failed.append(name)
    return failed


def show_samples(prompt: str, samples: Sequence[str]) -> None:
    """Show continuations of a prompt, numbered.

    Args:
        prompt: Shown before each, apart from it.
        samples: The continuations, without the prompt.
    """
    console = _console()
    for number, sample in enumerate(samples, start=1):
        console.rule(f"sample {number} of {len(samples)}", align="left", style="dim", characters="-")
        console.print(Text.assemble((_shown(console, prompt), "bold"), _shown(console, sample)), soft_wrap=False)
    console.rule(style="dim", characters="-")


def stream_text(prompt: str, pieces: Iterable[str]) -> None:
    """Show a prompt, and its continuation piece by piece as it comes."""
    console = _console()
    console.print(Text(_shown(console, prompt), style="bold"), end="", soft_wrap=True)
    for piece in pieces:
        console.file.write(_shown(console, piece))
        console.file.flush()
    console.file.write("\n")


def _console() -> Console:
    return Console(highlight=False)


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", title_style="bold", header_style="dim")


def _figures_table(title: str, metrics: Mapping[str, float]) -> Table:
    table = _table(title)
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("metric", style="dim", overflow="fold")
    for name in [name for name in _FIGURES if name in metrics] + sorted(set(metrics) - set(_FIGURES)):
        label, shown = _FIGURES.get(name, (name, lambda value: f"{value:.4g}"))
        table.add_row(label, shown(metrics[name]), name)
    return table


def _goodput_line(goodput: Goodput) -> str:
    parts = [f"goodput {percent(goodput.fraction)} of {duration(goodput.wall_seconds)}"]
    if restarts := len(goodput.recovery_seconds):
        recovery = duration(sum(goodput.recovery_seconds))
        parts.append(f"{restarts} restart{'s' if restarts > 1 else ''} took {recovery}")
    return "; ".join([*parts, f"{duration(goodput.stall_seconds)} waiting for saves"])


def _condition(state: RunState) -> dict[str, str | Text]:
    holder = state.holder
    where = f" (process {holder['pid']} on {holder['host']})" if holder and state.state == "running" else ""
    return {
        "state": Text(state.state + where, style=_STATE_STYLES[state.state]),
        "steps": _steps(state),
        "last loss": _UNKNOWN if state.loss is None else _loss(state.loss),
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
        "in steps that lasted": duration(goodput.lasting_seconds),
        "waiting for checkpoints": duration(goodput.stall_seconds),
        "restarts": f"{len(goodput.recovery_seconds)}{preempted}",
        **({"faults to order": "; ".join(map(_injection, state.injected))} if state.injected else {}),
        **counts,
    }


def _injection(event: Event) -> str:
    # a step in hand is shown under its number counted from 1, and a save under that of the last finished one
    when = f"in the save after step {event['step']}" if event["fault"] in SAVE_KINDS else f"in step {event['step'] + 1}"
    return f"{event['fault']} on rank {event['rank']} {when}"


def _saved(checkpoints: Mapping[int, bool]) -> dict[str, str]:
    whole = [str(step) for step, is_whole in checkpoints.items() if is_whole]
    others = [str(step) for step, is_whole in checkpoints.items() if not is_whole]
    saved = {"checkpoints after steps": "  ".join(whole) or "none"}
    return {**saved, "not committed, not whole": "  ".join(others)} if others else saved


def _faults_table(console: Console, state: RunState) -> Table:
    table = _table("Faults")
    table.add_column("at", no_wrap=True)
    table.add_column("what happened", overflow="fold")
    table.add_column("recovered in", justify="right")
    for fault in state.faults:
        recovery = "not since" if fault.recovery_seconds is None else duration(fault.recovery_seconds)
        table.add_row(_moment(fault.time), Text(_shown(console, fault.text)), recovery)
    return table


def _finding_line(console: Console, name: str, finding: Finding) -> Table:
    line = Table.grid(padding=(0, 2, 0, 0))
    for width in (7, 13, None):
        line.add_column(width=width, overflow="fold")
    mend = Text(f"\nmend: {finding.mend}" if finding.mend else "", style="bold")
    mark = Text(finding.status, style=_STATUS_STYLES[finding.status])
    line.add_row(mark, name, Text.assemble(_shown(console, finding.text), mend))
    return line


def _steps(state: RunState) -> str:
    return str(state.step) + ("" if state.num_steps is None else f"/{state.num_steps}")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _shown(console: Console, text: str) -> str:
    # A file or a program gets the text as it is.
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if console.is_terminal else text
