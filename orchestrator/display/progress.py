"""Progress as it happens: live on a terminal, an occasional plain line in a file, a log or a dumb terminal."""

import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from orchestrator.configuration.groups import StorageConfig
from orchestrator.display.terminal import new_console
from orchestrator.display.units import count, duration, percent, size

_PLAIN_INTERVAL_SECONDS = 5.0
_BAR_WIDTH = 20


class ProgressDisplay:
    """Shows the progress of a training from events: plain dicts that may come from other processes and on any thread.

    Nothing is shown before the first event. Events by `kind`, with their fields:
        start: run, num_steps, root (the URL of the storage root)
        begin: step, above 0 if the training continues from a checkpoint
        step: step, metrics (by metric name)
        validation: step, metrics
        skip: step (counted from 0), reason, samples (first and last), command (that shows them)
        rollback: from_step, text; begin follows
        checkpoint: step, seconds
        note, fault, restart, resize, save_failed, hang: text
        stop: no fields
        end: seconds
    Other kinds are ignored, so that an older display can show a newer run.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or new_console()
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._num_steps = 0
        self._root = ""
        self._rolled_back = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show `event`."""
        with self._lock:
            show = getattr(self, f"_show_{event.get('kind')}", None)
            if show is not None:
                show(event)

    def _show_start(self, event: Mapping[str, Any]) -> None:
        self._stop()
        self._num_steps = int(event["num_steps"])
        root = str(event.get("root", ""))
        is_default = not root or root == os.path.abspath(StorageConfig().root)
        self._root = "" if is_default else f" {shlex.quote(f'storage.root={root}')}"
        self._line(f"training {event['run']}: {self._num_steps:,} steps")
        if self._console.is_interactive:
            self._live = _bar(self._console, "{task.completed:,.0f}/{task.total:,.0f}")
            self._task = self._live.add_task("train", total=self._num_steps, completed=0, text="starting")
            self._live.start()

    def _show_begin(self, event: Mapping[str, Any]) -> None:
        # after a rollback, the line about it has said where the run continues
        if event["step"] and not self._rolled_back:
            self._line(f"continues from the checkpoint after step {event['step']:,}")
        self._rolled_back = False
        if self._live is not None:
            self._live.update(self._task, completed=event["step"])

    def _show_step(self, event: Mapping[str, Any]) -> None:
        step, metrics = int(event["step"]), event["metrics"]
        text = "  ".join(_step_parts(metrics, self._num_steps - step, with_gradient=self._live is None))
        if self._live is None:
            self._line(f"{self._step(step)}  {text}")
        else:
            self._live.update(self._task, completed=step, text=text)

    def _show_validation(self, event: Mapping[str, Any]) -> None:
        parts = [
            f"{label} {shown(event['metrics'][name])}" for name, label, shown in _VALIDATION if name in event["metrics"]
        ]
        self._line(f"{self._step(int(event['step']))}  validation: {', '.join(parts)}", style="bold")

    def _show_skip(self, event: Mapping[str, Any]) -> None:
        # counted from 1, as in the lines with the metrics of a step
        first, last = event["samples"]
        show = f"; {event['command']}{self._root}" if "command" in event else ""
        skipped = f"skipped: {event['reason']} (samples {first} to {last}{show})"
        self._line(f"{self._step(int(event['step']) + 1)}  {skipped}")

    def _show_rollback(self, event: Mapping[str, Any]) -> None:
        self._line(f"{self._step(int(event['from_step']))}  {event['text']}", style="bold")
        self._rolled_back = True

    def _show_checkpoint(self, event: Mapping[str, Any]) -> None:
        self._line(f"{self._step(int(event['step']))}  checkpoint saved in {duration(event['seconds'])}", style="dim")

    def _show_note(self, event: Mapping[str, Any]) -> None:
        self._line(str(event["text"]))

    _show_fault = _show_restart = _show_resize = _show_save_failed = _show_hang = _show_note

    def _show_stop(self, event: Mapping[str, Any]) -> None:
        self._stop()

    def _show_end(self, event: Mapping[str, Any]) -> None:
        self._stop()
        self._line(f"training done in {duration(event['seconds'])}")

    def _step(self, step: int) -> str:
        return f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}"

    def _line(self, text: str, style: str = "") -> None:
        console = self._live.console if self._live else self._console
        console.print(Text(text, style=style), soft_wrap=True)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


_VALIDATION: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("val/bits_per_byte", "bits per byte", "{:.3f}".format),
    ("val/loss_clm", "clm", "{:.3f}".format),
    ("val/loss_mlm", "mlm", "{:.3f}".format),
    ("val/mlm_accuracy", "masked accuracy", percent),
    ("val/loss_classification", "loss", "{:.3f}".format),
    ("val/accuracy", "accuracy", percent),
    ("val/macro_f1", "macro F1", percent),
)


def _step_parts(metrics: Mapping[str, float], steps_left: int, with_gradient: bool) -> Iterator[str]:
    losses = {
        name.removeprefix("train/loss_"): value for name, value in metrics.items() if name.startswith("train/loss_")
    }
    if len(losses) != 1 and "train/loss" in metrics:
        yield f"loss {metrics['train/loss']:.3f}"
    for objective, value in losses.items():
        yield f"{objective} {value:.3f}"
    if "optimizer/lr" in metrics:
        yield f"lr {metrics['optimizer/lr']:.1e}"
    if with_gradient and "optimizer/grad_norm" in metrics:
        yield f"grad {metrics['optimizer/grad_norm']:.2f}"
    if "throughput/tokens_per_second" in metrics:
        yield f"{count(metrics['throughput/tokens_per_second'])} tok/s"
    if steps_left > 0 and "throughput/step_seconds" in metrics:
        yield f"{duration(steps_left * metrics['throughput/step_seconds'])} left"


