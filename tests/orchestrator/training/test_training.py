"""The same numbers whatever the strategy, and a curve that survives being stopped, moved and resized."""

import itertools
import random
import shutil

import pytest
from jobs import begun_job
from tiny_run import go_back

from orchestrator.artifacts import artifact
from orchestrator.commands.export import run as export
from orchestrator.configuration.commands import ExportConfig, PretrainConfig
from orchestrator.storage.store import Storage

STEPS = 20
SINGLE = ("single", 1)
SHARDED = [(name, world_size) for name in ("ddp", "zero1", "zero2", "zero3") for world_size in (1, 2)]
MIXED = {"phases": [{"weights": {"clm": 1.0}, "steps": 8}, {"weights": {"clm": 0.5, "mlm": 0.5}, "steps": 12}]}
FROM_EACH_TO_EACH = [
    tuple((name, 1 if name == "single" else 1 + number % 2) for name, number in ((saved, turn), (way, turn + 1)))
    for turn, (saved, way) in enumerate(itertools.product(("single", "ddp", "zero1", "zero2", "zero3"), repeat=2))
]
"""Each strategy after each, and on one worker after two or two after one; `make test-faults` has all sizes up to 4."""
OBJECTIVES = {
    "clm": {"phases": [{"weights": {"clm": 1.0}, "fraction": 1.0}]},
    "mlm": {"phases": [{"weights": {"mlm": 1.0}, "fraction": 1.0}]},
    "mixed": MIXED,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, pools):
    return Workshop(tmp_path_factory.mktemp("training"), pools)


