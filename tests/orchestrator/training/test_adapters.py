"""Adapters beside a frozen published model, trained under every strategy, interrupted, moved and resized."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pool_run import PoolRun
from published_models import write_published
from safetensors.torch import load_file
from tiny_run import write_text
from worker_pool import Outcome, Pools

from modules.huggingface.weights import trained_shapes
from modules.model_config import ModelConfig
from orchestrator.artifacts.base_model import open_base_model

STEPS, MIDDLE = 4, 2
SINGLE = ("single", 1)
LORA = {"rank": 4, "alpha": 16.0, "trained_tokens": [65, 104]}
SHARDED_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""Otherwise ZeRO-3 keeps parameters as small as all of these models' whole after their first use."""
pytestmark = pytest.mark.slow


class Workshop:
    """Trains adapters of tiny published models in every way; each whole training of `trained` runs once."""

    def __init__(self, folder: Path, pools: Pools) -> None:
        self.folder, self.pools, self._number = folder, pools, itertools.count()
        self.text = write_text(folder / "text.txt")
        self.bases = {}
        for kind in ("gpt2", "llama", "untied"):
            write_published(folder / kind, kind)
            self.bases[kind] = open_base_model(ModelConfig(path=str(folder / kind)), needs_mask=False)
        self._done: dict[tuple[Any, ...], tuple[PoolRun, Outcome]] = {}

    def run(
        self, kind: str, way: tuple[str, int], root: Path | None = None, lora: Any = LORA, **training: Any
    ) -> PoolRun:
        strategy, num_workers = way
        base = self.bases[kind]
        return PoolRun(
            self.pools[num_workers],
            self.text,
            root or self.folder / str(next(self._number)),
            strategy,
            checkpoint={"mode": "sync"},
            training={"num_steps": STEPS, **training},
            optimizer={"learning_rate": 1e-2, "min_learning_rate": 5e-3},
            model={**base.config.model_dump(), "lora": lora},
            tokenizer=base.tokenizer_config.model_dump(),
            deepspeed=SHARDED_ALL if strategy == "zero3" else None,
        )

    def trained(self, kind: str, way: tuple[str, int], **settings: Any) -> tuple[PoolRun, dict[int, float]]:
        key = (kind, way, str(settings))
        if key not in self._done:
            run = self.run(kind, way, **settings)
            self._done[key] = run, outcome_of(run)
        run, outcome = self._done[key]
        return run, outcome.losses()

    def continued(
        self, kind: str, saved: tuple[str, int], way: tuple[str, int], **settings: Any
    ) -> tuple[PoolRun, Any]:
        """Return the second half, trained in one way from the checkpoint that another has saved after the first."""
        root = self.folder / str(next(self._number))
        self.trained(kind, saved, **settings)[0].copied_to(root, MIDDLE)
        run = self.run(kind, way, root, **settings)
        return run, outcome_of(run).losses()


def outcome_of(run: PoolRun) -> Outcome:
    outcome = run.train()
    assert outcome.error is None, outcome.error
    return outcome


def largest_difference(losses: dict[int, float], expected: dict[int, float]) -> float:
    return max(abs(loss - expected[step]) / expected[step] for step, loss in losses.items())


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("adapters"), pools)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_first_loss_is_that_of_the_model_and_then_the_adapters_learn(workshop: Workshop, kind: str) -> None:
    _, full = workshop.trained(kind, SINGLE, lora=None)
    _, losses = workshop.trained(kind, SINGLE)
    assert losses[1] == full[1]
    assert losses[STEPS] < losses[1] - 0.005


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [("gpt2", "ddp"), ("llama", "zero1"), ("gpt2", "zero2"), ("gpt2", "zero3"), ("llama", "zero3")],
)
def test_every_strategy_gives_the_losses_of_one_process(workshop: Workshop, kind: str, strategy: str) -> None:
    _, expected = workshop.trained(kind, SINGLE)
    _, losses = workshop.trained(kind, (strategy, 2))
    assert len(losses) == STEPS
    assert largest_difference(losses, expected) <= 1e-6


