"""The objective of `orchestrator pretrain`, in a form that can be sent to workers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.artifacts.opened_data import open_tokens
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.storage.store import Storage

if TYPE_CHECKING:
    from modules.objective import Objective


@dataclass(frozen=True)
class PreparedText:
    """Pretraining on a committed artifact of token shards; see `ObjectiveSource`."""

    data_name: str
    config: PretrainConfig

    def open(self, storage: Storage) -> "Objective":
        # imported here, so that the driver does not import torch for it
        from modules.pretraining import Pretraining

        data = open_tokens(storage, self.data_name, self.config.storage.cache_bytes)
        return Pretraining(data, self.config.objective, self.config.training, self.config.run.seed)
