"""Lines that a program asks for: typed at a terminal, or read from a pipe or a file."""

import select
import sys
from typing import Protocol

from rich.console import Console

from orchestrator.display.terminal import is_plain


class Lines(Protocol):
    """Where messages come from."""

    @property
    def are_typed(self) -> bool:
        """Whether somebody sits at a terminal and types them."""
        ...

    def read(self) -> str | None:
        """Return the next message, or None at the end."""
        ...

    def is_begun(self) -> bool:
        """Return whether a line had been begun when Ctrl-C interrupted it."""
        ...


class PipedLines:
    """Standard input, a message a line."""

    are_typed = False

    def read(self) -> str | None:
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None

    def is_begun(self) -> bool:
        return False


class TypedLines:
    """A terminal with line editing, a history in memory, and pasted lines that stay one message."""

    are_typed = True

    def __init__(self, console: Console, prompt: str) -> None:
        """Prepare the terminal's line editing.

        Args:
            console: Standard output; if that is no terminal, the prompt goes to standard error.
            prompt: Shown before each line.
        """
        import readline  # with which `input` edits lines from here on

        self._line_buffer = readline.get_line_buffer
        self._is_edited = sys.stdout.isatty()
        # readline must know which characters take no room, or it breaks lines at the wrong place
        self._prompt = prompt if is_plain(console) else f"\001\x1b[1m\002{prompt}\001\x1b[0m\002"
        # the terminal then marks what is pasted, so that line ends and tabs in it are text
        self._marks_pasted = self._is_edited and console.color_system is not None and "GNU" in (readline.__doc__ or "")
        if self._marks_pasted:
            readline.parse_and_bind("set enable-bracketed-paste on")
            readline.parse_and_bind("tab: self-insert")

    def read(self) -> str | None:
        try:
            lines = [self._line(self._prompt)]
        except EOFError:
            return None
        # elsewhere, lines that are there at once were pasted, but for commands, which take one line
        while not self._marks_pasted and not lines[0].startswith("/") and select.select([sys.stdin], [], [], 0)[0]:
            try:
                lines.append(self._line(""))
            except EOFError:
                break
        return "\n".join(lines)

    def is_begun(self) -> bool:
        return self._is_edited and bool(self._line_buffer())

    def _line(self, prompt: str) -> str:
        if self._is_edited:
            return input(prompt)
        sys.stderr.write(prompt)
        sys.stderr.flush()
        if not (line := sys.stdin.readline()):
            raise EOFError
        return line.removesuffix("\n")
