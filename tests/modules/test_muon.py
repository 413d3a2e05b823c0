"""Muon beside torch's own, what it leaves to AdamW, and how many matrices it orthogonalises."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz

from modules.config import OptimizerConfig
from modules.model import GPT, initialize
from modules.model_config import ModelConfig
from modules.muon import Muon, newton_schulz, orthogonalized
from modules.optimizer import build_optimizer, clipped_parameters, parameter_groups, set_learning_rate

SHAPES = ((24, 8), (8, 8), (8, 24), (24, 8), (16, 8))
CONFIG = OptimizerConfig(name="muon", learning_rate=0.02, weight_decay=0.1, momentum=0.9)


def muon_settings(**others: Any) -> dict[str, Any]:
    return {"muon": True, "momentum": 0.9, "weight_decay": 0.1, **others}


def tiny_model() -> GPT:
    model = GPT(ModelConfig(num_layers=2, num_heads=2, hidden_dim=16, max_positions=8), 50)
    initialize(model, seed=1)
    return model


def with_gradients(model: nn.Module, step: int = 0) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def exact_newton_schulz(matrix: Tensor) -> Tensor:
    """Return torch's iterations in float64, of one matrix."""
    x = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).double()
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def test_steps_are_those_of_torchs_muon_that_matches_the_size_of_adamws_updates(monkeypatch) -> None:
    # torch iterates in bfloat16 on every device; in the dtype that we use, the rest is compared to float32's accuracy
    monkeypatch.setattr(
        "torch.optim._muon._zeropower_via_newtonschulz", lambda update, *_: exact_newton_schulz(update).float()
    )
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in SHAPES]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    muon = Muon([{"params": ours, **muon_settings()}], lr=0.02)
    peer = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(20):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        muon.step()
        peer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(muon.state[mine]["exp_avg"], peer.state[other]["momentum_buffer"])


def test_iterations_are_those_of_torch_within_the_accuracy_of_bfloat16() -> None:
    matrix = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    (ours,) = orthogonalized([matrix])
    theirs = _zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (40, 8)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    (result,) = orthogonalized([matrix])
    assert result.shape == shape
    assert 0.6 < torch.linalg.svdvals(result).min() <= torch.linalg.svdvals(result).max() < 1.3


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert not newton_schulz(torch.zeros(1, 4, 4)).any()


def test_matrices_of_blocks_are_muons_and_all_else_is_adamws() -> None:
    model = tiny_model()
    matrices, decayed, rest = parameter_groups(model, CONFIG)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = ("attention.qkv", "attention.projection", "mlp.up", "mlp.down")
    expected = {f"blocks.{layer}.{kind}.weight" for layer in range(2) for kind in kinds}
    assert {names[id(parameter)] for parameter in matrices["params"]} == expected
    assert {names[id(p)] for p in decayed["params"]} == {"token_embedding.weight", "position_embedding.weight"}
    assert [group["weight_decay"] for group in (matrices, decayed, rest)] == [0.1, 0.1, 0.0]
    assert len(matrices["params"] + decayed["params"] + rest["params"]) == len(list(model.parameters()))


def test_every_step_orthogonalises_every_matrix_of_the_blocks_equal_shapes_together(monkeypatch) -> None:
    batches: list[tuple[int, ...]] = []

    def counting(x: Tensor) -> Tensor:
        batches.append(tuple(x.shape))
        return newton_schulz(x)

    monkeypatch.setattr("modules.muon.newton_schulz", counting)
    model = tiny_model()
    optimizer = build_optimizer(parameter_groups(model, CONFIG), CONFIG)
    assert isinstance(optimizer, Muon)
    for step in range(3):
        with_gradients(model, step)
        optimizer.step()
    assert optimizer.num_orthogonalized == 3 * 8
    # queries, keys and values of both layers; projections; up beside the transposed down
    assert sorted(batches) == sorted(3 * [(2, 16, 48), (2, 16, 16), (4, 16, 64)])


def test_many_matrices_are_orthogonalised_in_batches_of_bounded_size(monkeypatch) -> None:
    matrices = list(torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0)))
    together = orthogonalized(matrices)
    monkeypatch.setattr("modules.muon._BATCH_ELEMENTS", 2 * 4 * 6)
    for one, other in zip(orthogonalized(matrices), together, strict=True):
        torch.testing.assert_close(one, other)


def test_the_rest_takes_the_steps_of_adamw() -> None:
    ours, theirs = tiny_model(), tiny_model()
    plain = OptimizerConfig(**CONFIG.model_dump() | {"name": "adamw", "momentum": 0.95})
    muon = build_optimizer(parameter_groups(ours, CONFIG), CONFIG)
    adamw = build_optimizer(parameter_groups(theirs, plain), plain)
    for step in range(3):
        for model, optimizer in ((ours, muon), (theirs, adamw)):
            with_gradients(model, step)
            optimizer.step()
    differing = {
        name for name, parameter in ours.named_parameters() if not torch.equal(parameter, theirs.get_parameter(name))
    }
    assert differing == {name for name, p in ours.named_parameters() if name.startswith("blocks.") and p.dim() == 2}
    kinds = {kind: set(muon.state[ours.get_parameter(f"blocks.0.mlp.up.{kind}")]) for kind in ("weight", "bias")}
    assert kinds == {"weight": {"exp_avg"}, "bias": {"exp_avg", "exp_avg_sq", "step"}}


def test_its_learning_rate_stays_in_proportion() -> None:
    config = OptimizerConfig(name="muon", learning_rate=1e-3, matrix_learning_rate=1e-2)
    groups = parameter_groups(tiny_model(), config)
    build_optimizer(groups, config)
    for rate in (1e-3, 2e-4):
        set_learning_rate(groups, rate)
        assert [group["lr"] for group in groups] == pytest.approx([10 * rate, rate, rate])


def test_only_adamws_part_is_clipped() -> None:
    model = tiny_model()
    optimizer = build_optimizer(parameter_groups(model, CONFIG), CONFIG)
    clipped = {id(parameter) for parameter in clipped_parameters(optimizer)}
    assert clipped == {id(p) for name, p in model.named_parameters() if p.dim() < 2 or not name.startswith("blocks.")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_bad", [False, True])
def test_the_device_alone_decides_whether_a_step_is_taken(is_bad: bool, dtype: torch.dtype, monkeypatch) -> None:
    def trained(*verdicts: bool | None) -> list[Tensor]:
        model = tiny_model().to(dtype)
        optimizer: Any = build_optimizer(parameter_groups(model, CONFIG), CONFIG)
        for step, verdict in enumerate(verdicts):
            with_gradients(model, step)
            for parameter in model.parameters():
                parameter.grad *= torch.nan if verdict else 1.0
            optimizer.found_inf = None if verdict is None else torch.tensor(float(verdict))
            optimizer.step()
        return [*model.parameters(), *(state["exp_avg"] for state in optimizer.state.values())]

    expected = trained(None) if is_bad else trained(None, None)
    monkeypatch.setattr(Tensor, "item", None)
    assert all(torch.equal(*pair) for pair in zip(expected, trained(None, is_bad), strict=True))
