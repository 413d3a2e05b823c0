"""What a stage reserves, and what it is told of its inputs."""

from pathlib import Path
from typing import Any

import pytest
from pipelines import PlainComposer

from modules.config import Config, Input
from orchestrator.configuration.commands import EvaluateConfig, PrepareConfig, PretrainConfig
from orchestrator.configuration.pipeline import RunPipelineConfig
from orchestrator.pipeline import places
from orchestrator.pipeline.admission import Ledger, Resources, Share, need_of, num_threads
from orchestrator.pipeline.graph import checked_stages
from orchestrator.storage.store import Storage


def training(**cluster: Any) -> PretrainConfig:
    return PretrainConfig.model_validate({"cluster": cluster})


@pytest.mark.parametrize(
    ("cluster", "gpus", "need"),
    [
        ({"num_workers": 2, "cpus_per_worker": 3}, 0, Resources(6, 0)),
        ({"num_workers": 2}, 2, Resources(2, 2)),
        ({"num_workers": 2}, 1, Resources(2, 0)),
        ({"num_workers": 2, "gpus_per_worker": 1}, 1, Resources(2, 2)),
        ({"num_workers": 2, "gpus_per_worker": 0}, 8, Resources(2, 0)),
    ],
)
def test_a_training_needs_what_its_workers_need(cluster: dict[str, Any], gpus: int, need: Resources) -> None:
    assert need_of(training(**cluster), 2, Resources(8, gpus)) == need


def test_what_does_not_train_is_one_process() -> None:
    evaluation = EvaluateConfig.model_validate({"model": {"path": "x"}})
    assert need_of(evaluation, 1, Resources(8, 0)) == Resources(1, 0)
    assert need_of(evaluation, 1, Resources(8, 8)) == Resources(1, 1), "by hand it takes a GPU, too"
    assert need_of(PrepareConfig(), 1, Resources(8, 8)) == Resources(1, 0)


def test_an_elastic_training_gets_a_fixed_share_only_while_others_run() -> None:
    elastic = training(name="ray", num_workers=(1, 4))
    ledger = Ledger(Resources(6))
    alone = ledger.reserve("alone", elastic, is_alone=True)
    assert alone is not None
    assert (alone.num_workers, alone.is_fixed) == (4, False)
    beside = ledger.reserve("beside", elastic, is_alone=False)
    assert beside is not None
    assert (beside.num_workers, beside.is_fixed) == (2, True), "of 3 workers the batch cannot be shared out"
    assert ledger.reserve("third", elastic, is_alone=False) is None


class Shared:
    """What another driver may take between a look at what is left and the reservation."""

    def __init__(self, left: float, takes: bool) -> None:
        self._left, self._takes = left, takes
        self.given_back: list[str] = []

    def left(self) -> tuple[float, float]:
        return self._left, 0.0

    def take(self, what: str, cpus: float, gpus: float) -> bool:
        return self._takes

    def give_back(self, what: str) -> None:
        self.given_back.append(what)


def test_what_another_driver_was_faster_to_take_is_not_reserved() -> None:
    assert Ledger(Resources(8), Shared(4, takes=False)).reserve("a", training(), is_alone=True) is None
    shared = Shared(4, takes=True)
    ledger = Ledger(Resources(8), shared)
    assert ledger.reserve("a", training(num_workers=4), is_alone=True) is not None
    assert ledger.reserve("b", training(num_workers=8), is_alone=True) is None
    ledger.release("a")
    assert shared.given_back == ["a"]


def test_the_cores_are_shared_among_stages_and_their_workers() -> None:
    assert num_threads(Share(Resources(2), num_workers=2), training(num_workers=2), Resources(8), 2) == 2
    assert num_threads(Share(Resources(4)), training(cpus_per_worker=4), Resources(4), 4) == 4
    assert num_threads(Share(Resources(1)), training(), Resources(2), 8) == 1


def test_a_list_of_stages_is_given_as_their_folders_or_their_results(tmp_path: Path) -> None:
    class Report(Config):
        stages: Input[tuple[str, ...]] = ()

    folders, commands = {"a": "runs/p/a-1", "b": "runs/p/b-2"}, {"a": "predict", "b": "predict"}
    given = places.input_override(Storage(str(tmp_path)), Report, "stages", ("a", "b"), folders, commands)
    assert given == 'stages=["runs/p/a-1","runs/p/b-2"]'
    given = places.input_override(Storage(str(tmp_path)), PretrainConfig, "data.path", ("a",), folders, commands)
    assert given == f'data.path=["{tmp_path}/runs/p/a-1/predictions.jsonl"]'


def test_rows_that_a_stage_has_written_can_be_the_text_of_another() -> None:
    stages = {
        "answers": {
            "command": "predict",
            "overrides": ["model.path=x", "data.source=stdlib"],
        },
        "learns": {"command": "pretrain", "overrides": ["data.source=files"], "inputs": {"data.path": ["answers"]}},
    }
    config = RunPipelineConfig.model_validate({"pipeline": {"name": "p", "stages": stages}})
    found = checked_stages(config, PlainComposer())["learns"].config
    assert isinstance(found, PretrainConfig)
    assert found.data.path[0].endswith("/runs/p/answers-00000000/predictions.jsonl")


def test_an_adapter_or_a_run_is_named_as_its_setting_wants_it(tmp_path: Path) -> None:
    storage, folders = Storage(str(tmp_path)), {"a": "runs/p/a-1"}
    kind = PlainComposer().kind
    place = places.input_override(storage, kind("evaluate"), "model.adapter", "a", folders, {"a": "finetune"})
    assert place == f"model.adapter={tmp_path}/runs/p/a-1/adapter"
    place = places.input_override(storage, kind("export"), "run.name", "a", folders, {"a": "finetune"})
    assert place == "run.name=p/a-1"
