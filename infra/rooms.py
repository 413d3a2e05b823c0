"""Count the files and lines of each part of the project, and list the parts that it imports from (`make rooms`).

A room is a folder or a single file directly below `orchestrator/`, or `modules/` as a whole. An arrow is a pair of
rooms, the first of which imports from the second. Imports that only type checkers read are left out, as in the import
rules.
"""

import sys
from collections import Counter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Print the table of rooms, then the counts."""
    graph = grimp.build_graph("modules", "orchestrator", exclude_type_checking_imports=True)
    rooms = sorted({room for module in graph.modules if (room := room_of(module))})
    imports = Counter(
        (room_of(importer), room_of(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    )
    arrows = sorted(
        (start, end) for start, end in imports if start and end and start != end and start in rooms and end in rooms
    )
    print(f"{'room':32}{'files':>6}{'lines':>7}  imports from")
    for room in rooms:
        files = files_of(room)
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        imported = [end.removeprefix("orchestrator.") for start, end in arrows if start == room]
        print(f"{room:32}{len(files):>6}{lines:>7}  {' '.join(imported)}")
    both_ways = [pair for pair in arrows if pair[::-1] in arrows and pair[0] < pair[1]]
    num_imports = sum(imports[arrow] for arrow in arrows)
    print(f"{len(rooms)} rooms, {len(arrows)} arrows of {num_imports} imports, {len(both_ways)} pairs both ways")
    return 0


def room_of(module: str) -> str | None:
    """Return the room that holds a module; None for the package `orchestrator` itself."""
    parts = module.split(".")
    if parts[0] == "modules":
        return "modules"
    return ".".join(parts[:2]) if len(parts) > 1 else None


def files_of(room: str) -> list[Path]:
    """Return the files of a room."""
    path = ROOT / Path(*room.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


if __name__ == "__main__":
    sys.exit(main())
