"""After a notice of termination to any process, all ranks agree at a step boundary, save and end together."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from pytorch_lightning import Callback, Trainer

from modules.gpt_module import GPTModule
from orchestrator.distributed.runtime import MOVE, STOP_SIGNALS, Runtime
from orchestrator.errors import MovedError, StoppedError, exit_code
from orchestrator.training.callbacks.checkpoints import Checkpoints
from orchestrator.training.verdicts import Verdicts


class StopNotices:
    """Receives notices of termination during all fits of a run, so that none is lost during a rollback.

    A request to continue with other workers (`MOVE`) is received in the same way.

    The handler only stores a number. Lightning's own handler broadcasts inside the signal handler, which froze or
    aborted runs of two processes (pytorch-lightning 2.6.6). A second SIGINT to a run of one process stops at once.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._before: dict[signal.Signals, Any] = {}
        self._asked = 0

    def __enter__(self) -> Self:
        """Install the handlers; only the main thread can, and Ray trains on another thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked == number == signal.SIGINT and self._runtime.world_size == 1:
            raise SystemExit(exit_code(number))
        self._asked = number

    def asked(self) -> int:
        """Return the number of the signal by which this process or the run was asked to stop, `MOVE`, or 0."""
        return self._asked or self._runtime.stop_asked()


class Preemption(Callback):
    """Ends a fit with `StoppedError` or `MovedError` on every rank, after the same step and a last checkpoint."""

    def __init__(self, checkpoints: Checkpoints, verdicts: Verdicts) -> None:
        self._checkpoints, self._verdicts = checkpoints, verdicts

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """End after this step if all ranks know that one of them has received a notice."""
        if not pl_module.ends_step(index) or pl_module.step >= trainer.max_steps:
            return
        asked = self._verdicts.asked
        if asked:
            self._checkpoints.save_now(trainer, pl_module, must_last=True)
            raise MovedError(pl_module.step) if asked == MOVE else StoppedError(asked, pl_module.step)
