"""Whether a stage is done, and why it is not, is read from what is stored, and nothing is written for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from pipelines import PlainComposer, SmallPipeline

from orchestrator.artifacts import artifact
from orchestrator.configuration.pipeline import RunPipelineConfig
from orchestrator.configuration.schema import shown
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
    assert small.plan() == dict.fromkeys(("base", "left", "right", "both"), ("run", ("never run before",)))
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
    text = small.folder / "right.txt"
    assert small.plan()["right"] == ("run", (f"input data: other content in {shown(str(text))}",))
    assert small.plan()["both"] == ("done", ()), "it only follows, and reads nothing of it"


def test_the_same_text_elsewhere_is_the_same(small: SmallPipeline, tmp_path: Path) -> None:
    small.run()
    before = small.planner().recipes["left"]
    (tmp_path / "elsewhere").mkdir()
    moved = SmallPipeline(tmp_path / "elsewhere")
    assert moved.planner().recipes["left"] == before


TEXT = ["data.source=files", f"data.path={__file__}"]


def page_of(*stages: str) -> dict[str, Any]:
    """Return a pipeline of pretrainings and a report on some of them."""
    others = {name: {**PRETRAIN, "overrides": [*TEXT, f"run.seed={ord(name)}"]} for name in "abcdef"}
    return {"name": "small", "stages": {**others, "page": {"command": "report", "inputs": {"stages": list(stages)}}}}


def test_of_several_inputs_only_what_is_made_otherwise_is_named(small: SmallPipeline) -> None:
    small.run(pipeline=page_of("a", "b", "c"))
    changed = page_of("a", "b", "c")
    changed["stages"]["b"]["overrides"] = [*TEXT, "run.seed=7"]
    assert small.plan(pipeline=changed)["page"] == ("run", ("input stages: b is made otherwise",))
    many = page_of("a", "b", "c", "d", "e")
    small.run(pipeline=many)
    for name in "abcde":
        many["stages"][name]["overrides"] = [*TEXT, f"training.num_steps={ord(name)}"]
    assert small.plan(pipeline=many)["page"][1] == ("input stages: a, b, c and 2 more are made otherwise",)


def test_inputs_that_are_others_now_are_named_with_what_they_were(small: SmallPipeline) -> None:
    small.run(pipeline=page_of("a", "b", "c"))
    assert small.plan(pipeline=page_of("a", "c"))["page"][1] == ("input stages: was [a,b,c], now [a,c]",)
    assert small.plan(pipeline=page_of("c", "b", "a"))["page"][1] == ("input stages: was [a,b,c], now [c,b,a]",)
    small.run(pipeline=page_of("a", "b", "c", "d", "e"))
    few = "input stages: was […,b], now […,f]"
    assert small.plan(pipeline=page_of("a", "c", "d", "e", "f"))["page"][1] == (few,)
    small.run(pipeline=page_of("a", "b", "c"), force="page")
    both = page_of("a", "d")
    both["stages"]["a"]["overrides"] = [*TEXT, "run.seed=7"]
    assert small.plan(pipeline=both)["page"][1] == (
        "input stages: was [a,b,c], now [a,d]",
        "input stages: a is made otherwise",
    )


def test_a_text_of_another_name_is_told_by_both_names_and_no_key_is_stored(small: SmallPipeline) -> None:
    small.run()
    config = small.config()
    text = small.folder / "right.txt"
    text.rename(small.folder / "moved.txt")
    stages = {name: stage.model_dump() for name, stage in config.pipeline.stages.items()}
    stages["right"]["overrides"] = ("data.source=files", f"data.path={small.folder}/moved.txt", "run.seed=3")
    judged = small.plan(pipeline={"name": "small", "stages": stages})["right"]
    assert judged == ("run", (f"input data.path: was {shown(str(text))}, now {shown(f'{small.folder}/moved.txt')}",))
    (stored,) = (small.folder / "out/runs/small").glob("right-*/stage.json")
    assert json.loads(stored.read_text())["inputs"] == {"data.path": [str(text)], "model.path": ["base"]}


def test_the_folder_of_a_pipeline_is_listed_once_however_many_stages_would_run(
    small: SmallPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.run()
    small.seeds = {name: seed + 20 for name, seed in small.seeds.items()}
    planner, listed = small.planner(), list[str]()
    real = Storage.list
    monkeypatch.setattr(Storage, "list", lambda self, name="", **how: (listed.append(name), real(self, name, **how))[1])
    assert [one.state for one in planner.plan(()).values()] == ["run"] * 4
    assert listed.count("runs/small") == 1


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
