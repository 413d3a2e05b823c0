"""Collect garbage in the same step on all ranks.

Python collects when a process has made some number of objects, which is in another step on each rank, and each step
waits for its slowest rank: among a thousand workers nearly every step waits for a collection somewhere.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import Callback, Trainer

from modules.gpt_module import GPTModule


class GarbageCollection(Callback):
    """Collects after every `interval_steps` steps instead of whenever Python would.

    What lives when the training starts is left out (`gc.freeze`), so a collection looks at what the training has made,
    whatever its generation, and takes little more than that of the young ones.

    Source: torchtitan, `tools/utils.py`; Megatron-LM, `--manual-gc`.
    """

    def __init__(self, interval_steps: int) -> None:
        self._interval_steps = interval_steps
        self._is_active = False

    def on_train_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Begin, unless the process collects nothing by itself."""
        if gc.isenabled():
            gc.collect()
            gc.freeze()
            gc.disable()
            self._is_active = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Collect when it is due."""
        if self._is_active and pl_module.ends_step(index) and pl_module.step % self._interval_steps == 0:
            gc.collect()

    @contextmanager
    def by_python(self) -> Iterator[None]:
        """Let Python decide in what is no step."""
        if self._is_active:
            gc.enable()
        try:
            yield
        finally:
            if self._is_active:
                gc.disable()

    def on_train_end(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Leave it to Python again."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: GPTModule, exception: BaseException) -> None:
        """Leave it to Python again when the fit ends with an error."""
        self._end()

    def _end(self) -> None:
        if self._is_active:
            self._is_active = False
            # a model that a rollback replaces could not be collected otherwise
            gc.unfreeze()
            gc.enable()
