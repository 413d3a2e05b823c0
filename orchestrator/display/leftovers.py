"""What `orchestrator runs prune` shows."""

from collections.abc import Sequence

from rich.text import Text

from orchestrator.display.terminal import new_console, new_table, print_line
from orchestrator.display.units import size


def show_leftovers(root: str, rows: Sequence[tuple[str, int, str]]) -> None:
    """Show each folder that may be removed, its size in bytes, and why it may go."""
    if not rows:
        print_line(f"nothing to remove in {root}")
        return
    table = new_table(f"Nothing refers to these in {root}")
    table.add_column("folder", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("why it may go", overflow="fold")
    for path, num_bytes, why in rows:
        table.add_row(Text(path), size(num_bytes), Text(why))
    table.add_section()
    table.add_row(f"{len(rows)} folders", size(sum(num_bytes for _, num_bytes, _ in rows)), "")
    new_console().print(table)
