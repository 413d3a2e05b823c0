"""Standard input, output and error as this program needs them, wherever it was started from."""

import codecs
import io
import os
import select
import sys
from errno import EPIPE
from typing import Any, TextIO

UNREAD = 128 + 13
"""Exit code after the reader of the output has closed its pipe: that of a tool that SIGPIPE (13) has ended."""


class LostOutputError(BaseException):
    """Standard output cannot be written, so the program ends; `logging` and others swallow an Exception."""


class _Descriptor(io.FileIO):
    """A standard descriptor whose failed writes are remembered, and raised only where the program ends with them.

    rich would end the process by itself at a broken pipe, and Python would report it once more when it exits.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        self.failure: OSError | None = None
        """The first failed write."""
        self.ends_program = False
        self.is_terminal = self.isatty()

    def write(self, data: Any) -> int:
        """Write; what cannot be written is dropped."""
        try:
            return self._write(data)
        except OSError as error:
            is_first, self.failure = self.failure is None, self.failure or error
            if self.ends_program and is_first:
                raise LostOutputError from error
            return len(data)

    def _write(self, data: Any) -> int:
        while (written := super().write(data)) is None:  # another process has made the pipe non-blocking
            select.select([], [self], [])
        return written


def open_standard_streams() -> None:
    """Give this process descriptors 0 to 2 and streams on them whose failures `exit_code` reports.

    A descriptor that is closed would be given to the next file or pipe that is opened, and so to the wrong process.
    A terminal of which nothing is known is taken for one that cannot be redrawn, as curses does.
    """
    os.environ["TERM"] = os.environ.get("TERM") or "dumb"
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # the lowest free number is taken, which is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")  # type: ignore[arg-type]
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)


def end_when_unread() -> None:
    """From now on, end the program when its output cannot be written; otherwise such output is dropped."""
    if descriptor := _descriptor():
        descriptor.ends_program = True


def go_on_unread() -> None:
    """From now on, drop output that cannot be written: what is made is worth more than what is said about it."""
    if descriptor := _descriptor():
        descriptor.ends_program = False


def exit_code(code: int) -> int:
    """Write what is left, and return the exit code after a command that ended with `code`.

    A command that has done its work but could not say so ends quietly with `UNREAD` where its pipe or terminal is gone,
    and otherwise, as with a full disk, with 1 and a line on standard error.
    """
    if not (descriptor := _descriptor()):
        return code
    go_on_unread()
    sys.stdout.flush()
    if code or not descriptor.failure:
        return code
    if descriptor.failure.errno == EPIPE or descriptor.is_terminal:
        return UNREAD
    print(f"error: standard output: {descriptor.failure.strerror}", file=sys.stderr)  # noqa: T201
    return 1


def restart_in_utf8() -> None:
    """Start this program anew with Python's UTF-8 mode where the locale knows ASCII alone.

    Arguments, file names and texts would otherwise hold no other characters. Children inherit the mode.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and sys.executable:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def _stream(number: int, present: TextIO | None) -> TextIO:
    """Return a stream on a standard descriptor, encoded and flushed as the present one."""
    encoding = getattr(present, "encoding", None) or "utf-8"
    descriptor = _Descriptor(number)
    # bytes of a file name that are no text are written as they are; what another encoding lacks is written as an escape
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(descriptor),
        encoding=encoding,
        errors="surrogateescape" if is_utf8 and number == 1 else "backslashreplace",
        line_buffering=number == 2 or descriptor.is_terminal,
        write_through=getattr(present, "write_through", False),
    )


def _descriptor() -> _Descriptor | None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Descriptor) else None
