"""Runs every bench_*.py beside this file and prints one table of ratios; with --json FILE also writes each row there.

Each has a process of its own, so that none finds what another has left in memory. One that fails is named in the table
with its reason; the others run all the same, and the exit code is 1.
"""

import argparse
import importlib
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

_WIDTH = 140
"""Columns of the table in a file or a pipe."""


class Row(NamedTuple):
    """One line of the table; a failed one has a reason and no figures."""

    what: str
    ours: float | None = None
    peer: float | None = None
    ratio: float | None = None
    """The peer's over ours in time or memory, or ours over the peer's in throughput."""
    failure: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks named in `argv`, or all of them; return 1 if something has failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="bench_NAME.py to run; all when none is named")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args(argv)
    _leave_clusters_alone()
    rows: list[Row] = []
    for name in arguments.names or _all_names():
        rows += _rows(name)
        if arguments.json:  # each time, since all together take more than an hour
            _write(arguments.json, rows)
    console = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=_WIDTH)
    console.print(machine(), highlight=False)
    console.print(_table(rows))
    return int(any(row.failure for row in rows))


def _write(file: Path, rows: Sequence[Row]) -> None:
    figures = [row if row.failure else row[:4] for row in rows]
    file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def better_by(what: str, ours: float, peer: float) -> float:
    """Return how many times better ours is: rates end in "/s)", all else is the better the smaller it is."""
    return ours / peer if what.endswith("/s)") else peer / ours


def machine() -> str:
    """Return what the figures were measured on: processor, cores, threads, GPUs and the version of torch."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(
        [
            _processor(),
            f"{len(os.sched_getaffinity(0))} cores",
            torch.backends.cpu.get_cpu_capability(),
            f"torch {torch.__version__} with {torch.get_num_threads()} threads",
            *gpus,
        ]
    )


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _leave_clusters_alone() -> None:
    """Have every peer start a Ray of its own: `ray.init()` would join a cluster of this address or of a `ray start`."""
    os.environ["RAY_ADDRESS"] = "local"


def _all_names() -> list[str]:
    names = {file.stem.removeprefix("bench_") for file in Path(__file__).parent.glob("bench_*.py")}
    if "gpu" in names and not torch.cuda.is_available():
        print("no GPU here: gpu is left out", file=sys.stderr, flush=True)
        names.remove("gpu")
    return sorted(names)


def _rows(name: str) -> list[Row]:
    print(f"running {name} ...", file=sys.stderr, flush=True)
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_measure, args=(name, sender))
    process.start()
    sender.close()  # here, so that its end is seen when the process dies
    rows = list(_received(receiver))
    process.join()
    if process.exitcode:
        rows.append(Row(name, failure=f"its process ended with exit code {process.exitcode}"))
    return rows


def _received(receiver: Connection) -> Iterator[Row]:
    try:
        while row := receiver.recv():
            yield row
    except EOFError:
        pass  # the process died without saying that it is done


def _measure(name: str, sender: Connection) -> None:
    """Send the rows of a benchmark as they come, then None."""
    try:
        for row in importlib.import_module(f"bench_{name}").main():
            sender.send(_row(*row[:3]))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        sender.send(Row(name, failure=_reason(error)))
    sender.send(None)


def _row(what: str, ours: float, peer: float) -> Row:
    try:
        ratio = better_by(what, ours, peer)
    except ZeroDivisionError:
        ratio = math.nan
    if math.isfinite(ratio):
        return Row(what, ours, peer, ratio)
    return Row(what, failure=f"not a ratio: ours {ours:g}, the peer's {peer:g}")


def _reason(error: BaseException) -> str:
    """Return the last line of what an error says, of a process that failed that of its output."""
    said = getattr(error, "stderr", None) or getattr(error, "stdout", None) or str(error)
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="Ours beside peers on the same work, medians; a ratio above 1 says that ours is better")
    table.add_column("what")
    for name in ("ours", "peer", "ratio"):
        table.add_column(name, justify="right")
    for what, ours, peer, ratio, failure in rows:
        if failure is not None:
            table.add_row(f"{what}: {failure}", "", "", "failed", style="red")
        else:
            table.add_row(what, f"{ours:,.4g}", f"{peer:,.4g}", f"{ratio:.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
