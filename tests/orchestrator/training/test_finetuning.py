"""Fine-tuning is the same under every strategy, resumes exactly, and exports the step that its validations choose."""

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from published_models import write_published
from task_run import STEPS, TaskRun, write_rows
from worker_pool import Outcome, Pools

TASKS: dict[str, dict[str, Any]] = {
    "translation": {"name": "translation"},
    "balanced": {"name": "classification", "class_weights": "balanced"},
    "bidirectional": {"name": "classification", "attention": "bidirectional"},
}
WAYS = {
    "translation": [("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2)],
    "balanced": [("ddp", 3), ("zero3", 2)],
    "bidirectional": [("zero2", 2)],
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Callable[..., TaskRun]:
    folder = tmp_path_factory.mktemp("finetuning")
    rows, number = write_rows(folder / "rows.jsonl"), itertools.count()
    write_published(folder / "untied", "untied")

    def make(task: str, strategy: str, num_workers: int = 2, **groups: Any) -> TaskRun:
        root = folder / str(next(number))
        return TaskRun(pools[num_workers], root, strategy, folder / "untied", rows, TASKS[task], **groups)

    return make


def trained(run: TaskRun) -> Outcome:
    outcome = run.train()
    assert outcome.error is None, outcome.error
    return outcome


def losses(run: TaskRun) -> dict[int, float]:
    return trained(run).losses()


@pytest.fixture(scope="module")
def expected(make_run: Callable[..., TaskRun]) -> Callable[[str], dict[int, float]]:
    return cache(lambda task: losses(make_run(task, "single", 1)))


@pytest.mark.parametrize(("task", "way"), [(task, way) for task, ways in WAYS.items() for way in ways], ids=str)
def test_every_strategy_has_the_curve_of_one_worker(
    make_run: Callable[..., TaskRun], expected: Callable[[str], dict[int, float]], task: str, way: tuple[str, int]
) -> None:
    found = losses(make_run(task, *way))
    assert list(found) == list(expected(task))
    assert found == pytest.approx(expected(task), rel=2e-5)
    assert len(set(found.values())) == STEPS


@pytest.mark.parametrize("task", ["translation", "balanced"])
def test_run_continued_under_another_strategy_has_the_same_curve(
    make_run: Callable[..., TaskRun], expected: Callable[[str], dict[int, float]], task: str, tmp_path: Path
) -> None:
    begun = make_run(task, "zero2", 2)
    trained(begun)
    root = begun.copied_to(tmp_path / "outputs", at_step=3)
    rest = losses(make_run(task, "single", 1, storage={"root": str(root)}))
    assert min(rest) == 4
    assert rest == pytest.approx({step: expected(task)[step] for step in rest}, rel=2e-5)


def test_resumed_run_has_the_same_bits(make_run: Callable[..., TaskRun], tmp_path: Path) -> None:
    whole = make_run("balanced", "zero2", 2)
    trained(whole)
    again = make_run("balanced", "zero2", 2, storage={"root": str(whole.copied_to(tmp_path / "outputs", at_step=3))})
    trained(again)
    assert (tmp_path / "outputs/runs/tiny/model/model.safetensors").read_bytes() == whole.weights().read_bytes()


CHOOSING = {
    "finetune": {"num_epochs": None, "warmup_fraction": None, "keep": "best"},
    "training": {"val_interval_steps": 1},
    "checkpoint": {"interval_steps": 1000, "keep_last": 1, "mode": "sync"},
}
TOO_FAST = {"optimizer": {"learning_rate": 1.0, "warmup_steps": 0, "schedule": "constant"}}
"""After a few steps the model gets worse."""


def scores(outcome: Outcome) -> dict[int, float]:
    return {
        event["step"]: event["metrics"]["val/loss_clm"] for event in outcome.events if event["kind"] == "validation"
    }


def test_model_of_the_best_validation_is_exported(make_run: Callable[..., TaskRun]) -> None:
    run = make_run("translation", "ddp", 2, **CHOOSING, **TOO_FAST)
    found = scores(trained(run))
    best = min(found, key=lambda step: found[step])
    assert best < STEPS
    metrics = run.metrics()
    assert metrics["progress/exported_step"] == best
    assert metrics["val/loss_clm"] == found[best]
    assert set(run.saved_steps()) == {best, STEPS}


def test_run_stops_after_validations_that_were_not_better_and_is_complete(make_run: Callable[..., TaskRun]) -> None:
    settings = {**CHOOSING, **TOO_FAST, "finetune": {**CHOOSING["finetune"], "patience": 1}}
    run = make_run("translation", "zero2", 2, **settings)
    found = scores(trained(run))
    last = max(found)
    assert last < STEPS
    assert found[last] >= found[last - 1] == min(found.values())
    assert run.metrics()["progress/stopped_early"] == 1
    assert run.metrics()["progress/exported_step"] == last - 1


def test_decision_to_stop_is_the_same_after_an_interruption(make_run: Callable[..., TaskRun], tmp_path: Path) -> None:
    settings = {**CHOOSING, **TOO_FAST, "finetune": {**CHOOSING["finetune"], "patience": 2}}
    whole = make_run("translation", "ddp", 2, **{**settings, "checkpoint": {"interval_steps": 1, "mode": "sync"}})
    found = scores(trained(whole))
    settings["storage"] = {"root": str(whole.copied_to(tmp_path / "outputs", at_step=2))}
    again = scores(trained(make_run("translation", "ddp", 2, **settings)))
    assert again == {step: found[step] for step in found if step >= 2}
