"""Output to the terminal: readable at 80 columns, without colours and in a file."""

import re
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters except tab and line feed: a model's text must not move the cursor or set the terminal's title."""


def new_console(stderr: bool = False) -> Console:
    """Return a console without automatic highlighting, on standard output or standard error.

    It redraws what it has written on a terminal alone: FORCE_COLOR colours a file, but moves no cursor in it.
    """
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(highlight=False, stderr=stderr, force_interactive=None if is_terminal else False)


def is_plain(console: Console) -> bool:
    """Return whether no styles are wanted, or none can be shown: NO_COLOR, a dumb terminal, a file or a pipe."""
    return console.no_color or console.color_system is None or not console.file.isatty()


def new_table(title: str) -> Table:
    """Return an empty table in the style that all our tables share."""
    return Table(title=Text(title), title_justify="left", title_style="bold", header_style="dim")


def loss(value: float) -> str:
    """Return a loss with enough digits to distinguish runs."""
    return f"{value:.4f}"


def printable(console: Console, text: str) -> str:
    """Return `text` without control characters if it goes to a terminal; a file or a program gets it as it is."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if console.file.isatty() else text


def print_line(line: str) -> None:
    """Print a line as it is, without wrapping, so that a path or a command in it can be copied."""
    new_console().print(Text(line), soft_wrap=True)


def write_text(console: Console, text: str, style: str = "") -> None:
    """Write a text letter by letter, with the line breaks that are in it and no others.

    In a file or a pipe nothing is done to it; rich would drop control characters and turn tabs into spaces.
    """
    shown = printable(console, text)
    if style and shown and console.file.isatty():
        console.print(Text(shown, style=style), end="", soft_wrap=True)
    else:
        console.file.write(shown)
        console.file.flush()
