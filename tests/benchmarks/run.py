"""Runs every bench_*.py beside this file and prints one table of ratios; with --json FILE also writes it there."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

Row = tuple[str, float, float, float]
"""What, ours, the peer's, and the peer's over ours in time or memory, or ours over the peer's in throughput."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks named in `argv`, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="bench_NAME.py to run; all when none is named")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args(argv)
    rows = [row for name in arguments.names or _all_names() for row in _rows(name)]
    Console().print(_table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def better_by(what: str, ours: float, peer: float) -> float:
    """Return how many times better ours is: rates end in "/s)", all else is the better the smaller it is."""
    return ours / peer if what.endswith("/s)") else peer / ours


def _all_names() -> list[str]:
    return sorted(file.stem.removeprefix("bench_") for file in Path(__file__).parent.glob("bench_*.py"))


def _rows(name: str) -> list[Row]:
    print(f"running {name} ...", file=sys.stderr, flush=True)
    found = importlib.import_module(f"bench_{name}").main()
    return [(what, ours, peer, better_by(what, ours, peer)) for what, ours, peer, *_ in found]


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="Ours beside peers on the same work, medians; a ratio above 1 says that ours is better")
    table.add_column("what")
    for name in ("ours", "peer", "ratio"):
        table.add_column(name, justify="right")
    for what, ours, peer, ratio in rows:
        table.add_row(what, f"{ours:,.4g}", f"{peer:,.4g}", f"{ratio:.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
