"""Detect a worker that hangs: its stacks are stored and the process ends, so that the run restarts."""

import faulthandler
import json
import math
import os
import signal
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pytorch_lightning import Callback, Trainer

from modules.gpt_module import GPTModule
from orchestrator.distributed.runtime import Runtime
from orchestrator.errors import OrchestratorError
from orchestrator.storage.store import Storage

EXIT_CODE = 86
_LAST_RESORT_SECONDS = 30
"""After the timeout: if this thread never gets the interpreter's lock, faulthandler ends the process from C."""


class Watchdog(Callback):
    """Ends this process when a step, a validation or a save has not ended for `timeout_seconds`.

    A rank that waits for a stopped one hangs as well, so each rank stores its own stacks below `runs/NAME/stacks`. A
    process that was stopped by a signal is continued, so that it stores its stacks, too, before its next step or the
    loss of the others ends it.

    Args:
        compile_seconds: The first step may take so much longer, because the model is compiled in it.
    """

    def __init__(
        self,
        storage: Storage,
        run_folder: str,
        runtime: Runtime,
        timeout_seconds: float,
        compile_seconds: float = 0.0,
    ) -> None:
        self._storage, self._folder, self._runtime = storage, f"{run_folder}/stacks", runtime
        self._timeout_seconds, self._compile_seconds = timeout_seconds, compile_seconds
        self._beat = math.inf
        self._done = threading.Event()
        self._ending = threading.Lock()

    def on_train_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Begin to watch."""
        self._beat = time.monotonic() + self._compile_seconds
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, *args: Any) -> None:
        """Record that this worker is alive."""
        self.beat()

    def beat(self) -> None:
        """Restart the timeout, or end this process if it is over."""
        self._end_if_overdue()
        self._beat = time.monotonic()

    def teardown(self, trainer: Trainer, pl_module: GPTModule, stage: str) -> None:
        """End watching."""
        self._done.set()

    def on_exception(self, trainer: Trainer, pl_module: GPTModule, exception: BaseException) -> None:
        """End watching when the fit ends with an error, unless that came of hanging: the others have ended by then."""
        self._end_if_overdue()
        self._done.set()

    def _watch(self) -> None:
        interval = min(1.0, self._timeout_seconds / 4)
        while not self._done.wait(interval):
            self._end_if_overdue()

    def _end_if_overdue(self) -> None:
        if time.monotonic() - self._beat <= self._timeout_seconds:
            return
        # the training's thread and the watching one may both find it; the second would end the process too early
        with self._ending:
            self._end()

    def _end(self) -> None:
        faulthandler.dump_traceback_later(_LAST_RESORT_SECONDS, exit=True)
        worker = f"worker rank {self._runtime.rank} on {socket.gethostname()}"
        text = f"no step for {self._timeout_seconds:g} s"
        with suppress(OrchestratorError, OSError):
            name = f"{self._folder}/{int(time.time())}-rank_{self._runtime.rank:05d}.txt"
            self._storage.write_bytes(name, f"{worker}: {text}\n\n{stacks()}".encode())
            text += f"; its stacks are in {self._storage.url(name)}"
        if not _leave_for_agent(text):
            with suppress(Exception):  # the receiver may be gone
                self._runtime.emit({"kind": "hang", "text": f"{worker}: {text}"})
        _wake_stopped_siblings()
        os._exit(EXIT_CODE)


def stacks() -> str:
    """Return the stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _leave_for_agent(text: str) -> bool:
    """Write the message where torch's elastic agent reads a failed worker's error; return whether there is an agent."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": "", "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}), encoding="utf-8")
    return bool(path)


def _wake_stopped_siblings() -> None:
    with suppress(psutil.Error):
        for sibling in psutil.Process(os.getppid()).children():
            if sibling.status() == psutil.STATUS_STOPPED:
                sibling.send_signal(signal.SIGCONT)
