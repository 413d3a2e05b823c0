"""The objective of `orchestrator finetune`, in a form that can be sent to workers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.artifacts.prepared_task import local_examples
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
        from modules.data.example_data import ExampleData
        from modules.finetuning import finetuning

        data = ExampleData.open(local_examples(storage, self.data_name))
        return finetuning(data, self.config.training, self.config.run.seed, self.config.task)
