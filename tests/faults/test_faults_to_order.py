"""Faults that runs bring upon themselves: fired once, survived, and without a trace in samples and weights."""

from pathlib import Path

import pytest
from broken_run import BrokenRun, Finished, command, events, finished, goes_on_from_the_last_checkpoint
from tiny_run import write_text

STEPS = ["training.num_steps=40", "training.val_interval_steps=40"]
TWO = ["strategy=ddp", "cluster.num_workers=2"]
AT_25 = ["faults.at_step=25", "faults.rank=1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def unbroken(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run that nobody breaks."""
    root = tmp_path_factory.mktemp("unbroken")
    assert ended(text, root, *TWO)[0] == 0
    return finished(root)


def ended(text: Path, root: Path, *settings: str) -> tuple[int, str]:
    """Return the exit code of a run of 40 steps, saved every ten, and what it said."""
    with BrokenRun(command(text, root, *STEPS, *settings)) as run:
        return run.end(), run.said


def fired(root: Path) -> list[tuple[str, int, int]]:
    """Return kind, rank and step, counted from 1, of each fault that was fired."""
    return [(event["fault"], event["rank"], event["step"] + 1) for event in events(root, "fault_injected")]


@pytest.mark.long
def test_rank_that_is_killed_once_is_not_killed_again_when_the_run_is_back_there(
    text: Path, tmp_path: Path, unbroken: Finished
) -> None:
    code, said = ended(text, tmp_path, *TWO, "+faults=kill_rank", *AT_25)
    assert code == 0, said
    assert said.count("faults=kill_rank: rank 1 from step 25 on, 1 left to fire") == 1
    assert fired(tmp_path) == [("kill_rank", 1, 25)]
    assert len(events(tmp_path, "fault")) == 1
    assert goes_on_from_the_last_checkpoint(tmp_path)
    assert finished(tmp_path) == unbroken


@pytest.mark.long
@pytest.mark.parametrize(("cluster", "times"), [("local", 2), pytest.param("ray", 1, marks=pytest.mark.ray)])
def test_rank_is_killed_as_often_as_ordered(
    text: Path, tmp_path: Path, unbroken: Finished, cluster: str, times: int
) -> None:
    where = [*TWO, f"cluster={cluster}"]
    code, said = ended(text, tmp_path, *where, "+faults=kill_rank", *AT_25, f"faults.times={times}")
    assert code == 0, said
    assert fired(tmp_path) == [("kill_rank", 1, 25)] * times
    assert len(events(tmp_path, "fault")) == times
    assert finished(tmp_path) == unbroken


@pytest.mark.long
def test_single_worker_that_is_killed_ends_the_run_and_the_same_command_goes_on(text: Path, tmp_path: Path) -> None:
    order = ["+faults=kill_rank", "faults.at_step=25"]
    code, said = ended(text, tmp_path, *order)
    assert code == -9, said
    code, said = ended(text, tmp_path, *order)
    assert code == 0, said
    assert fired(tmp_path) == [("kill_rank", 0, 25)]
    assert goes_on_from_the_last_checkpoint(tmp_path)


def test_bad_loss_of_one_rank_skips_one_step_and_is_no_fault(text: Path, tmp_path: Path) -> None:
    code, said = ended(text, tmp_path, *TWO, "+faults=nan_loss", *AT_25)
    assert code == 0, said
    (skip,) = events(tmp_path, "skip")
    assert (skip["step"], skip["reason"]) == (24, "the loss is not finite")
    assert fired(tmp_path) == [("nan_loss", 1, 25)]
    assert events(tmp_path, "fault") == []


@pytest.mark.long
def test_terminated_rank_stops_all_after_that_step_and_the_same_command_goes_on(
    text: Path, tmp_path: Path, unbroken: Finished
) -> None:
    order = [*TWO, "+faults=terminate_rank", *AT_25]
    code, said = ended(text, tmp_path, *order)
    assert code == 143, said
    (stop,) = events(tmp_path, "stop")
    assert stop["step"] == 25
    code, said = ended(text, tmp_path, *order)
    assert code == 0, said
    assert [event["step"] for event in events(tmp_path, "begin")] == [0, 25]
    assert fired(tmp_path) == [("terminate_rank", 1, 25)]
    assert finished(tmp_path) == unbroken


@pytest.mark.long
@pytest.mark.parametrize("kind", ["flip_bit", "truncate_checkpoint"])
def test_damaged_checkpoint_is_passed_over_for_the_one_before(
    text: Path, tmp_path: Path, unbroken: Finished, kind: str
) -> None:
    code, said = ended(text, tmp_path, *TWO, f"+faults={kind}", *AT_25)
    assert code == 0, said
    assert said.count("skipped a damaged checkpoint") == 1
    assert "is damaged between bytes" in said if kind == "flip_bit" else "bytes; the manifest says" in said
    (fault,) = fired(tmp_path)
    first, again = events(tmp_path, "begin")
    assert (fault[0], first["step"]) == (kind, 0)
    assert 0 < again["step"] < fault[2] - 10
    assert finished(tmp_path) == unbroken


@pytest.mark.long
def test_damage_waits_until_there_are_two_checkpoints(text: Path, tmp_path: Path, unbroken: Finished) -> None:
    code, said = ended(text, tmp_path, *TWO, "+faults=flip_bit", "faults.at_step=1")
    assert code == 0, said
    assert fired(tmp_path)[0][2] > 20
    assert finished(tmp_path) == unbroken


@pytest.mark.long
def test_stopped_rank_is_found_and_replaced(text: Path, tmp_path: Path, unbroken: Finished) -> None:
    code, said = ended(text, tmp_path, *TWO, "+faults=stop_rank", *AT_25, "cluster.hang_timeout_seconds=4")
    assert code == 0, said
    assert fired(tmp_path) == [("stop_rank", 1, 25)]
    (fault,) = events(tmp_path, "fault")
    assert "no step for 4 s; its stacks are in" in fault["text"]
    assert finished(tmp_path) == unbroken


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "reason"), [("full_disk", "the disk is full"), ("fail_upload", "no answer in 6 attempts")]
)
def test_failed_save_leaves_the_last_checkpoint_and_the_same_command_goes_on(
    text: Path, tmp_path: Path, unbroken: Finished, kind: str, reason: str
) -> None:
    order = [*TWO, f"+faults={kind}", *AT_25, "checkpoint.max_failed_saves=0"]
    code, said = ended(text, tmp_path, *order)
    assert code == 1, said
    assert "checkpoint not saved: worker 1: cannot write" in said
    assert reason in said
    code, said = ended(text, tmp_path, *order)
    assert code == 0, said
    assert [event["step"] for event in events(tmp_path, "begin")] == [0, 20]
    assert fired(tmp_path) == [(kind, 1, 31)]
    assert finished(tmp_path) == unbroken
