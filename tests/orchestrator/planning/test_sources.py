"""What a plan says of the sources of a mixture is what the training takes of them."""

import numpy as np
import pytest

from modules.data.mixed_data import Schedule
from modules.data.sampler import WindowOrder
from orchestrator.configuration.commands import PlanPretrainConfig
from orchestrator.planning.sources import source_plans

SOURCES = [
    {"name": "web", "path": "web.txt", "weight": 0.5, "max_epochs": 4},
    {"name": "code", "path": "code.txt", "weight": 0.25},
    {"name": "law", "path": "law.txt", "weight": 0.25, "max_epochs": 2},
]
PHASES = [
    {"weights": {"clm": 1}, "steps": 40},
    {"weights": {"clm": 1}, "fraction": 0.5, "data_weights": {"web": 1, "law": 3}},
    {"weights": {"clm": 1}, "fraction": 0.3},
]
BATCH, LENGTH, STEPS = 12, 16, 200
CONFIG = PlanPretrainConfig.model_validate(
    {
        "run": {"name": "x"},
        "data": {"source": "files", "sources": SOURCES},
        "objective": {"phases": PHASES},
        "training": {"num_steps": STEPS, "global_batch_size": BATCH, "sequence_length": LENGTH},
    }
)


def test_tokens_of_each_source_are_those_that_a_training_takes() -> None:
    found = source_plans(CONFIG, BATCH * LENGTH)
    schedule = Schedule(CONFIG.data.sources, CONFIG.objective, STEPS, BATCH)
    orders = [WindowOrder(10_000, LENGTH, seed=0) for _ in SOURCES]
    taken = schedule.mixture(orders).counts(STEPS * BATCH) * LENGTH
    # each stretch of equal weights has its shares within less than one sample
    assert np.abs(taken - [source.num_tokens for source in found]).max() < 3 * LENGTH
    assert sum(source.num_tokens for source in found) == STEPS * BATCH * LENGTH
    assert sum(source.share for source in found) == pytest.approx(1)


def test_fewest_tokens_are_those_that_the_bound_of_epochs_asks_for() -> None:
    web, code, law = source_plans(CONFIG, BATCH * LENGTH)
    assert web.fewest_tokens == web.num_tokens / 4
    assert code.fewest_tokens is None
    assert law.fewest_tokens == law.num_tokens / 2


def test_a_single_text_has_no_sources() -> None:
    single = PlanPretrainConfig.model_validate({"run": {"name": "x"}, "data": {"source": "stdlib"}})
    assert source_plans(single, BATCH * LENGTH) == []
