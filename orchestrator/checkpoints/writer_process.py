"""The process that writes a rank's checkpoints while training continues; it imports no torch and has a low priority.

Its command line names the storage root and the file with the image of the rank's part. Each line on standard input is a
save, the news that all ranks have stored their parts of one, or the order to abandon one. It answers on standard output
with one line when this rank's file is stored and, on rank 0, with another when the save is committed. It ends when its
standard input is closed, which also happens when the training is killed; an unfinished save then leaves files in the
store, but no commit.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from orchestrator.checkpoints.commit import commit_and_prune
from orchestrator.checkpoints.parts import Part, are_all_stored, error_of, removed_meanwhile, store_part
from orchestrator.distributed.runtime import STOP_SIGNALS
from orchestrator.errors import OrchestratorError
from orchestrator.storage.store import Storage

STORED, COMMITTED = "stored", "committed"
_NICENESS = 15
"""Gives the process about a thirtieth of a busy core; with niceness 19 a save of 1.2 GB took minutes (measured)."""
_PIECE_BYTES = 2**20
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.02, 1.0
_STALE_SECONDS = 90
"""For this long a listing may lack what other nodes have written: NFS keeps one for up to 60 seconds."""


def main() -> None:
    """Write saves until the training closes standard input."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the training process ends this one after the last save
    with suppress(OSError):
        os.nice(_NICENESS)
    storage, image = Storage(sys.argv[1]), Path(sys.argv[2])
    orders = _Orders()
    for order in orders:
        part = Part(**order["part"])
        _answer(STORED, lambda: store_part(storage, part, _pieces(image), image))  # noqa: B023
        if part.rank == 0:
            _answer(COMMITTED, lambda: _commit(storage, part, order, orders))  # noqa: B023


def _answer(what: str, action: Callable[[], None]) -> None:
    error = error_of(action)
    answer = {"what": what, "error": str(error) if error else None, "is_final": error is not None and error.is_final}
    print(json.dumps(answer), flush=True)  # noqa: T201


def _pieces(image: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_PIECE_BYTES))
    with open(image, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


def _commit(storage: Storage, part: Part, order: dict[str, Any], orders: "_Orders") -> None:
    wait, overdue_seconds = _FIRST_WAIT_SECONDS, 0.0
    while not are_all_stored(storage, part):
        if part.folder in orders.abandon:
            raise OrchestratorError("another worker could not write")
        if overdue_seconds > _STALE_SECONDS:
            raise removed_meanwhile(storage, part)
        time.sleep(wait)
        overdue_seconds += wait if part.folder in orders.expected else 0.0
        wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
    commit_and_prune(storage, part, order)


class _Orders:
    """The orders on standard input, read on a thread so that this process ends as soon as the training does."""

    def __init__(self) -> None:
        self._saves: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.abandon: set[str] = set()
        """Index folders of abandoned saves."""
        self.expected: set[str] = set()
        """Index folders of saves whose parts are all stored."""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            order = json.loads(line)
            if "abandon" in order:
                self.abandon.add(order["abandon"])
            elif "expect_all" in order:
                self.expected.add(order["expect_all"])
            else:
                self._saves.put(order)
        os._exit(0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield self._saves.get()


if __name__ == "__main__":
    main()
