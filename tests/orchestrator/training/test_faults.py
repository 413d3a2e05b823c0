"""Requested faults: the rules about them, how many times they fire, and the store that refuses saves."""

import json
import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.artifacts import artifact
from orchestrator.artifacts.digests import digest_bytes
from orchestrator.checkpoints.names import name_of, step_of
from orchestrator.cli import main
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.configuration.faults import FaultsConfig
from orchestrator.configuration.rules import cross_group_mistakes
from orchestrator.distributed.runtime import Runtime
from orchestrator.errors import ArtifactError, StorageError
from orchestrator.runs.events import EventLog
from orchestrator.runs.run import training_recipe
from orchestrator.storage.retry import WAITS_SECONDS
from orchestrator.storage.store import Storage
from orchestrator.training.callbacks.faults import OrderedFault
from orchestrator.training.faults import FailingStorage, FaultOrder, damaged

FOLDER = "runs/tiny"


def ordered(kind: str = "kill_rank", **fields: Any) -> FaultsConfig:
    return FaultsConfig.model_validate({"kind": kind, "at_step": 30, **fields})


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def mistakes(faults: dict[str, Any], **groups: Any) -> list[str]:
    two = {"strategy": {"name": "ddp"}, "cluster": {"num_workers": 2}}
    faults = {"kind": "kill_rank", "at_step": 30, **faults}
    return cross_group_mistakes(PretrainConfig.model_validate({**two, **groups, "faults": faults}))


@pytest.mark.parametrize("kind", ["kill_rank", "stop_rank", "flip_bit", "fail_upload"])
def test_fault_on_a_rank_that_there_is_within_the_run_breaks_no_rule(kind: str) -> None:
    assert mistakes({"kind": kind, "rank": 1}) == []


def test_rank_must_be_there_in_every_number_of_workers() -> None:
    elastic = {"cluster": {"name": "ray", "num_workers": [2, 4]}, "training": {"global_batch_size": 12}}
    assert mistakes({"rank": 1}, **elastic) == []
    (mistake,) = mistakes({"rank": 2}, **elastic)
    assert mistake.startswith("faults.rank=2: the run may have 2 workers, with rank 0 to 1; choose one of them")


def test_step_must_lie_before_the_end() -> None:
    (mistake,) = mistakes({"at_step": 100}, training={"num_steps": 100})
    assert mistake == "faults.at_step=100: must be below training.num_steps (100)"


def test_a_single_worker_may_be_killed_and_not_stopped() -> None:
    single = {"strategy": {"name": "single"}, "cluster": {"num_workers": 1}}
    assert mistakes({}, **single) == []
    (mistake,) = mistakes({"kind": "stop_rank"}, **single)
    assert mistake.startswith("faults=stop_rank: a single worker that has stopped is never detected")


@pytest.mark.parametrize("kind", ["truncate_checkpoint", "flip_bit"])
def test_a_checkpoint_is_damaged_only_where_another_is_kept(kind: str) -> None:
    (mistake,) = mistakes({"kind": kind}, checkpoint={"keep_last": 1})
    assert mistake.startswith(f"faults={kind}: the run continues from the checkpoint before the damaged one")


def test_no_fault_fires_by_default_and_none_changes_the_recipe() -> None:
    without = PretrainConfig()
    assert without.faults is None
    assert training_recipe(without, "data") == training_recipe(PretrainConfig(faults=ordered()), "data")


def test_the_step_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "+faults=kill_rank"]) == 2
    assert "error: faults.at_step: must be given, as faults.at_step=VALUE" in capsys.readouterr().err


def test_firings_are_counted_over_restarts_and_separately_for_each_fault(storage: Storage) -> None:
    order = FaultOrder(ordered(times=2), storage, FOLDER)
    assert order.num_left() == 2
    assert order.count(29)
    assert FaultOrder(ordered(times=2), storage, FOLDER).num_left() == 1
    assert FaultOrder(ordered(), storage, FOLDER).num_left() == 0
    assert FaultOrder(ordered("stop_rank"), storage, FOLDER).num_left() == 1
    assert FaultOrder(ordered(rank=1), storage, FOLDER).num_left() == 1
    assert FaultOrder(ordered(at_step=31), storage, FOLDER).num_left() == 1
    (event,) = EventLog(storage, FOLDER).read("fault_injected")
    del event["time"]
    assert event == {"kind": "fault_injected", "fault": "kill_rank", "at_step": 30, "rank": 0, "step": 29}


