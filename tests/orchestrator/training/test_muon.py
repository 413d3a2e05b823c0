"""Muon under every strategy: the same curve, skips that leave its momentum, and checkpoints that go on anywhere."""

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from planted_faults import PlantedLoss
from pool_run import PoolRun
from tiny_run import write_text
from worker_pool import Outcome, Pools

STEPS, LONG = 10, 200
BAD = (0, 4)
"""Steps whose loss is no number, the first one among them: there is no momentum yet."""
NUM_LAYERS, MATRICES = 2, 4
MUON = {"name": "muon", "learning_rate": 0.003, "matrix_learning_rate": 0.01, "gradient_clip_norm": 0.5}
Way = tuple[str, int]
SINGLE: Way = ("single", 1)
SHARDED: list[Way] = [("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("zero2_offload", 2)]
LATER = [("zero2", 2), ("zero2_offload", 2)]
"""Left to `make test-faults` where they differ from ZeRO-1 in nothing that a test can see."""
WAYS = [pytest.param(way, marks=pytest.mark.long) if way in LATER else way for way in (SINGLE, *SHARDED)]
RESIZED = [
    (SINGLE, ("ddp", 2)),
    (("zero1", 2), SINGLE),
    (("ddp", 2), ("zero3", 2)),
    *(pytest.param(*each, marks=pytest.mark.long) for each in itertools.permutations([SINGLE, *SHARDED], 2)),
]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Counted:
    """Writes how many matrices each worker has orthogonalised in all steps, in several rounds."""

    folder: Path

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        from modules import muon
        from orchestrator.distributed import sharded_matrices

        optimizers: list[muon.Muon] = []
        original = muon.Muon.__init__

        def seen(optimizer: muon.Muon, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            optimizers.append(optimizer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(muon.Muon, "__init__", seen)
            patch.setattr(sharded_matrices, "ROUND_ELEMENTS", 2**12)
            yield
        counts = [optimizer.num_orthogonalized for optimizer in optimizers]
        (self.folder / f"counts-{rank}.json").write_text(json.dumps(counts), encoding="utf-8")

    def read(self) -> list[int]:
        """Return the counts of each worker."""
        files = sorted(self.folder.glob("counts-*.json"))
        return [sum(json.loads(file.read_text(encoding="utf-8"))) for file in files]


class Workshop:
    """Trains the same tiny model in every way, with bad steps; each whole training runs once."""

    def __init__(self, folder: Path, pools: Pools) -> None:
        self.folder, self._pools = folder, pools
        self._text = write_text(folder / "text.txt")
        self._done: dict[Way, tuple[PoolRun, Outcome]] = {}

    def run(self, root: Path, way: Way, num_steps: int = STEPS) -> PoolRun:
        root.mkdir(exist_ok=True)
        return PoolRun(
            self._pools[way[1]],
            self._text,
            root,
            way[0],
            # no writer process has to start
            checkpoint={"mode": "sync", "interval_steps": 1 if num_steps == STEPS else num_steps},
            training={"num_steps": num_steps},
            optimizer=MUON,
            model={"num_layers": NUM_LAYERS, "num_heads": 2, "hidden_dim": 32, "max_positions": 32},
        )

    def trained(self, way: Way) -> tuple[PoolRun, Outcome]:
        """Return a whole training and its outcome."""
        if way not in self._done:
            root = self.folder / f"{way[0]}-{way[1]}"
            run = self.run(root, way)
            self._done[way] = run, finished(run, Counted(root), PlantedLoss(BAD, factor=math.nan, rank=way[1] - 1))
        return self._done[way]

    def continued(self, saved: Way, way: Way) -> tuple[PoolRun, Outcome]:
        """Return the second half, trained from the checkpoint that another way has saved."""
        root = self.trained(saved)[0].copied_to(self.folder / f"{saved}-{way}", at_step=STEPS // 2)
        run = self.run(root, way)
        return run, finished(run)


def finished(run: PoolRun, *planted: Any) -> Outcome:
    outcome = run.train(*planted)
    assert outcome.error is None, outcome.error
    return outcome


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("muon"), pools)


def differences(outcome: Outcome, reference: Outcome, name: str = "train/loss") -> list[float]:
    """Return the relative difference of the figure of each step that is not bad."""
    expected = reference.losses(name)
    found = {step: value for step, value in outcome.losses(name).items() if math.isfinite(value)}
    return [abs(value - expected[step]) / expected[step] for step, value in found.items()]


@pytest.mark.parametrize("way", WAYS[1:], ids=str)
def test_losses_and_gradient_norms_are_those_of_one_process(workshop: Workshop, way: Way) -> None:
    _, reference = workshop.trained(SINGLE)
    _, outcome = workshop.trained(way)
    for name in ("train/loss", "optimizer/grad_norm"):
        found = differences(outcome, reference, name)
        assert len(found) >= STEPS - len(BAD)
        assert max(found) <= 1e-4


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_skipped_step_leaves_weights_and_momentum_bit_for_bit(workshop: Workshop, way: Way) -> None:
    run, outcome = workshop.trained(way)
    assert [event["step"] for event in outcome.events if event["kind"] == "skip"] == [*BAD]
    assert run.state(BAD[1]) == run.state(BAD[1] + 1) != run.state(BAD[1] + 2)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_good_step_orthogonalises_every_matrix_once(workshop: Workshop, way: Way) -> None:
    workshop.trained(way)
    counts = Counted(workshop.folder / f"{way[0]}-{way[1]}").read()
    expected = (STEPS - len(BAD)) * NUM_LAYERS * MATRICES
    # under DDP every worker has all gradients; ZeRO shares the work
    assert sum(counts) == expected * (2 if way[0] == "ddp" else 1)
    assert min(counts) > 0


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_continued_run_ends_in_the_same_weights_bit_for_bit(workshop: Workshop, way: Way) -> None:
    run, _ = workshop.trained(way)
    continued, _ = workshop.continued(way, way)
    assert continued.weights().read_bytes() == run.weights().read_bytes()
    assert continued.state(STEPS) == run.state(STEPS)


@pytest.mark.parametrize(("saved", "way"), RESIZED, ids=str)
def test_a_run_goes_on_under_another_strategy_and_world_size(workshop: Workshop, saved: Way, way: Way) -> None:
    _, reference = workshop.trained(SINGLE)
    _, outcome = workshop.continued(saved, way)
    found = differences(outcome, reference)
    assert len(found) == STEPS - STEPS // 2
    assert max(found) <= 1e-4


@pytest.mark.long
@pytest.mark.parametrize("way", SHARDED, ids=str)
def test_the_curve_of_200_steps_is_that_of_one_process(workshop: Workshop, way: Way) -> None:
    reference = finished(workshop.run(workshop.folder / "long", SINGLE, LONG))
    outcome = finished(workshop.run(workshop.folder / f"long-{way[0]}", way, LONG))
    found = differences(outcome, reference)
    assert len(found) == LONG
    assert max(found) <= 1e-3
