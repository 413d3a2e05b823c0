"""Loaded by each interpreter that has it on its path: every training records the samples that its model receives.

`broken_run.samples_of_steps` reads the records. This depends on nothing of the training but the batch for the model.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "samples"
"""Below the storage root; a file for each rank of each attempt, a line for each micro-batch: time, step, samples."""


class _Recorder(MetaPathFinder, Loader):
    """Imports `orchestrator.training.train` unchanged, and wraps its `train` to record the samples."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "orchestrator.training.train":
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        self._loader, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        train = module.train

        def recorded(job: Any, runtime: Any) -> None:
            from modules.gpt_module import GPTModule

            root = job.config.storage.root
            if "://" not in root:
                _record(GPTModule, Path(root) / FOLDER, runtime.rank)
            train(job, runtime)

        module.train = recorded


def _record(model: Any, folder: Path, rank: int) -> None:
    import os
    import time

    folder.mkdir(parents=True, exist_ok=True)
    # one write per line, because the process may be killed at any moment
    file = os.open(folder / f"{rank}-{os.getpid()}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    training_step = model.training_step

    def recorded_step(self: Any, batch: Any, *others: Any) -> Any:
        numbers = [self.step + 1, *batch["sample_ids"].tolist()]
        os.write(file, " ".join(map(str, [time.time(), *numbers, "\n"])).encode())
        return training_step(self, batch, *others)

    model.training_step = recorded_step


sys.meta_path.insert(0, _Recorder())
