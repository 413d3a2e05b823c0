"""The objective of `orchestrator finetune`, in a form that can be sent to workers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.artifacts.opened_data import open_examples
from orchestrator.configuration.commands import FinetuneConfig
from orchestrator.storage.store import Storage

if TYPE_CHECKING:
    from modules.objective import Objective


@dataclass(frozen=True)
class TaskExamples:
    """Fine-tuning on a committed artifact of examples; see `ObjectiveSource`."""

    data_name: str
    config: FinetuneConfig

    def open(self, storage: Storage) -> "Objective":
        # imported here, so that the driver does not import torch for it
        from modules.finetuning import finetuning

        data = open_examples(storage, self.data_name, self.config.storage.cache_bytes)
        return finetuning(data, self.config.training, self.config.run.seed, self.config.task)
