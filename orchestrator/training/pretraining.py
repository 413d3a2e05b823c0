"""The objective of `orchestrator pretrain`, in a form that can be sent to workers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.artifacts.mixture import sources_of
from orchestrator.artifacts.opened_data import open_tokens
from orchestrator.artifacts.prepared_texts import by_name
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.storage.store import Storage

if TYPE_CHECKING:
    from modules.objective import Objective


@dataclass(frozen=True)
class PreparedText:
    """Pretraining on a committed artifact of token shards, or on a mixture of several; see `ObjectiveSource`."""

    data_name: str
    config: PretrainConfig

    def open(self, storage: Storage) -> "Objective":
        # imported here, so that the driver does not import torch for it
        from modules.data.mixed_data import MixedData
        from modules.pretraining import Pretraining

        names, config = sources_of(storage, self.data_name), self.config
        most = config.storage.cache_bytes
        data = MixedData({source: open_tokens(storage, name, most) for source, name in names.items()})
        return Pretraining(data, config.objective, config.training, config.run.seed, by_name(config.data))