@contextmanager
def prepare_progress() -> Iterator[Callable[[int], Callable[[int, int], None]]]:
    """Yield a function that takes the bytes to read and returns one that takes the bytes and tokens done.

    Nothing is shown if it is never called, as with data that is already prepared.
    """
    console = new_console()
    shown: list[_Prepare] = []

    def begin(total_bytes: int) -> Callable[[int, int], None]:
        shown.append(_Prepare(console, total_bytes))
        return shown[-1].update

    try:
        yield begin
        for one in shown:
            one.finish()
    finally:
        for one in shown:
            one.stop()


class _Prepare:
    def __init__(self, console: Console, total_bytes: int) -> None:
        self._console, self._total = console, total_bytes
        self._started = self._last_line = time.monotonic()
        self._bytes = self._tokens = 0
        self._live = _bar(console, "{task.fields[done]}", transient=True) if console.is_interactive else None
        if self._live:
            self._task = self._live.add_task("prepare", total=total_bytes or None, text="reading", done="")
            self._live.start()

    def update(self, num_bytes: int, num_tokens: int) -> None:
        self._bytes, self._tokens = num_bytes, num_tokens
        done = size(num_bytes) + (f" of {size(self._total)}" if self._total else "")
        if self._live:
            self._live.update(self._task, completed=num_bytes, text=self._rates(), done=done)
        elif time.monotonic() - self._last_line > _PLAIN_INTERVAL_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(Text(f"prepare  {done}  {self._rates()}"), soft_wrap=True)

    def finish(self) -> None:
        self.stop()
        seconds = time.monotonic() - self._started
        line = f"prepared {size(self._bytes)} as {count(self._tokens)} tokens in {duration(seconds)} ({self._rates()})"
        self._console.print(Text(line), soft_wrap=True)

    def stop(self) -> None:
        if self._live:
            self._live.stop()

    def _rates(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{size(self._bytes / seconds)}/s, {count(self._tokens / seconds)} tok/s"


@contextmanager
def evaluate_progress(num_windows: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the windows done; progress is shown on a terminal only."""
    console = new_console()
    if not console.is_interactive:
        yield lambda _: None
        return
    with _bar(console, "{task.completed:,.0f}/{task.total:,.0f} windows", transient=True) as live:
        task = live.add_task("evaluate", total=num_windows, text="")
        yield lambda done: live.update(task, completed=done)


@contextmanager
def rows_progress() -> Iterator[Callable[[int], Callable[[int], None]]]:
    """Yield a function that takes the number of rows, and returns what takes the rows done; shown on a terminal only.

    It is shown on standard error, because predictions may go to standard output.
    """
    console = new_console(stderr=True)
    if not console.is_interactive:
        yield lambda _: lambda _: None
        return
    with _bar(console, "{task.completed:,.0f}/{task.total:,.0f} rows", transient=True) as live:

        def begin(num_rows: int) -> Callable[[int], None]:
            task = live.add_task("rows", total=num_rows, text="")
            return lambda done: live.update(task, completed=done)

        yield begin


@contextmanager
def requests_progress() -> Iterator[Callable[[int, int], None]]:
    """Yield a function that takes the requests done and all of them, once for each kind; shown on a terminal only."""
    console = new_console(stderr=True)  # what a library prints on standard output is taken from it meanwhile
    if not console.is_interactive:
        yield lambda *_: None
        return
    with _bar(console, "{task.completed:,.0f}/{task.total:,.0f} requests", transient=True) as live:
        task = live.add_task("evaluate", total=1, text="")
        yield lambda done, total: live.update(task, completed=done, total=total)


@contextmanager
def generate_progress(num_prompts: int) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that takes the prompts done so far and the tokens since the last call.

    It is shown on standard error, because the texts may go to standard output.
    """
    console = new_console(stderr=True)
    started = time.monotonic()
    if not console.is_interactive:
        yield _PlainCount(console, num_prompts).update
        return
    with _bar(console, "{task.completed:,.0f}/{task.total:,.0f} prompts", transient=True) as live:
        task, total = live.add_task("generate", total=num_prompts, text=""), [0]

        def update(done: int, tokens: int) -> None:
            total[0] += tokens
            live.update(task, completed=done, text=_token_rate(total[0], started))

        yield update


class _PlainCount:
    """An occasional plain line about the prompts that are continued."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._started = self._last_line = time.monotonic()
        self._tokens = 0

    def update(self, done: int, tokens: int) -> None:
        self._tokens += tokens
        if done < self._total and time.monotonic() - self._last_line < _PLAIN_INTERVAL_SECONDS:
            return
        self._last_line = time.monotonic()
        rate = _token_rate(self._tokens, self._started)
        line = f"generate  {done:,}/{self._total:,} prompts  {rate}"
        self._console.print(Text(line), soft_wrap=True)


def _token_rate(tokens: int, started: float) -> str:
    return f"{count(tokens / max(time.monotonic() - started, 1e-9))} tok/s"


def _bar(console: Console, done: str, transient: bool = False) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(_BAR_WIDTH),
        TextColumn(done),
        TextColumn("{task.fields[text]}"),
    )
    return Progress(*columns, console=console, transient=transient)
