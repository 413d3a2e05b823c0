"""What commands show of their results: tables of metrics, and generated text."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from modules.tasks.bootstrap import Difference
from orchestrator.display.terminal import loss, new_console, new_table, print_line, write_text
from orchestrator.display.units import count, duration, percent, size
from orchestrator.runs.goodput import Goodput

_MOST_LABELS = 20


def _score(value: float) -> str:
    return f"{value:,.2f}"


_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "val/bits_per_byte": ("validation bits per byte", loss),
    "val/perplexity": ("validation perplexity", _score),
    "val/loss_clm": ("validation loss, causal (nats)", loss),
    "val/loss_mlm": ("validation loss, masked (nats)", loss),
    "val/mlm_accuracy": ("validation accuracy, masked", percent),
    "val/token_accuracy": ("validation accuracy of tokens", percent),
    "val/accuracy": ("validation accuracy", percent),
    "val/macro_f1": ("validation macro F1", percent),
    "val/loss_classification": ("validation loss (nats)", loss),
    "classification/accuracy": ("accuracy", percent),
    "classification/macro_f1": ("macro F1", percent),
    "classification/loss": ("loss (nats)", loss),
    "translation/chrf": ("chrF", _score),
    "translation/bleu": ("BLEU", _score),
    **{
        f"{task}/{name}": (label, shown)
        for task in ("translation", "dialogue", "text_generation")
        for name, label, shown in (
            ("loss", "loss of a token (nats)", loss),
            ("perplexity", "perplexity", _score),
            ("bits_per_byte", "bits per byte", loss),
        )
    },
    "train/loss": ("training loss", loss),
    "train/loss_clm": ("training loss, causal", loss),
    "train/loss_mlm": ("training loss, masked", loss),
    "train/loss_classification": ("training loss, classes", loss),
    "progress/step": ("steps", lambda value: f"{value:,.0f}"),
    "progress/exported_step": ("step of the model", lambda value: f"{value:,.0f}"),
    "progress/stopped_early": ("stopped early", lambda value: "yes" if value else "no"),
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


def show_measurement(title: str, metrics: Mapping[str, float], signatures: Mapping[str, str]) -> None:
    """Show how well a model does a task.

    Args:
        title: What was measured.
        metrics: By metric name.
        signatures: How sacrebleu computed a metric, by its name.
    """
    new_console().print(_figures_table(title, metrics))
    for name, signature in signatures.items():
        print_line(f"{name}: {signature}")


def show_comparison(title: str, differences: Mapping[str, Difference], signatures: Mapping[str, str]) -> None:
    """Show metrics of two models, A and B, and how sure their differences are.

    Args:
        title: What was measured.
        differences: By metric name.
        signatures: How sacrebleu computed a metric, by its name.
    """
    table = new_table(title)
    table.add_column("figure", overflow="fold")
    for head in ("A", "B", "A - B", "95 % interval", "p"):
        table.add_column(head, justify="right")
    for name in [name for name in _FIGURES if name in differences]:
        (label, shown), found = _FIGURES[name], differences[name]
        interval = f"{_signed(found.low, shown)} to {_signed(found.high, shown)}"
        values = (shown(found.first), shown(found.second), _signed(found.difference, shown), interval)
        # sacrebleu gives two answers that are the same throughout the smallest p-value that there is
        p_value = "same" if found.low == found.high == 0 else f"{found.p_value:.3f}"
        table.add_row(label, *values, p_value, style="bold" if found.is_sure else "")
    new_console().print(table)
    for name, signature in signatures.items():
        print_line(f"{name}: {signature}")


def _signed(value: float, shown: Callable[[float], str]) -> str:
    return f"{'-' if value < 0 else '+'}{shown(abs(value))}"


def show_probabilities(probabilities: Mapping[str, float]) -> None:
    """Show the labels of a text with their probabilities, the likeliest first."""
    table = new_table("")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    order = sorted(probabilities.items(), key=lambda item: -item[1])
    for number, (label, probability) in enumerate(order[:_MOST_LABELS]):
        table.add_row(Text(label), percent(probability), style="" if number else "bold")
    new_console().print(table)
    if len(order) > _MOST_LABELS:
        print_line(f"and {len(order) - _MOST_LABELS:,} labels that are less likely")


def show_answers(answers: Sequence[tuple[str, str | None, str]]) -> None:
    """Show questions with what a model has answered to each, and the right answer where it is known.

    Args:
        answers: Question, right answer or None, answer.
    """
    console = new_console()
    for number, (question, reference, answer) in enumerate(answers, start=1):
        console.rule(f"answer {number} of {len(answers)}", align="left", style="dim", characters="-")
        write_text(console, f"{question}\n", style="bold")
        write_text(console, f"{answer}\n")
        if reference is not None:
            write_text(console, f"right: {reference}\n", style="dim")
    if answers:
        console.rule(style="dim", characters="-")


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
        label, shown = _figure(name)
        table.add_row(label, shown(metrics[name]), name)
    return table


def _figure(name: str) -> tuple[str, Callable[[float], str]]:
    """Return how a metric is shown; that of a source, as val/SOURCE/loss_clm or progress/tokens/SOURCE, as of all."""
    if name in _FIGURES:
        return _FIGURES[name]
    group, *rest = name.split("/")
    for source, metric in (rest, rest[::-1]) if len(rest) == 2 else ():
        if f"{group}/{metric}" in _FIGURES:
            label, shown = _FIGURES[f"{group}/{metric}"]
            return f"{label}, {source}", shown
    return name, lambda value: f"{value:.4g}"


def _goodput_line(goodput: Goodput) -> str:
    parts = [f"goodput {percent(goodput.fraction)} of {duration(goodput.wall_seconds)}"]
    if restarts := len(goodput.recovery_seconds):
        recovery = duration(sum(goodput.recovery_seconds))
        parts.append(f"{restarts} restart{'s' if restarts > 1 else ''} took {recovery}")
    return "; ".join([*parts, f"{duration(goodput.stall_seconds)} waiting for saves"])
