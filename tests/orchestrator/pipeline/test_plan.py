"""Whether a stage is done, and why it is not, is read from what is stored, and nothing is written for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from pipelines import PlainComposer, SmallPipeline

from orchestrator.artifacts import artifact
from orchestrator.configuration.pipeline import RunPipelineConfig
from orchestrator.errors import ConfigError
from orchestrator.pipeline.graph import checked_stages, with_needed
from orchestrator.pipeline.plan import recipes_of
from orchestrator.storage.store import Storage


@pytest.fixture
def small(tmp_path: Path) -> SmallPipeline:
    return SmallPipeline(tmp_path)


def told(stages: dict[str, Any], **given: Any) -> str:
    """Return what is told about the mistakes in a pipeline."""
    config = RunPipelineConfig.model_validate({"pipeline": {"name": "p", "stages": stages}, **given})
    with pytest.raises(ConfigError) as caught:
        checked_stages(config, PlainComposer())
    return str(caught.value)


PRETRAIN = {"command": "pretrain"}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": {**PRETRAIN, "inputs": {"model.path": "bas"}}, "base": PRETRAIN}, "did you mean base?"),
        ({"a": {**PRETRAIN, "after": ["nowhere"]}}, "pipeline.stages.a.after=nowhere: no such stage; there are a"),
        (
            {"a": {**PRETRAIN, "inputs": {"model.path": "b"}}, "b": {**PRETRAIN, "after": ["a"]}},
            "these stages need each other in a circle",
        ),
        ({"a": {**PRETRAIN, "after": ["a"]}}, "pipeline.stages: a -> a: these stages need each other in a circle"),
        ({"a": {"command": "pretain"}}, "pipeline.stages.a: pretain: no such command"),
        ({"a": {"command": "doctor"}}, "command=doctor: makes nothing that is kept"),
        ({"a": {"command": "run"}}, "command=run: makes nothing that is kept"),
        ({"a": {**PRETRAIN, "inputs": {"model.pth": "b"}}, "b": PRETRAIN}, "did you mean model.path?"),
        ({"a": {**PRETRAIN, "inputs": {"training.num_steps": "b"}}, "b": PRETRAIN}, "is no input of its command"),
        ({"a": {**PRETRAIN, "inputs": {"model.path": ["b"]}}, "b": PRETRAIN}, "takes one stage, not a list"),
        ({"a": {**PRETRAIN, "overrides": ["storage.root=x"]}}, "storage.root: the pipeline sets it"),
        ({"a": {**PRETRAIN, "overrides": ["++run.name=x"]}}, "run.name: the pipeline sets it"),
        ({"a": {**PRETRAIN, "overrides": ["training.num_steps=-1"]}}, "a: training.num_steps=-1: must be above 0"),
    ],
)
def test_a_mistake_in_the_graph_or_in_a_stage_is_told(stages: dict[str, Any], message: str) -> None:
    assert message in told(stages)


def test_all_mistakes_of_all_stages_are_told_at_once_each_with_its_stage() -> None:
    stages = {
        "a": {**PRETRAIN, "overrides": ["training.num_steps=-1", "optimizer.learning_rate=-1"]},
        "b": {"command": "evaluate", "inputs": {"model.path": "c"}},
        "d": {"command": "evaluate"},
    }
    lines = told(stages, force="e").splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "pipeline.stages.b.inputs.model.path=c",
        "force=e",
        "pipeline.stages.a",
        "pipeline.stages.a",
        "pipeline.stages.d",
    ]


def test_a_text_that_is_not_there_is_told_with_its_stage(small: SmallPipeline) -> None:
    (small.folder / "left.txt").unlink()
    with pytest.raises(ConfigError, match=r"pipeline\.stages\.left: .*left\.txt: matches no file"):
        small.planner()
    assert not (small.folder / "out").exists()


def test_a_new_pipeline_would_run_and_nothing_is_written(small: SmallPipeline) -> None:
    assert small.plan() == dict.fromkeys(("base", "left", "right", "both"), ("run", ("there is none yet",)))
    assert not (small.folder / "out").exists()


def test_after_a_run_all_is_done_whatever_only_says_where_and_how(small: SmallPipeline) -> None:
    small.run()
    assert {state for state, _ in small.plan().values()} == {"done"}
    config = small.config()
    stages = {
        name: stage.model_copy(update={"overrides": (*stage.overrides, "training.log_interval_steps=3")})
        for name, stage in config.pipeline.stages.items()
        if name != "both"
    }
    faster = config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"stages": stages})})
    old, new = small.planner().recipes, recipes_of(checked_stages(faster, PlainComposer()), small.storage)
    assert {name: new[name].fingerprint for name in new} == {name: old[name].fingerprint for name in new}


def test_a_changed_setting_is_named_with_what_it_was_and_is(small: SmallPipeline) -> None:
    small.run()
    small.seeds["left"] = 7
    assert small.plan() == {
        "base": ("done", ()),
        "left": ("run", ("run.seed: was 2, now 7",)),
        "right": ("done", ()),
        "both": ("run", ("input model.path: left is made otherwise",)),
    }


def test_a_changed_text_is_named_by_its_setting(small: SmallPipeline) -> None:
    small.run()
    (small.folder / "right.txt").write_text("another text", encoding="utf-8")
    assert small.plan()["right"] == ("run", ("input data: other content",))
    assert small.plan()["both"] == ("done", ()), "it only follows, and reads nothing of it"


def test_the_same_text_elsewhere_is_the_same(small: SmallPipeline, tmp_path: Path) -> None:
    small.run()
    before = small.planner().recipes["left"]
    (tmp_path / "elsewhere").mkdir()
    moved = SmallPipeline(tmp_path / "elsewhere")
    assert moved.planner().recipes["left"] == before


@pytest.mark.parametrize("damage", ["removed", "cut", "another"])
def test_a_folder_in_the_place_of_a_result_is_not_the_result(small: SmallPipeline, damage: str) -> None:
    small.run()
    model = small.path("left") / "model"
    if damage == "removed":
        (model / artifact.COMMITTED).unlink()
    elif damage == "cut":
        (model / "model.safetensors").write_text("lef", encoding="utf-8")
    else:  # a whole artifact, committed, that this stage has not made
        small.children.write(small.children.orders[0], "stub")
        stub = small.path("base") / "model"
        model.rename(model.with_name("aside"))
        stub.rename(model)
    state, (reason,) = small.plan()["left"]
    assert state == "run"
    assert reason.startswith("its result is damaged or gone: ")


def test_an_evaluation_whose_file_was_edited_is_not_done(small: SmallPipeline) -> None:
    small.run()
    (small.path("both") / "evaluation.json").write_text("{}", encoding="utf-8")
    assert "another digest" in small.plan()["both"][1][0]


def test_a_record_whose_recipe_was_edited_is_not_believed(small: SmallPipeline) -> None:
    small.run()
    (file,) = (small.folder / "out/stages").glob(f"{small.planner().recipes['left'].fingerprint}/done.json")
    record = json.loads(file.read_text())
    record["recipe"]["settings"]["run"]["seed"] = 9
    file.write_text(json.dumps(record), encoding="utf-8")
    assert small.plan()["left"] == ("run", ("the recipe in its record was edited",))
    assert small.run() == ["left"]


def test_a_forced_stage_leaves_open_what_reads_it(small: SmallPipeline) -> None:
    small.run()
    plan = small.plan(force="base")
    assert plan["base"] == ("run", ("forced",))
    assert plan["left"] == ("depends", ("done, unless base comes out otherwise",))


def test_only_takes_a_stage_with_what_it_needs(small: SmallPipeline) -> None:
    config = small.config()
    assert list(with_needed(checked_stages(config, PlainComposer()), ["right"])) == ["base", "right"]


def test_stages_of_another_pipeline_with_the_same_recipe_are_done(small: SmallPipeline, tmp_path: Path) -> None:
    small.run()
    other = SmallPipeline(tmp_path, name="other")
    assert {state for state, _ in other.plan().values()} == {"done"}
    assert Storage(str(tmp_path / "out")).list("runs") == ["small"]
