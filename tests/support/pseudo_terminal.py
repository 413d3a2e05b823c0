"""A pseudo-terminal as standard output."""

import fcntl
import os
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from orchestrator.display import streams


@dataclass
class PseudoTerminal:
    """What was written to it so far is read by `text`; at most 4 kB, as nobody reads meanwhile."""

    _reader: int
    _writer: int

    def resize(self, columns: int) -> None:
        """Change its width, which sends SIGWINCH to the processes of a shell."""
        fcntl.ioctl(self._writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def text(self) -> str:
        """Return what was written, with the line ends that the program wrote."""
        sys.stdout.flush()
        os.write(self._writer, b"\0")
        data = b""
        while not data.endswith(b"\0"):
            data += os.read(self._reader, 65536)
        return data[:-1].decode().replace("\r\n", "\n")


@contextmanager
def pseudo_terminal(term: str | None, columns: int = 80) -> Iterator[PseudoTerminal]:
    """Make standard output a terminal of a kind, for a program that has prepared its standard streams."""
    reader, writer = os.openpty()
    kept = [os.dup(number) for number in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", term) if term is not None else patch.delenv("TERM", raising=False)
        for name in ("stdin", "stdout", "stderr"):
            patch.setattr(sys, name, getattr(sys, name))
        terminal = PseudoTerminal(reader, writer)
        terminal.resize(columns)
        try:
            for number in range(3):
                os.dup2(writer, number)
            streams.open_standard_streams()
            yield terminal
        finally:
            sys.stdout.flush()
            for number, descriptor in enumerate(kept):
                os.dup2(descriptor, number)
            for descriptor in (*kept, reader, writer):
                os.close(descriptor)