def test_faults_that_were_not_requested_are_not_counted(storage: Storage) -> None:
    EventLog(storage, FOLDER, frozenset({"fault"})).record({"kind": "fault", "text": "killed", "step": 29})
    assert FaultOrder(ordered(), storage, FOLDER).num_left() == 1


def test_what_cannot_be_counted_must_not_fire(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    assert not FaultOrder(ordered(), Storage(str(tmp_path)), FOLDER).count(29)


class Training:
    """The part of a training that a callback uses: a head that returns losses, and steps of two micro-batches."""

    def __init__(self, order: FaultOrder, storage: Storage, rank: int = 0) -> None:
        self.said: list[str] = []
        runtime = Runtime(rank=rank, world_size=2, emit=lambda event: self.said.append(event["text"]))
        self.callback: Any = OrderedFault(order, storage, "tiny", runtime)
        self.head = torch.nn.Identity()
        self.module = SimpleNamespace(step=0, model=SimpleNamespace(head=self.head))
        self.callback.on_fit_start(None, self.module)

    def bad_steps(self, *steps: int) -> list[int]:
        """Run `steps`, counted from 0, and return those whose loss is not finite."""
        return [step for step in steps if not all([self._is_finite(step), self._is_finite(step)])]

    def _is_finite(self, step: int) -> bool:
        self.module.step = step
        self.callback.on_train_batch_start(None, self.module, None, 0)
        loss = self.head(torch.ones(()))
        self.callback.on_before_backward(None, self.module, loss)
        self.callback.on_train_batch_end(None, self.module, None, None, 0)
        assert self.head(torch.ones(())).isfinite(), "validation is not affected"
        return bool(loss.isfinite())


def test_the_requested_number_of_steps_has_a_bad_loss_across_restarts(storage: Storage) -> None:
    order = FaultOrder(ordered("nan_loss", at_step=3, times=3), storage, FOLDER)
    assert Training(order, storage).bad_steps(0, 1, 2, 3) == [2, 3]
    assert Training(order, storage).bad_steps(2, 3, 4) == [2]
    assert Training(order, storage).bad_steps(2, 3, 4) == []
    assert len(EventLog(storage, FOLDER).read("fault_injected")) == 3


def test_rank_0_reports_the_fault_and_only_the_requested_rank_fires(storage: Storage) -> None:
    order = FaultOrder(ordered("nan_loss", at_step=1, rank=1), storage, FOLDER)
    rank_0, rank_1 = Training(order, storage, rank=0), Training(order, storage, rank=1)
    assert rank_0.said == ["faults=nan_loss: rank 1 from step 1 on, 1 left to fire"]
    assert (rank_0.bad_steps(0, 1), rank_1.bad_steps(0, 1), rank_1.said) == ([], [0], [])
    assert Training(order, storage, rank=0).said == []


def save(storage: Storage, step: int) -> None:
    files = {"rank_00000.safetensors": b"weights of rank 0", "rank_00001.safetensors": b"those of rank 1"}
    for file, data in files.items():
        storage.write_bytes(f"{name_of('tiny', step)}/{file}", data)
    entries = {file: digest_bytes(data) for file, data in files.items()}
    artifact.commit(storage, name_of("tiny", step), entries, {"kind": "checkpoint"})


@pytest.mark.parametrize("kind", ["truncate_checkpoint", "flip_bit"])
def test_newest_checkpoint_is_damaged_once_there_are_two_and_the_rank_is_killed(
    storage: Storage, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("orchestrator.training.callbacks.faults.os.kill", lambda *to: sent.append(to))
    training = Training(FaultOrder(ordered(kind, at_step=1), storage, FOLDER), storage)
    save(storage, 10)
    training.bad_steps(12, 13)
    assert sent == []
    artifact.verify(storage, name_of("tiny", 10))
    save(storage, 20)
    training.bad_steps(22, 23)
    assert sent == [(os.getpid(), signal.SIGKILL)]
    artifact.verify(storage, name_of("tiny", 10))
    with pytest.raises(ArtifactError, match="rank_00001.safetensors"):
        artifact.verify(storage, name_of("tiny", 20))


@pytest.mark.parametrize(
    ("kind", "number"),
    [("kill_rank", signal.SIGKILL), ("stop_rank", signal.SIGSTOP), ("terminate_rank", signal.SIGTERM)],
)
def test_rank_sends_itself_the_signal_of_its_fault(
    tmp_path: Path, kind: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("orchestrator.training.callbacks.faults.os.kill", lambda *to: sent.append(to))
    storage = Storage(str(tmp_path))
    Training(FaultOrder(ordered(kind), storage, FOLDER), storage).bad_steps(28, 29, 30)
    assert sent == [(os.getpid(), number)]
    (event,) = EventLog(storage, FOLDER).read("fault_injected")
    assert event["step"] == 29


def failing(storage: Storage, kind: str, **fields: Any) -> FailingStorage:
    return FailingStorage(storage.url(), FaultOrder(ordered(kind, **fields), storage, FOLDER))


def test_saves_from_the_step_on_fail_the_requested_number_of_times_also_in_another_process(storage: Storage) -> None:
    saves = failing(storage, "full_disk", times=2)
    saves.write_bytes(f"{name_of('tiny', 20)}/state.json", b"a")
    for step in (30, 40):
        with pytest.raises(StorageError, match="the disk is full; free space there"):
            pickle.loads(pickle.dumps(saves)).write_bytes(f"{name_of('tiny', step)}/state.json", b"a")
    saves.write_bytes(f"{name_of('tiny', 50)}/state.json", b"a")
    assert [event["step"] for event in EventLog(storage, FOLDER).read("fault_injected")] == [30, 40]
    assert storage.list("runs/tiny/checkpoints") == ["step_00000020", "step_00000050"]


def test_what_is_no_save_is_written_and_a_save_can_be_read_while_others_fail(storage: Storage) -> None:
    storage.write_bytes(f"{name_of('tiny', 30)}/state.json", b"whole")
    saves = failing(storage, "full_disk")
    saves.write_bytes(f"{FOLDER}/metrics.json", b"{}")
    assert saves.read_bytes(f"{name_of('tiny', 30)}/state.json") == b"whole"
    assert saves.list(FOLDER) == ["checkpoints", "metrics.json"]


def test_reset_connections_outlast_all_attempts_and_no_byte_arrives(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("orchestrator.storage.retry.time.sleep", waits.append)
    part = tmp_path / "part.safetensors"
    part.write_bytes(b"weights")
    saves, name = failing(storage, "fail_upload"), f"{name_of('tiny', 30)}/rank_00000.safetensors"
    with pytest.raises(StorageError, match=f"no answer in {len(WAITS_SECONDS) + 1} attempts"):
        saves.upload(part, name)
    assert len(waits) == len(WAITS_SECONDS)
    assert not storage.exists(name)
    saves.upload(part, name)
    assert storage.read_bytes(name) == b"weights"


def test_nothing_is_written_in_place_past_the_store_that_fails(storage: Storage) -> None:
    assert failing(storage, "full_disk").local_path("anything") is None


def test_damage_is_half_of_a_file_or_one_bit_of_it() -> None:
    data = bytes(range(8))
    assert damaged(data, "truncate_checkpoint") == data[:4]
    flipped = damaged(data, "flip_bit")
    assert [left ^ right for left, right in zip(data, flipped, strict=True)] == [0, 0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (name_of("tiny", 30), 30),
        (f"{name_of('tiny', 123456789)}/rank_00000.safetensors", 123456789),
        ("runs/tiny/checkpoints", None),
        ("runs/tiny/model/step_00000030", None),
    ],
)
def test_step_is_read_off_the_name_of_a_checkpoint_and_of_nothing_else(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_requested_fault_survives_json() -> None:
    config = PretrainConfig(faults=ordered(rank=1))
    assert PretrainConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