class Workshop:
    """Trains the same tiny model on the same text in every way; each whole training runs once."""

    def __init__(self, folder, pools):
        self.folder, self.pools = folder, pools
        text = "the quick brown fox jumps over a lazy dog and then sleeps"
        words = random.Random(0).choices(text.split(" "), k=6000)
        (folder / "text.txt").write_text(" ".join(words))
        self._done = {}

    def trained(self, way, objective="clm"):
        """Return outcome and storage of a whole training."""
        key = (way, objective)
        if key not in self._done:
            root = self.folder / f"{objective}-{way[0]}-{way[1]}"
            self._done[key] = self.train(root, way, objective), Storage(str(root))
        return self._done[key]

    def continued(self, saved, way, objective="clm"):
        """Return outcome and storage of the second half, trained from the checkpoint that another way saved at ten."""
        root = self.folder / f"from-{saved[0]}-{saved[1]}-to-{way[0]}-{way[1]}-{objective}"
        shutil.copytree(self.trained(saved, objective)[1].local_path(), root)
        go_back(root / "runs/tiny", STEPS // 2)
        return self.train(root, way, objective), Storage(str(root))

    def train(self, root, way, objective, **training):
        name, world_size = way
        config = PretrainConfig.model_validate(
            {
                "run": {"name": "tiny"},
                "storage": {"root": str(root)},
                "data": {
                    "source": "files",
                    "path": str(self.folder / "text.txt"),
                    "split": "position",
                    "val_fraction": 0.1,
                },
                "tokenizer": {"kind": "byte"},
                "model": {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "max_positions": 32},
                "objective": OBJECTIVES[objective],
                "optimizer": {"warmup_steps": 4},
                "training": {
                    "num_steps": STEPS,
                    "sequence_length": 32,
                    "global_batch_size": 8,
                    "micro_batch_size": 2,
                    "log_interval_steps": 1,
                    "val_interval_steps": 10,
                    "val_batches": 2,
                    **training,
                },
                "strategy": {"name": name},
                "cluster": {"num_workers": world_size},
                # no writer process has to start; `async` saves have tests of their own
                "checkpoint": {"mode": "sync", "interval_steps": 10, "keep_last": 5},
                "tracking": {"mode": "disabled"},
            }
        )
        outcome = self.pools[world_size].train(begun_job(config))
        assert outcome.error is None, outcome.error
        return outcome


def differences(outcome, reference, name="train/loss"):
    """Return the relative difference of each step's loss."""
    expected = reference.losses(name)
    return {step: abs(loss - expected[step]) / expected[step] for step, loss in outcome.losses(name).items()}


@pytest.mark.parametrize("objective", ["clm", "mlm", "mixed"])
@pytest.mark.parametrize("way", [way for way in SHARDED if way[1] == 2], ids=str)
def test_every_strategy_gives_the_losses_of_one_process(workshop, way, objective):
    reference, _ = workshop.trained(SINGLE, objective)
    outcome, _ = workshop.trained(way, objective)
    difference = differences(outcome, reference)
    assert len(difference) == STEPS
    assert difference[1] <= 1e-5
    assert max(difference.values()) <= 1e-4


@pytest.mark.parametrize("way", SHARDED, ids=str)
def test_every_strategy_measures_the_same_gradient_norm(workshop, way):
    reference, _ = workshop.trained(SINGLE)
    outcome, _ = workshop.trained(way)
    assert max(differences(outcome, reference, "optimizer/grad_norm").values()) <= 1e-4


@pytest.mark.parametrize(("saved", "way"), FROM_EACH_TO_EACH, ids=str)
def test_a_run_continues_under_any_strategy_and_world_size(workshop, saved, way):
    reference, _ = workshop.trained(saved)
    outcome, _ = workshop.continued(saved, way)
    difference = differences(outcome, reference)
    assert sorted(difference) == list(range(STEPS // 2 + 1, STEPS + 1))
    assert max(difference.values()) <= 1e-5


@pytest.mark.parametrize("way", [SINGLE, *SHARDED], ids=str)
def test_a_continued_run_ends_in_the_same_weights_bit_for_bit(workshop, way):
    _, whole = workshop.trained(way, "mixed")
    _, resumed = workshop.continued(way, way, "mixed")
    name = "runs/tiny/model/model.safetensors"
    assert resumed.read_bytes(name) == whole.read_bytes(name)


def test_an_export_of_a_sharded_checkpoint_is_the_model_that_the_run_left(workshop, tmp_path):
    _, storage = workshop.trained(("zero3", 2))
    values = {"run": {"name": "tiny"}, "storage": {"root": storage.url()}}
    export(ExportConfig.model_validate({**values, "to": str(tmp_path / "last")}))
    export(ExportConfig.model_validate({**values, "to": str(tmp_path / "half"), "step": STEPS // 2}))
    last, half = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("last", "half"))
    assert last == storage.read_bytes("runs/tiny/model/model.safetensors") != half


def test_validation_figures_do_not_depend_on_the_strategy(workshop):
    expected, _ = workshop.trained(SINGLE, "mixed")
    outcome, _ = workshop.trained(("zero3", 2), "mixed")
    assert _validations(outcome).keys() == {8, 10, 20}
    for step, metrics in _validations(expected).items():
        assert _validations(outcome)[step] == pytest.approx(metrics, rel=1e-4)


def _validations(outcome):
    return {event["step"]: event["metrics"] for event in outcome.events if event["kind"] == "validation"}


@pytest.mark.parametrize("way", [SINGLE, ("ddp", 2)], ids=str)
def test_a_newest_checkpoint_that_one_worker_finds_damaged_is_skipped_by_all(workshop, tmp_path, way):
    root, last = tmp_path / "root", way[1] - 1
    reference, storage = workshop.trained(way)
    shutil.copytree(storage.local_path(), root)
    go_back(root / "runs/tiny", STEPS)
    (shard,) = root.glob(f"runs/tiny/checkpoints/step_{STEPS:08d}/rank_{last:05d}-*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    outcome = workshop.train(root, way, "clm")
    assert differences(outcome, reference).keys() == set(range(11, STEPS + 1))
    assert artifact.is_committed(Storage(str(root)), "runs/tiny/model")