@pytest.mark.parametrize(
    ("kind", "saved", "way"),
    [
        ("gpt2", SINGLE, ("zero3", 2)),
        ("llama", ("zero3", 2), SINGLE),
        ("gpt2", ("zero2", 2), ("ddp", 2)),
        ("gpt2", ("ddp", 2), ("zero1", 1)),
    ],
)
def test_a_run_continues_under_another_strategy_and_world_size(
    workshop: Workshop, kind: str, saved: tuple[str, int], way: tuple[str, int]
) -> None:
    _, expected = workshop.trained(kind, saved)
    _, losses = workshop.continued(kind, saved, way)
    assert sorted(losses) == list(range(MIDDLE + 1, STEPS + 1))
    assert largest_difference(losses, expected) <= 1e-5


@pytest.mark.parametrize("way", [SINGLE, ("zero3", 2)], ids=str)
def test_a_continued_run_ends_in_the_same_weights_and_moments_bit_for_bit(
    workshop: Workshop, way: tuple[str, int]
) -> None:
    settings = {"lora": {**LORA, "dropout": 0.2, "target_layers": ["q_proj", "v_proj"]}}
    whole, losses = workshop.trained("llama", way, **settings)
    resumed, rest = workshop.continued("llama", way, way, **settings)
    assert rest == {step: losses[step] for step in rest}
    assert resumed.state(STEPS) == whole.state(STEPS)
    assert resumed.weights().read_bytes() == whole.weights().read_bytes()


@pytest.mark.parametrize("way", [SINGLE, ("zero2", 2), ("zero3", 2)], ids=str)
def test_a_checkpoint_holds_what_is_trained_and_nothing_else(workshop: Workshop, way: tuple[str, int]) -> None:
    run, _ = workshop.trained("gpt2", way)
    config = ModelConfig.model_validate({**workshop.bases["gpt2"].config.model_dump(), "lora": LORA})
    shapes = trained_shapes(config, config.vocab_size or 0)
    held = dict.fromkeys(shapes, 0)
    for file in run.files(STEPS):
        for key, values in load_file(file).items():
            held[key.split("/")[0]] += values.numel()
    assert held == {name: 3 * math.prod(shape) for name, shape in shapes.items()}
    adapters = 4 * 2 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    assert sum(held.values()) == 3 * (adapters + 2 * 32)


def test_half_precision_adapters_are_the_same_under_zero_as_under_ddp(workshop: Workshop) -> None:
    expected, found = (workshop.trained("llama", (name, 2), precision="bf16")[1] for name in ("ddp", "zero3"))
    assert largest_difference(found, expected) <= 1e-3


@pytest.mark.long
def test_half_precision_weights_are_the_same_under_every_stage(workshop: Workshop) -> None:
    expected, *others = (workshop.trained("gpt2", (f"zero{n}", 2), precision="bf16-true")[1] for n in (1, 2, 3))
    assert all(largest_difference(found, expected) <= 1e-3 for found in others)


@pytest.mark.long
@pytest.mark.parametrize("way", [SINGLE, ("zero3", 2)], ids=str)
def test_compiled_adapters_have_the_losses_of_eager_ones(workshop: Workshop, way: tuple[str, int]) -> None:
    _, compiled = workshop.trained("llama", way, compile=True)
    assert largest_difference(compiled, workshop.trained("llama", SINGLE)[1]) <= 1e-5


def test_what_is_exported_is_the_model_with_its_adapters_merged(workshop: Workshop) -> None:
    run, _ = workshop.trained("untied", SINGLE, lora={"rank": 4, "target_layers": ["v_proj", "up_proj"]})
    base, merged = load_file(workshop.folder / "untied/model.safetensors"), load_file(run.weights())
    changed = {name for name, values in merged.items() if not torch.equal(values, base[name])}
    layers = [f"model.layers.{number}" for number in (0, 1)]
    assert changed == {f"{layer}.{name}.weight" for layer in layers for name in ("self_attn.v_proj", "mlp.up_proj")}
