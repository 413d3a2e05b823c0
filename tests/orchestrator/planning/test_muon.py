"""What Muon's step takes is what torch counts in one: operations, and bytes at the fullest moment."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modules import muon
from modules.config import OptimizerConfig
from modules.model import GPT, initialize
from modules.model_config import ModelConfig
from modules.muon import Muon
from modules.optimizer import build_optimizer, parameter_groups
from orchestrator.configuration.planning import DeviceConfig
from orchestrator.distributed import sharded_matrices
from orchestrator.distributed.sharded_matrices import Piece, ShardedMatrices
from orchestrator.distributed.zero_muon import _ZeroShards
from orchestrator.planning import muon as planned
from orchestrator.planning.memory import Setting, memory
from orchestrator.planning.muon import iteration_flops, matrix_shapes, sharded_step_bytes, step_bytes
from orchestrator.planning.speed import step_seconds, work

CPU = torch.device("cpu")
SHAPE = ModelConfig(num_layers=3, num_heads=4, hidden_dim=64, max_positions=16)
SETTING = Setting(SHAPE, 100, "bf16", 16, 2, num_workers=4, optimizer="muon")
SHAPES = matrix_shapes(SETTING.weights)
CONFIG = OptimizerConfig(name="muon")


def muon_of(parameters: list[Tensor], sharded: ShardedMatrices | None = None) -> Muon:
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = Muon([{"params": parameters, "muon": True, "momentum": 0.9}])
    optimizer.shards = _ZeroShards({parameters[0]: sharded}) if sharded else None
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]  # as in a training, whose guard sets it
    optimizer.step()
    return optimizer


def whole() -> Muon:
    model = GPT(SHAPE, 100)
    initialize(model, seed=1)
    (matrices, *_) = parameter_groups(model, CONFIG)
    return muon_of(matrices["params"])


def flat() -> Muon:
    """As ZeRO has it on a single worker: one range of all matrices, end to end."""
    sizes = [rows * columns for rows, columns in SHAPES]
    offsets = [0, *accumulate(sizes)]
    pieces = [
        Piece(0, index, 0, size, offset) for index, (size, offset) in enumerate(zip(sizes, offsets, strict=False))
    ]
    parameter = torch.ones(offsets[-1], requires_grad=True)
    return muon_of([parameter], ShardedMatrices(SHAPES, pieces, 0, 1, CPU, torch.float32))


def test_operations_are_those_that_torch_counts() -> None:
    model = GPT(SHAPE, 100)
    initialize(model, seed=1)
    optimizer = build_optimizer(parameter_groups(model, CONFIG), CONFIG)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with FlopCounterMode(display=False) as counted:
        optimizer.step()
    assert iteration_flops(SHAPES) == counted.get_total_flops()


@pytest.mark.parametrize(
    ("optimizer_of", "expected"),
    [(whole, step_bytes(SHAPES, "cpu")), (flat, sharded_step_bytes(SHAPES, 1, "cpu", offloads=False)[0])],
    ids=["whole", "sharded"],
)
def test_bytes_are_those_of_the_tensors_at_the_fullest_moment(optimizer_of: Callable[[], Muon], expected: int) -> None:
    optimizer = optimizer_of()
    tensors = [
        tensor for group in optimizer.param_groups for weight in group["params"] for tensor in (weight, weight.grad)
    ]
    states = [value for state in optimizer.state.values() for value in state.values()]
    with LiveBytes([*tensors, *states]) as live:
        optimizer.step()
    assert live.most == pytest.approx(expected, rel=0.05)


def test_rounds_bound_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(rows * columns for rows, columns in SHAPES)
    monkeypatch.setattr(sharded_matrices, "ROUND_ELEMENTS", largest)
    monkeypatch.setattr(planned, "_ROUND_ELEMENTS", largest)
    monkeypatch.setattr(muon, "_BATCH_ELEMENTS", largest)
    optimizer = flat()
    (parameter,) = optimizer.param_groups[0]["params"]
    with LiveBytes([parameter, parameter.grad, *optimizer.state[parameter].values()]) as live:
        optimizer.step()
    assert live.most < 8 * parameter.numel()  # 14 with all at once
    # a round holds less where the next matrix would be too much
    assert live.most <= sharded_step_bytes(SHAPES, 1, "cpu", offloads=False)[0] <= 1.15 * live.most


def test_a_plan_adds_them_to_the_step() -> None:
    plain = replace(SETTING, optimizer="adamw")
    shared = work(SETTING, "zero2", 0.0)
    assert work(SETTING, "ddp", 0.0).optimizer_flops == iteration_flops(SHAPES) == 4 * shared.optimizer_flops
    assert shared.flops == work(plain, "zero2", 0.0).flops
    figures = {
        "half_teraflops": 100.0,
        "memory_gigabytes_per_second": 1e3,
        "link": {"name": "y", "gigabytes_per_second": 1.0},
    }
    device = DeviceConfig(name="x", matmul_efficiency=0.5, attention_efficiency=0.5, **figures)  # type: ignore[arg-type]
    longer = step_seconds(shared, device) - step_seconds(replace(shared, optimizer_flops=0.0), device)
    assert longer == pytest.approx(shared.optimizer_flops / 0.5e14, rel=1e-3)


@pytest.mark.parametrize("strategy", ["single", "ddp", "zero1", "zero2", "zero3"])
def test_memory_holds_the_fullest_moment_of_the_step(strategy) -> None:
    large = replace(SETTING, model=SHAPE.model_copy(update={"hidden_dim": 1024, "num_layers": 8}), num_workers=2)
    found, adamw = memory(large, strategy), memory(replace(large, optimizer="adamw"), strategy)
    assert found.optimizer < adamw.optimizer
    shapes = matrix_shapes(large.weights)
    sharded = sharded_step_bytes(shapes, 2, "cuda", offloads=False)[0]
    assert found.buffers >= (sharded if strategy.startswith("zero") else step_bytes(shapes, "cuda"))


def test_with_offload_the_host_holds_what_is_in_float32() -> None:
    on_device, on_host = sharded_step_bytes(SHAPES, 4, "cuda", offloads=True)
    assert on_device < sharded_step_bytes(SHAPES, 4, "cuda", offloads=False)[0] <= on_device + on_host
    without = memory(replace(SETTING, optimizer="adamw"), "zero2_offload").host
    moments = 4 * (replace(SETTING, optimizer="adamw").num_moments - SETTING.num_moments)
    saved = moments // 4 * 2  # in the optimizer's state and in the copy of a save
    assert memory(SETTING, "zero2_offload").host == pytest.approx(without - saved + on_host, abs=32)
