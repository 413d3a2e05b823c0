"""What commands show: lines, tables, samples. Readable at 80 columns, without colours and in a file."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.progress_display import ProgressDisplay, evaluate_progress, prepare_progress
from orchestrator.units import count, duration, percent, size

__all__ = [
    "ProgressDisplay",
    "evaluate_progress",
    "prepare_progress",
    "say",
    "show_evaluation",
    "show_results",
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
    "faults/skipped_steps": ("skipped steps", count),
}


def say(line: str) -> None:
    """Print a line as it is, without wrapping, so that a path or a command in it can be copied."""
    _console().print(Text(line), soft_wrap=True)


def show_results(run_name: str, metrics: Mapping[str, float], places: Sequence[str]) -> None:
    """Show the final figures of a run and where its parts lie.

    Args:
        run_name: The run's name.
        metrics: By metric name, as in metrics.json.
        places: Lines to show below the table.
    """
    _console().print(_figures_table(f"Results of {run_name}", metrics))
    for line in places:
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


def _shown(console: Console, text: str) -> str:
    # A file or a program gets the text as it is.
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if console.is_terminal else text
