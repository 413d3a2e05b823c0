"""What a step of a run has learned from: a table for each sample, or lines for a program."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.display.terminal import loss, new_console, print_line, printable
from orchestrator.runs.step_rows import PartRow, SampleRow, StepRow

_SHOWN_CHARS = 200
"""Of a text; the table cuts it further, to the width of the terminal."""
_UNKNOWN = "-"
_GAP, _FILE_WIDTH, _LEAST_TEXT_WIDTH = 2, 28, 16
"""Columns of the terminal: between two columns of the table, for a name at most, for a text at least."""


def show_step(step: StepRow, samples: Sequence[SampleRow]) -> None:
    """Show a step and its samples in the given order, each with its documents or examples."""
    console = new_console()
    console.print(Text(_title(step), style="bold"), soft_wrap=True)
    for line in step.notes:
        print_line(f"  {line}")
    for sample in samples:
        console.print()
        console.print(Text(_heading(sample)), soft_wrap=True)
        console.print(_table(console, sample.parts, [*step.weights] if sample.losses else []))
    console.print()


def _title(step: StepRow) -> str:
    objective = ", ".join(name if weight == 1 else f"{name} x {weight:g}" for name, weight in step.weights.items())
    phase = f" (phase {step.phase[0]} of {step.phase[1]})" if step.phase and step.phase[1] > 1 else ""
    workers = f"{step.world_size} worker{'s' * (step.world_size != 1)}"
    return f"step {step.step:,}: samples {step.first_sample} to {step.last_sample}, {objective}{phase}, {workers}"


def _heading(sample: SampleRow) -> str:
    worker = "" if sample.worker is None else f", worker {sample.worker}"
    source = f", source {sample.source}" if sample.source else ""
    found = "" if sample.loss is None else f", loss {loss(sample.loss)}"
    return f"sample {sample.sample}{worker}{source}, {_where(sample)}, {sample.num_tokens:,} tokens{found}"


def _where(sample: SampleRow) -> str:
    is_pack = any(part.target is not None for part in sample.parts)
    return f"pack {sample.position}" if is_pack else f"position {sample.position}"


def _table(console: Console, parts: Sequence[PartRow], losses: Sequence[str]) -> Table:
    titles = ["row", "tokens", *losses]
    cells = [[part.file or _UNKNOWN, *_figures(part, losses)] for part in parts]
    widths = [max(map(cell_len, column)) for column in zip(["file", *titles], *cells, strict=True)]
    widths[0] = min(widths[0], _FILE_WIDTH)
    # without borders, and the text alone is cut: to what the other columns leave of the line
    left = console.width - sum(widths) - _GAP * len(widths)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    table.add_column("file", overflow="fold", width=widths[0])
    for title, width in zip(titles, widths[1:], strict=True):
        table.add_column(title, justify="right", no_wrap=True, width=width)
    table.add_column("text", no_wrap=True, overflow="ellipsis", width=max(left, _LEAST_TEXT_WIDTH))
    for part, row in zip(parts, cells, strict=True):
        table.add_row(*row, _text(console, part))
    return table


def _figures(part: PartRow, losses: Sequence[str]) -> list[str]:
    of_losses = [loss(part.losses[name]) if name in part.losses else _UNKNOWN for name in losses]
    return [_UNKNOWN if part.row is None else str(part.row), str(part.num_tokens), *of_losses]


def _text(console: Console, part: PartRow) -> Text:
    """Return the beginning of a text in one line, after … if it is not that of the document."""
    words = " ".join(part.text[:_SHOWN_CHARS].split())
    target = "" if part.target is None else f" → {' '.join(part.target[:_SHOWN_CHARS].split())}"
    return Text(printable(console, f"{'… ' if part.is_begun else ''}{words}{target}"))


def lines(step: StepRow, samples: Sequence[SampleRow]) -> Iterator[str]:
    """Yield a line of JSON for each sample, with what is known of its step."""
    about = {"step": step.step, "data_step": step.data_step, "weights": dict(step.weights), "notes": [*step.notes]}
    for sample in samples:
        yield json.dumps({**about, **_plain(sample)}, ensure_ascii=False) + "\n"


def _plain(sample: SampleRow) -> Mapping[str, Any]:
    found = asdict(sample)
    parts = found.pop("parts")
    return {**found, "documents": parts}
