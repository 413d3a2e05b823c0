"""A run goes on with any number of workers, odd ones too, and in every precision that the CPU computes."""

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from float16 import as_on_gpu
from jobs import begun_job
from planted_faults import Planted, PlantedLoss
from tiny_run import go_back, write_text
from worker_pool import Outcome, Pools

from orchestrator.artifacts import artifact
from orchestrator.checkpoints import parts
from orchestrator.checkpoints.background_writer import BackgroundWriter
from orchestrator.checkpoints.names import committed_steps, name_of
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.distributed.layout import Group
from orchestrator.distributed.training_state import MASTER, MOMENTS
from orchestrator.errors import StorageError
from orchestrator.storage.store import Storage

STEPS = 8
OVERFLOWS = PlantedLoss((1, 2), factor=1e5)
"""Of a float16 gradient, so that the loss scale is another one than at the beginning when the first half is saved."""
Way = tuple[str, int]
ZERO = ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
ALL: list[Way] = [("single", 1), *itertools.product(("ddp", "zero1", "zero2", "zero3"), (1, 2, 3, 4))]
FEW: list[tuple[Way, Way]] = [
    (("zero3", 3), ("zero1", 2)),
    (("single", 1), ("zero3", 3)),
]


class Workshop:
    """Trains the same tiny model on the same text in every way; what was trained once is kept."""

    def __init__(self, folder: Path, pools: Pools) -> None:
        self._folder, self._pools = folder, pools
        self._text = write_text(folder / "text.txt")
        self._done: dict[tuple[Way, str], tuple[Outcome, Path]] = {}

    def root(self, way: Way, precision: str, then: Way | None = None) -> Path:
        """Return the storage root of what was trained in a way, or in another one after the first half."""
        ways = [way] if then is None else [way, then]
        return self._folder / "-to-".join([f"{precision}-{name}-{workers}" for name, workers in ways])

    def trained(self, way: Way, precision: str) -> tuple[Outcome, Path]:
        if (way, precision) not in self._done:
            root = self.root(way, precision)
            self._done[way, precision] = self.train(root, way, precision), root
        return self._done[way, precision]

    def continued(self, saved: Way, way: Way, precision: str) -> Outcome:
        """Train the second half, from the checkpoint that another way has saved in the middle."""
        root = self.root(saved, precision, way)
        shutil.copytree(self.trained(saved, precision)[1], root)
        go_back(root / "runs/tiny", STEPS // 2)
        return self.train(root, way, precision)

    def last_state(self, way: Way, precision: str, then: Way | None = None) -> list[bytes]:
        """Return the weights and moments of each rank at the end of a training, or of its second half."""
        checkpoint = self.root(way, precision, then) / "runs" / "tiny" / "checkpoints" / f"step_{STEPS:08d}"
        return [file.read_bytes() for file in sorted(checkpoint.glob("*.safetensors"))]

    def train(self, root: Path, way: Way, precision: str, around: Any = None, **checkpoint: Any) -> Outcome:
        config = PretrainConfig.model_validate(
            {
                "run": {"name": "tiny"},
                "storage": {"root": str(root)},
                "data": {"source": "files", "path": str(self._text), "split": "position", "val_fraction": 0.0},
                "tokenizer": {"kind": "byte"},
                # no size that three or four divide, so parameters are split over ranks and padded
                "model": {"num_layers": 1, "num_heads": 2, "hidden_dim": 26, "max_positions": 17},
                "optimizer": {"warmup_steps": 2},
                "training": {
                    "num_steps": STEPS,
                    "sequence_length": 17,
                    "global_batch_size": 12,
                    "log_interval_steps": 1,
                    "precision": precision,
                },
                "strategy": {"name": way[0]},
                "cluster": {"num_workers": way[1]},
                # no writer process has to start; a layout is the same in both modes
                "checkpoint": {"mode": "sync", "interval_steps": STEPS // 2, "keep_last": 5, **checkpoint},
                "tracking": {"mode": "disabled"},
            }
        )
        around = around or (Planted((as_on_gpu, OVERFLOWS)) if precision.startswith("16") else Planted(()))
        return self._pools[way[1]].train(begun_job(config), around)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("resized"), pools)


def last_loss_scale(workshop: Workshop, saved: Way, way: Way | None = None) -> dict[str, float]:
    """Return the loss scale that a training ended with, or its second half in another way."""
    run = workshop.root(saved, "16", way) / "runs" / "tiny"
    return json.loads((run / "checkpoints" / f"step_{STEPS:08d}" / "state.json").read_text())["loss_scale"]


def largest_difference(workshop: Workshop, saved: Way, way: Way, precision: str) -> float:
    reference = workshop.trained(saved, precision)[0]
    outcome = workshop.continued(saved, way, precision)
    assert reference.error is None, reference.error
    assert outcome.error is None, outcome.error
    expected = reference.losses()
    assert sorted(outcome.losses()) == list(range(STEPS // 2 + 1, STEPS + 1))
    return max(abs(loss - expected[step]) / expected[step] for step, loss in outcome.losses().items())


@pytest.mark.parametrize(("saved", "way"), FEW, ids=str)
def test_resized_run_goes_on_with_the_same_losses(workshop: Workshop, saved: Way, way: Way) -> None:
    assert largest_difference(workshop, saved, way, "32") <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize(("saved", "way"), list(itertools.product(ALL, repeat=2)), ids=str)
def test_any_number_of_workers_goes_on_from_any_other(workshop: Workshop, saved: Way, way: Way) -> None:
    assert largest_difference(workshop, saved, way, "32") <= 1e-5


@pytest.mark.parametrize("way", [(name, 2) for name in ("ddp", *ZERO)], ids=str)
def test_layout_of_a_checkpoint_says_what_each_worker_has_stored(workshop: Workshop, way: Way) -> None:
    storage = Storage(str(workshop.trained(way, "bf16")[1]))
    name = name_of("tiny", STEPS)
    manifest = artifact.read_manifest(storage, name)
    sizes = {parameter: math.prod(shape) for parameter, shape in manifest["shapes"].items()}
    indexes = sorted(file for file in manifest["files"] if file.startswith("parts-"))
    assert len(indexes) == way[1]
    for rank, file in enumerate(indexes):
        index = json.loads(storage.read_bytes(f"{name}/{file}"))["ranges"]
        expected = {
            (parameter, start, stop)
            for group in manifest["layout"]
            for parameter, start, stop in Group(**group).held_by(rank, sizes)
        }
        for kind in (MASTER, *MOMENTS):
            assert {(parameter, *kinds[kind][0][:2]) for parameter, kinds in index.items()} == expected


@dataclass(frozen=True)
class NotedReads:
    """Notes which bytes of a checkpoint each worker reads, in small chunks, so that small shares can be told apart."""

    folder: Path

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        read_into, noted = Storage.read_into, []

        def noting(storage: Storage, name: str, start: int, buffer: memoryview) -> None:
            if f"step_{STEPS // 2:08d}" in name:  # at the end rank 0 reads the newest one for the export
                noted.append(len(buffer))
            read_into(storage, name, start, buffer)

        with patch.object(parts, "CHUNK_BYTES", 64), patch.object(Storage, "read_into", noting):
            yield
        (self.folder / f"{rank}.json").write_text(json.dumps(noted))


@pytest.mark.parametrize("way", [("ddp", 2), ("zero1", 2), pytest.param(("zero3", 2), marks=pytest.mark.long)], ids=str)
def test_workers_read_a_checkpoint_once_between_them(workshop: Workshop, tmp_path: Path, way: Way) -> None:
    root, noting = tmp_path / "root", NotedReads(tmp_path)
    assert workshop.train(root, way, "32", noting).error is None
    go_back(root / "runs/tiny", STEPS // 2)
    stored = [path.stat().st_size for path in root.glob(f"runs/tiny/checkpoints/step_{STEPS // 2:08d}/*.safetensors")]
    assert workshop.train(root, way, "32", noting).error is None
    read = [sum(json.loads((tmp_path / f"{rank}.json").read_text())) for rank in range(2)]
    headers = 200 * 3 * 40  # which are not read
    assert sum(stored) - headers < sum(read) <= sum(stored) + 2 * 3 * 64
    assert max(read) < 0.6 * sum(stored)


@pytest.mark.parametrize("way", [("single", 1), *((name, 2) for name in ("ddp", *ZERO))], ids=str)
def test_bfloat16_goes_on_bit_for_bit(workshop: Workshop, way: Way) -> None:
    assert largest_difference(workshop, way, way, "bf16") == 0
    assert workshop.last_state(way, "bf16", way) == workshop.last_state(way, "bf16")


@pytest.mark.parametrize(
    ("way", "precision"), [(("zero1", 2), "bf16-true"), (("zero2", 2), "16-true"), (("zero3", 2), "bf16-true")], ids=str
)
def test_half_precision_weights_go_on_bit_for_bit(workshop: Workshop, way: Way, precision: str) -> None:
    assert largest_difference(workshop, way, way, precision) == 0
    assert workshop.last_state(way, precision, way) == workshop.last_state(way, precision)


@pytest.mark.parametrize(
    ("saved", "way"),
    [(("zero3", 3), ("zero2", 2)), (("zero1", 2), ("ddp", 3)), (("ddp", 2), ("zero3_offload", 2))],
    ids=str,
)
def test_bfloat16_goes_on_under_another_strategy(workshop: Workshop, saved: Way, way: Way) -> None:
    # sums in another order, rounded to 8 bits each: no tighter bound holds
    assert largest_difference(workshop, saved, way, "bf16") <= 1e-3


@pytest.mark.parametrize("way", [("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2)], ids=str)
def test_float16_goes_on_bit_for_bit_with_its_loss_scale(workshop: Workshop, way: Way) -> None:
    assert largest_difference(workshop, way, way, "16") == 0
    assert workshop.last_state(way, "16", way) == workshop.last_state(way, "16")
    assert last_loss_scale(workshop, way, way) == last_loss_scale(workshop, way)
    # torch's scaler halves it at each overflow, DeepSpeed's from the second one on
    assert last_loss_scale(workshop, way, way)["scale"] == (2**14 if way[0] == "ddp" else 2**15)


@pytest.mark.parametrize(("saved", "way"), [(("zero3", 3), ("ddp", 2)), (("single", 1), ("zero2", 3))], ids=str)
def test_float16_goes_on_under_another_strategy(workshop: Workshop, saved: Way, way: Way) -> None:
    assert largest_difference(workshop, saved, way, "16") <= 1e-3
    assert last_loss_scale(workshop, saved, way)["scale"] == last_loss_scale(workshop, saved)["scale"]


class CannotStore:
    """Makes the first `count` saves of rank 1 fail before they are stored."""

    def __init__(self, count: int) -> None:
        self._count = count

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        start, stored = BackgroundWriter.start, BackgroundWriter.stored
        turns = itertools.count()
        broken = [False]

        def never_start(writer: BackgroundWriter, *args: Any) -> None:
            broken[0] = rank == 1 and next(turns) < self._count
            if not broken[0]:
                start(writer, *args)

        def never_stored(writer: BackgroundWriter) -> str | None:
            return StorageError("no place") if broken[0] else stored(writer)

        with patch.multiple(BackgroundWriter, start=never_start, stored=never_stored):
            yield


@pytest.mark.parametrize(("num_broken", "max_failed", "kept"), [(1, 1, [4, 6, 8]), (2, 1, []), (1, 0, [])])
def test_save_that_one_of_two_workers_cannot_store_is_committed_by_none(
    workshop: Workshop, tmp_path: Path, num_broken: int, max_failed: int, kept: list[int]
) -> None:
    settings = {"mode": "async", "interval_steps": 2, "max_failed_saves": max_failed}
    outcome = workshop.train(tmp_path, ("zero2", 2), "32", around=CannotStore(num_broken), **settings)
    failed = [event for event in outcome.events if event["kind"] == "save_failed"]
    assert [event["step"] for event in failed] == [2, 4][:num_broken]
    assert all("worker 1: no place" in event["text"] for event in failed)
    assert committed_steps(Storage(str(tmp_path)), "tiny") == kept
    assert (outcome.error is None) == bool(kept)
    assert kept or "StorageError: checkpoint not saved: worker 1: no place" in (outcome.error or "")
