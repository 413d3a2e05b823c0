"""What commands show of their results: tables of metrics, and generated text."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.table import Table

from orchestrator.display.terminal import loss, new_console, new_table, print_line, write_text
from orchestrator.display.units import count, duration, percent, size
from orchestrator.runs.goodput import Goodput

_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "val/bits_per_byte": ("validation bits per byte", loss),
    "val/perplexity": ("validation perplexity", lambda value: f"{value:,.2f}"),
    "val/loss_clm": ("validation loss, causal (nats)", loss),
    "val/loss_mlm": ("validation loss, masked (nats)", loss),
    "val/mlm_accuracy": ("validation accuracy, masked", percent),
    "train/loss": ("training loss", loss),
    "train/loss_clm": ("training loss, causal", loss),
    "train/loss_mlm": ("training loss, masked", loss),
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


def show_results(run_name: str, metrics: Mapping[str, float], goodput: Goodput, locations: Sequence[str]) -> None:
    """Show the final metrics of a run, how its time was spent and where its outputs are.

    Args:
        run_name: The run's name.
        metrics: By metric name, as in metrics.json.
        goodput: The goodput of the whole run, restarts included.
        locations: Lines to show below the table.
    """
    new_console().print(_figures_table(f"Results of {run_name}", metrics))
    for line in [_goodput_line(goodput), *locations]:
        print_line(line)


def show_evaluation(model_path: str, metrics: Mapping[str, float], compression: Mapping[str, float]) -> None:
    """Show how well a model predicts a text, and how well compressors do on the same text.

    Args:
        model_path: The path as the user wrote it.
        metrics: By metric name.
        compression: Bits per byte by compressor.
    """
    console = new_console()
    console.print(_figures_table(f"Evaluation of {model_path}", metrics))
    table = new_table("Bits per byte on the same text")
    table.add_column("by")
    table.add_column("bits per byte", justify="right")
    rows = {**({"this model": metrics["val/bits_per_byte"]} if "val/bits_per_byte" in metrics else {}), **compression}
    for name, bits in sorted(rows.items(), key=lambda row: row[1]):
        table.add_row(name, f"{bits:.4f}", style="bold" if name == "this model" else "")
    if len(rows) > 1:
        console.print(table)


def show_task_figures(model_path: str, rows: Iterable[tuple[str, int | None, str, float, float | None]]) -> None:
    """Show what a model reaches on tasks.

    Args:
        model_path: The path as the user wrote it.
        rows: Task, number of solved examples before each question, metric, value and its standard error; None stands
            for what is not known.
    """
    table = new_table(f"Evaluation of {model_path}")
    table.add_column("task", overflow="fold")
    table.add_column("shots", justify="right")
    table.add_column("metric", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("± standard error", justify="right")
    before = None
    for task, num_fewshot, metric, value, stderr in rows:
        first = ("", "") if task == before else (task, "" if num_fewshot is None else str(num_fewshot))
        table.add_row(*first, metric, f"{value:.4f}", "" if stderr is None else f"{stderr:.4f}")
        before = task
    new_console().print(table)


def show_samples(prompt: str, samples: Sequence[str]) -> None:
    """Show continuations of a prompt, numbered.

    Args:
        prompt: Shown in bold before each continuation.
        samples: The continuations, without the prompt.
    """
    console = new_console()
    for number, sample in enumerate(samples, start=1):
        console.rule(f"sample {number} of {len(samples)}", align="left", style="dim", characters="-")
        write_text(console, prompt, style="bold")
        write_text(console, f"{sample}\n")
    console.rule(style="dim", characters="-")


def stream_text(prompt: str, pieces: Iterable[str]) -> None:
    """Show a prompt, and its continuation piece by piece as it arrives."""
    console = new_console()
    write_text(console, prompt, style="bold")
    for piece in pieces:
        write_text(console, piece)
    write_text(console, "\n")


def _figures_table(title: str, metrics: Mapping[str, float]) -> Table:
    table = new_table(title)
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
