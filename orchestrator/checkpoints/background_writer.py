"""The training's side of `writer_process`: copies a rank's part into shared memory, and receives the result."""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any, cast

from modules.child_process import child_environment
from orchestrator.checkpoints.image import Image
from orchestrator.checkpoints.parts import Part
from orchestrator.checkpoints.pinning import Pinning
from orchestrator.checkpoints.snapshot import Snapshot
from orchestrator.checkpoints.writer_process import COMMITTED, STORED
from orchestrator.errors import RefusedError, StorageError
from orchestrator.storage.store import Storage

_END_SECONDS = 5


class BackgroundWriter:
    """Writes this rank's parts in another process; training waits only for the copy in memory.

    It holds as much memory as the part has bytes, shared by this process and the writer process alone.

    Args:
        pinning: Page-locks this memory, where the state is on a device.
    """

    def __init__(self, storage: Storage, pinning: Pinning | None = None) -> None:
        self._storage, self._image = storage, Image(pinning)
        self._process: subprocess.Popen[str] | None = None
        self._answers: dict[str, Future[StorageError | None]] = {}
        self._part: Part | None = None
        self._preparing: threading.Thread | None = None

    def prepare(self, num_bytes: int) -> None:
        """Start the process and allocate the memory in the background."""
        self._start_process()
        self._preparing = threading.Thread(target=self._reserve, args=(num_bytes,), daemon=True)
        self._preparing.start()

    def start(self, part: Part, snapshot: Snapshot, commit: Mapping[str, Any]) -> None:
        """Begin to write; the result of the previous save must have been received."""
        self._end_preparing()
        assert not self._answers or self._answers[STORED].done(), "the writer process still reads the last save"
        self._part, self._answers = part, {what: Future() for what in (STORED, COMMITTED)}
        try:
            self._image.hold(snapshot)
        except OSError as error:
            text = f"no memory for a copy of the state ({error.strerror}); set checkpoint.mode=sync"
            for answer in self._answers.values():
                answer.set_result(RefusedError(text))
            return
        self._start_process()
        self._send({"part": asdict(part), **commit})

    def stored(self) -> StorageError | None:
        """Wait until this rank's file is stored; return the error, if any."""
        return self._answers[STORED].result()

    def committed(self) -> StorageError | None:
        """Wait until the save is committed; return the error, if any. On rank 0 only."""
        return self._answers[COMMITTED].result()

    @property
    def is_committed(self) -> bool:
        """Whether the save is committed already."""
        answer = self._answers[COMMITTED]
        return answer.done() and answer.result() is None

    def expect_all(self) -> None:
        """Expect the parts of the other ranks at once: all are stored. On rank 0 only."""
        assert self._part is not None
        self._send({"expect_all": self._part.folder})

    def abandon(self) -> None:
        """Stop waiting for the parts of the other ranks. On rank 0 only."""
        assert self._part is not None
        self._send({"abandon": self._part.folder})

    def _reserve(self, num_bytes: int) -> None:
        with suppress(OSError):  # the first save reports it
            self._image.reserve(num_bytes)

    def _end_preparing(self) -> None:
        if self._preparing:
            self._preparing.join()
            self._preparing = None

    def close(self) -> None:
        """End the process, even while it writes."""
        self._end_preparing()
        process, self._process = self._process, None
        if process:
            with suppress(OSError):
                cast(IO[str], process.stdin).close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            self._listener.join()
            self._image.close()

    def _start_process(self) -> None:
        if self._process and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.checkpoints.writer_process", self._storage.url(), self._image.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
            pass_fds=self._image.inherited,
            # Ctrl-C is for the training, which then ends the writer; a session of its own would void its low priority
            process_group=0,
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def _send(self, order: Mapping[str, Any]) -> None:
        assert self._process is not None
        stdin = cast(IO[str], self._process.stdin)
        # the pipe is broken or closed: the listener thread reports why the process has ended
        with suppress(OSError, ValueError):
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        with process.stdout as answers, process.stdin:  # type: ignore[union-attr]
            for line in answers:  # type: ignore[union-attr]
                answer = json.loads(line)
                self._answers[answer["what"]].set_result(_error(answer))
        code = process.wait()
        for future in self._answers.values():
            if self._process is process and not future.done():
                future.set_result(StorageError(f"the process that writes checkpoints ended with code {code}"))


def _error(answer: Mapping[str, Any]) -> StorageError | None:
    if answer["error"] is None:
        return None
    return RefusedError(answer["error"]) if answer["is_final"] else StorageError(answer["error"])
