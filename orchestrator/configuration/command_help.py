"""`orchestrator COMMAND --help`: groups, options and fields, each with its line of explanation."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from modules.config import Config
from orchestrator.configuration.mistakes import MISSING
from orchestrator.configuration.overrides import Groups
from orchestrator.configuration.schema import explanation, leaves, shown

_FLAGS = {
    "--cfg job": "print the composed configuration and stop (--resolve, --package PATH)",
    "--info defaults-tree": "print where the configuration comes from and stop (also defaults, searchpath, all)",
    "--multirun, -m": "run every combination of FIELD=a,b,c",
    "--config-dir FOLDER": "look for options in your own folder, too: FOLDER/model/mine.yaml for model=mine",
    "--hydra-help": "print the help of Hydra itself",
}


def print_help(
    name: str, summary: str, kind: type[Config], raw: Mapping[str, Any], groups: Groups, folders: Sequence[Path]
) -> None:
    """Print the help of command `name`.

    Args:
        name: the command.
        summary: what it does.
        kind: its configuration class.
        raw: the values composed from the other arguments.
        groups: its groups.
        folders: folders with options; the first that has an option wins.
    """
    console = Console(highlight=False, soft_wrap=False)
    console.print(f"orchestrator {name}: {summary}.\n\nUsage: orchestrator {name} [GROUP=OPTION ...] [FIELD=VALUE ...]")
    if groups.chosen:
        console.print("\nGroups: GROUP=OPTION selects an option; * marks the present one", markup=False)
        console.print(_options(groups, folders))
    console.print("\nFields: FIELD=VALUE changes a value; ??? must be given")
    console.print(_fields(kind, raw))
    console.print("\nFlags:")
    console.print(_table((("", flag, "", what) for flag, what in _FLAGS.items())))


def _options(groups: Groups, folders: Sequence[Path]) -> Table:
    rows = []
    for group in sorted(groups.chosen):
        for number, option in enumerate(groups.options[group]):
            mark = "*" if option == groups.chosen[group] else " "
            rows.append(("" if number else group, f"{mark} {option}", "", _first_comment(group, option, folders)))
    return _table(rows)


def _fields(kind: type[Config], raw: Mapping[str, Any]) -> Table:
    rows = []
    for path, field in leaves(kind):
        value = _value(raw, path)
        rows.append(("", path, "???" if value == MISSING else shown(value), explanation(field)))
    return _table(rows)


def _table(rows: Any) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for no_wrap in (True, True, False, False):
        table.add_column(no_wrap=no_wrap, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _first_comment(group: str, option: str, folders: Sequence[Path]) -> str:
    for folder in folders:
        file = folder / group / f"{option}.yaml"
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            return next((line[1:].strip() for line in lines if re.match(r"#(?! *@)", line)), "")
    return ""


def _value(raw: Any, path: str) -> Any:
    for part in path.split("."):
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    return raw
