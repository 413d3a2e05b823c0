"""A step is judged the same on a device, where nothing waits, and by the process itself."""

import itertools
import math
from typing import Any

import pytest
import torch
from operations import Operations

from orchestrator.configuration.groups import GuardConfig
from orchestrator.distributed.runtime import MOVE
from orchestrator.training.guard import StepGuard
from orchestrator.training.verdicts import Settled, Verdicts

VALUES = (1.5, 0.0, math.inf, -math.inf, math.nan)
NORMS = (None, *VALUES, 0.1, 1e39, torch.tensor(0.1), torch.tensor(math.nan))


def settled(method: str, asked: int = 0, **settings: Any) -> tuple[list[bool], list[Settled], int, Any]:
    """Judge a step of each loss and norm; return the verdicts, what was counted, the request and the guard's state."""
    guard = StepGuard(GuardConfig.model_validate({"max_consecutive": 10**6, **settings}))
    verdicts = Verdicts(guard, lambda: asked, world_size=1)
    found = []
    for step, (loss, norm) in enumerate(itertools.product(VALUES, NORMS), start=1):
        assert verdicts.is_bad is None
        is_bad = getattr(verdicts, method)(torch.tensor(loss), norm)
        assert verdicts.is_bad is is_bad
        found.append(bool(is_bad))
        verdicts.end_step(step)
    counted = list(verdicts.settled(10**6))
    assert [each.step for each in counted] == list(range(1, len(found) + 1))
    return found, counted, verdicts.asked, guard.state


@pytest.mark.parametrize("asked", [0, 15, MOVE])
@pytest.mark.parametrize("settings", [{}, {"spike_sigma": 3.0}], ids=["without_limit", "with_limit"])
def test_both_ways_judge_count_and_ask_the_same(asked: int, settings: dict[str, float]) -> None:
    found, counted, request, state = settled("judge_here", asked, **settings)
    assert (found, counted, request, state) == settled("judge", asked, **settings)
    assert request == asked
    assert found == [each.reason is not None for each in counted]
    assert 0 < sum(found) < len(found)


def test_the_process_computes_nothing_on_the_device_to_judge_by_itself() -> None:
    verdicts = Verdicts(StepGuard(GuardConfig()), lambda: 0, world_size=1)
    loss, norm = torch.tensor(1.0), torch.tensor(2.0)
    with Operations() as operations:
        verdicts.judge_here(loss, norm)
        verdicts.end_step(1)
        assert [each.reason for each in verdicts.settled(1)] == [None]
    assert dict(operations.counts) == {"aten::_local_scalar_dense": 2}
