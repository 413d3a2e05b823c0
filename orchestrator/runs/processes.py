"""Which process is it, and is it alive? Answered without the wall clock, which may be set back or forward."""

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class ProcessId:
    """Identifies a process for ever; another process with the same pid has another start."""

    host: str
    boot: str
    """Identifies the machine and the time since its last start; empty where the system does not tell."""
    namespace: str
    """Of pids: containers on one machine have their own, though they may share a host name."""
    pid: int
    started: int
    """Clock ticks from the start of the machine to that of the process; seconds since 1970 where that is unknown."""

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """Return the identity of a living process that can be seen from here."""
        return cls(socket.gethostname(), _boot(), _namespace(), pid, _started(pid) or 0)

    @property
    def is_visible(self) -> bool:
        """Whether this process could see it: it is on the same start of the same machine, in the same namespace."""
        return (self.host, self.boot, self.namespace) == (socket.gethostname(), _boot(), _namespace())

    @property
    def is_alive(self) -> bool:
        """Whether it is alive; False if it is not visible."""
        return self.is_visible and _started(self.pid) == self.started


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _namespace() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _started(pid: int) -> int | None:
    """Return when a living process was started; None if there is none."""
    if sys.platform != "linux":
        with suppress(psutil.Error):
            return int(psutil.Process(pid).create_time())
        return None
    try:
        # the name, in parentheses, may hold spaces and parentheses itself
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
