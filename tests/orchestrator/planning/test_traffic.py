"""The bytes of a step, and of a checkpoint, are those that two workers move and store."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pool_run import PoolRun
from seen_collectives import SeenCollectives
from worker_pool import Pools

from modules.config import Precision
from modules.model_config import ModelConfig
from orchestrator.configuration.planning import DeviceConfig, LinkConfig
from orchestrator.planning.memory import Setting, Strategy
from orchestrator.planning.saves import checkpoint_bytes
from orchestrator.planning.traffic import Traffic, seconds, traffic

SHAPE = ModelConfig(num_layers=1, num_heads=2, hidden_dim=32, max_positions=32)
VOCAB = 260
SETTINGS = {"zero_optimization": {"stage3_param_persistence_threshold": 500}}
"""So that stage 3 gathers the larger matrices when they are needed, and keeps the small parameters."""
_KINDS = {"allreduce": "all_reduce", "allgather_base": "all_gather", "reduce_scatter_base": "reduce_scatter"}
_SMALL = 20
"""Elements of norms, flags and counts, which are left out."""


def setting(precision: Precision = "32", num_workers: int = 2) -> Setting:
    return Setting(SHAPE, VOCAB, precision, 32, 2, num_workers, accumulation=2, deepspeed=SETTINGS)


def seen_bytes(file: SeenCollectives, num_workers: int) -> Traffic:
    """Return the bytes of the tensors in the collectives that were recorded, a scattered one as a whole."""
    widths = {"float32": 4, "bfloat16": 2}
    found: Counter[str] = Counter()
    for each in file.read():
        if each.num_elements > _SMALL and each.name in _KINDS:
            whole = num_workers if each.name.startswith("reduce_scatter") else 1
            found[_KINDS[each.name]] += whole * each.num_elements * widths[each.dtype]
    return Traffic(**found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "precision"),
    [("ddp", "32"), ("zero1", "32"), ("zero2", "bf16-true"), ("zero3", "32"), ("zero3", "bf16-true")],
)
def test_bytes_of_a_step_are_those_that_the_collectives_move(
    pools: Pools, tmp_path: Path, strategy: Strategy, precision: Precision
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hello world\n" * 2000, encoding="utf-8")
    run = PoolRun(
        pools[2],
        text,
        tmp_path / "runs",
        strategy,
        checkpoint={"interval_steps": 100},
        training={"num_steps": 4, "precision": precision},
        deepspeed=SETTINGS if strategy.startswith("zero") else None,
    )
    seen = SeenCollectives(tmp_path, step=2)
    outcome = run.train(seen)
    assert outcome.error is None
    assert seen_bytes(seen, 2) == traffic(setting(precision), strategy)
    assert stored_tensor_bytes(run.files(4)) == checkpoint_bytes(setting(precision))


def stored_tensor_bytes(files: list[Path]) -> int:
    """Return the bytes of the tensors in safetensors files, by their headers."""
    total = 0
    for file in files:
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        total += sum(stop - start for start, stop in (entry["data_offsets"] for entry in header.values()))
        assert len(data) == 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    return total


def test_under_zero3_each_of_muons_matrices_goes_to_one_worker_and_back() -> None:
    of = replace(setting(num_workers=4), optimizer="muon", device="cpu")
    matrices = sum(each.numel for each in of.weights if each.name.startswith("blocks.") and each.is_matrix)
    assert traffic(of, "zero3") == replace(traffic(replace(of, optimizer="adamw"), "zero3"), all_to_all=8 * matrices)
    # a worker has a quarter of each matrix, of which three quarters go to others
    assert Traffic(all_to_all=8 * matrices).sent(4) == pytest.approx(8 * matrices / 4 * 3 / 4)


def test_one_worker_sends_nothing() -> None:
    assert traffic(setting(num_workers=1), "zero2") == Traffic()
    assert seconds(Traffic(), 1, None, None) == 0.0


@pytest.fixture
def device() -> Callable[[int], DeviceConfig]:
    own = LinkConfig(name="fast", gigabytes_per_second=100.0)
    return lambda per_node: DeviceConfig(name="d", per_node=per_node, link=own)


def test_the_slowest_link_decides_and_an_unknown_one_gives_no_time(device: Callable[[int], DeviceConfig]) -> None:
    moved, slow = Traffic(all_gather=10**9), LinkConfig(name="slow", gigabytes_per_second=1.0)
    assert seconds(moved, 8, device(8), None) == pytest.approx(7 / 8 / 100)
    assert seconds(moved, 16, device(8), slow) == pytest.approx(15 / 16)
    assert seconds(moved, 16, device(8), None) is None
    assert seconds(moved, 2, device(1), slow) == pytest.approx(1 / 2)
    assert seconds(moved, 2, None, slow) is None
