"""A program at a terminal of its own, as a user sees it."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

# tests may have been started in the background, where Ctrl-C is ignored
_IN_SESSION = (
    "import fcntl, os, signal, sys, termios; "
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0); signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, '-m', 'orchestrator', *sys.argv[1:]])"
)
_LONGEST_WAIT_SECONDS = 60


class Terminal:
    """Runs a command at a terminal, in whose session it is alone."""

    def __init__(self, arguments: Sequence[str], folder: Path, **environment: str) -> None:
        self._main, side = pty.openpty()
        settings = termios.tcgetattr(side)
        settings[3] |= termios.NOFLSH  # otherwise the kernel drops at Ctrl-C what is not read here yet
        termios.tcsetattr(side, termios.TCSANOW, settings)
        self.settings: list[Any] = termios.tcgetattr(side)
        root = str(Path(__file__).resolve().parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_SESSION, *arguments],
            stdin=side,
            stdout=side,
            stderr=side,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": root, **environment},
            start_new_session=True,
        )
        self._side = side
        self.shown = ""
        self._num_awaited = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)
        os.close(self._side)

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def wait_for(self, text: str) -> None:
        """Wait until `text` is shown after what was waited for before."""
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        while (found := self.shown.find(text, self._num_awaited)) < 0:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown!r}"
            self._read()
        self._num_awaited = found + len(text)

    def wait_for_more(self, number: int) -> None:
        """Wait until so many characters more are shown."""
        before, deadline = len(self.shown), time.monotonic() + _LONGEST_WAIT_SECONDS
        while len(self.shown) < before + number:
            assert time.monotonic() < deadline, self.shown
            self._read()

    def end(self) -> int:
        """Return the exit code of the program, which is about to end."""
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown
            self._read()
        self._read()
        return self.process.returncode

    def is_restored(self) -> bool:
        """Return whether the terminal has the settings that it had before the program."""
        return termios.tcgetattr(self._side) == self.settings

    def _read(self) -> None:
        if select.select([self._main], [], [], 0.1)[0]:
            self.shown += os.read(self._main, 65536).decode(errors="replace")
