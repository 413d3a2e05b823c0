"""What DeepSpeed has made of Muon is looked at before the first step."""

from types import SimpleNamespace

import pytest
import torch

from orchestrator.distributed.zero_muon import prepare_muon
from orchestrator.errors import ConfigError


def test_another_optimizer_in_its_place_is_refused() -> None:
    replaced = SimpleNamespace(optimizer=torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]))
    with pytest.raises(ConfigError, match=r"optimizer\.name=muon: .* DeepSpeed takes AdamW instead"):
        prepare_muon(replaced, 2, torch.device("cpu"), max_norm=1.0)
