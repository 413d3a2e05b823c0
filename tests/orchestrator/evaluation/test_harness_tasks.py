"""Tasks that are refused, each by its name and before the model is looked for."""

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness_tasks import write_task

from orchestrator.cli import main
from orchestrator.configuration.groups import HarnessConfig
from orchestrator.errors import UserError
from orchestrator.evaluation.harness import environment
from orchestrator.evaluation.harness.environment import prepare_harness

ROWS = [{"q": "one", "a": "two"}]
EXACT = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
GENERATES: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"]},
    "metric_list": EXACT,
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rouge": (
        {"metric_list": [{"metric": "rouge", "aggregation": "mean"}]},
        "the metric rouge would come from a hub, which is not asked; there are .*exact_match",
    ),
    "misspelt": ({"metric_list": [{"metric": "exact_mach", "aggregation": "mean"}]}, "did you mean exact_match?"),
    "forced": (
        {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "hf_evaluate": True}]},
        "the metric exact_match would come from a hub",
    ),
    "aggregated": (
        {"metric_list": [{"metric": "acc", "aggregation": "meen"}]},
        "no aggregation meen; did you mean mean?",
    ),
    "from_hub": ({"dataset_path": "cais/mmlu"}, "its data cais/mmlu would come from a hub, which is not asked"),
    "no_path": ({"dataset_path": None}, "its data None would come from a hub"),
    "over_http": (
        {"dataset_kwargs": {"data_files": {"test": ["https://example.com/a.jsonl"]}}},
        "names no file on this machine",
    ),
    "no_files": ({"dataset_kwargs": None}, "data_files=null names no file on this machine"),
    "gone": ({"dataset_kwargs": {"data_files": "gone.jsonl"}}, "data_files: .*gone.jsonl"),
    "outside": ({"doc_to_text": "!function os.path.fn"}, "runs os.path.fn, which is no function in a Python file"),
    "above": ({"doc_to_text": "!function ../outside.fn"}, "runs ../outside.fn, which is no function in a Python file"),
    "by_include": ({"include": "with_code.yml"}, "runs os.fn, which is no function in a Python file"),
    "in_python": ({"class": "x"}, "is written in Python"),
    "unsafe": ({"unsafe_code": True}, "runs what the model writes"),
    "pictures": ({"doc_to_image": "{{q}}"}, "shows pictures"),
    "prompted": ({"use_prompt": "promptsource:x"}, "takes its prompt from another library"),
    "filtered": (
        {"filter_list": [{"name": "f", "filter": [{"function": "take_frist"}]}]},
        "no filter take_frist; did you mean take_first?",
    ),
    "generating": (
        {"generation_kwargs": {"until": ["\n"], "temprature": 1}},
        "no setting generation_kwargs.temprature here; did you mean temperature?",
    ),
    "untyped": ({"output_type": "guess"}, "lm-eval cannot make this task .*guess"),
}


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        prepare_harness()
        yield


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    made = empty_folder / "tasks"
    for name, (settings, _) in REFUSED.items():
        write_task(made, name, ROWS, **{**GENERATES, **settings})
    (made / "with_code.yml").write_text("doc_to_text: !function os.fn\n")
    (empty_folder / "outside.py").write_text("raise SystemExit('this is run')\n")
    return made


def loaded(folder: Path, *names: str) -> Any:
    from orchestrator.evaluation.harness.tasks import load_tasks

    return load_tasks(HarnessConfig(tasks=names, include_path=str(folder)))


def test_each_is_refused_by_name_with_the_reason_and_all_at_once(folder: Path) -> None:
    with pytest.raises(UserError) as raised:
        loaded(folder, *REFUSED)
    lines = str(raised.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == list(REFUSED)
    for line, (_, reason) in zip(lines, REFUSED.values(), strict=True):
        assert re.search(reason, line), line


def test_the_command_ends_with_2_before_it_looks_for_the_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "model.path=/none", "harness.tasks=[rouge,from_hub]", "harness.include_path=tasks"]) == 2
    said = capsys.readouterr().err
    assert "harness.tasks: rouge: the metric rouge would come from a hub" in said
    assert "harness.tasks: from_hub: its data cais/mmlu would come from a hub" in said
    assert "/none" not in said


def test_an_unknown_name_is_refused_with_the_nearest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lm_evals_own(monkeypatch)
    with pytest.raises(UserError) as raised:
        loaded(folder, "rugue", "nothing_like_it", "rouge")
    unknown, other, known = str(raised.value).splitlines()
    assert unknown == "harness.tasks: rugue: no such task or group; did you mean rouge?"
    assert other.startswith("harness.tasks: nothing_like_it: no such task or group; it is looked for in")
    assert known.startswith("harness.tasks: rouge: the metric")


def without_lm_evals_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the 15,000 tasks of lm-eval, which take ten seconds to read."""
    from orchestrator.evaluation.harness import tasks

    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))


def test_a_task_of_lm_eval_runs_on_a_local_copy_of_its_rows(folder: Path) -> None:
    import lm_eval.tasks

    published = Path(str(lm_eval.tasks.__file__)).parent / "arc/arc_easy.yaml"
    row = {"question": "What?", "choices": {"text": ["this", "that"], "label": ["A", "B"]}, "answerKey": "B"}
    data = {"data_files": {name: str(folder / "mine.jsonl") for name in ("train", "validation", "test")}}
    write_task(folder, "mine", [row], include=str(published), dataset_name=None, dataset_kwargs=data)
    task = loaded(folder, "mine").loaded["tasks"]["mine"]
    assert task.doc_to_text(task.eval_docs[0]) == "Question: What?\nAnswer:"
    assert (task.doc_to_choice(task.eval_docs[0]), task.doc_to_target(task.eval_docs[0])) == (["this", "that"], 1)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ({"task": ["fine", "from_hub"]}, "from_hub: its data cais/mmlu"),
        ({"task": [{"task": "fine", "dataset_path": "a/b"}]}, "fine: its data a/b would come from a hub"),
        ({"task": [{"task": "inline", "dataset_path": "a/b"}]}, "all::inline: its data a/b would come from a hub"),
    ],
)
def test_what_a_group_holds_is_checked_too(folder: Path, group: dict[str, Any], reason: str) -> None:
    write_task(folder, "fine", ROWS, **GENERATES)
    write_task(
        folder,
        "all",
        [],
        **{**dict.fromkeys(["dataset_path", "dataset_kwargs", "test_split"]), "group": "all"},
        **group,
    )
    with pytest.raises(UserError, match=reason):
        loaded(folder, "all")


def test_a_function_beside_the_task_is_run(folder: Path) -> None:
    (folder / "words.py").write_text("def fn(row):\n    return row['q'].upper()\n")
    write_task(folder, "local", ROWS, **{**GENERATES, "doc_to_text": "!function words.fn"})
    task = loaded(folder, "local").loaded["tasks"]["local"]
    assert task.doc_to_text(task.eval_docs[0]) == "ONE"


def test_the_data_of_a_task_is_known_by_its_digest(folder: Path) -> None:
    write_task(folder, "fine", ROWS, **GENERATES)
    first = loaded(folder, "fine").data["fine"]
    write_task(folder, "fine", [*ROWS, *ROWS], **GENERATES)
    second = loaded(folder, "fine").data["fine"]
    assert list(first) == list(second) == [str(folder / "fine.jsonl")]
    assert first != second


@pytest.mark.parametrize("names", [["fine", "fine"], ["all", "fine"]])
def test_a_task_that_is_named_twice_is_measured_once_or_refused(folder: Path, names: list[str]) -> None:
    write_task(folder, "fine", ROWS, **GENERATES)
    write_task(folder, "all", [], **dict.fromkeys(["dataset_path", "dataset_kwargs", "test_split"]), group="all")
    text = (folder / "all.yaml").read_text().replace("task: all", "task: [fine]")
    (folder / "all.yaml").write_text(text)
    if names[0] == names[1]:
        assert list(loaded(folder, *names).loaded["tasks"]) == ["fine"]
        return
    with pytest.raises(UserError, match="Duplicate task 'fine'.*; name it once"):
        loaded(folder, *names)


def test_a_file_that_is_no_yaml_is_named_where_its_task_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "torn.yaml").write_text("task: torn\n  doc_to_text: [\n")
    without_lm_evals_own(monkeypatch)
    with pytest.raises(UserError, match=r"torn: no such task or group; .*cannot be read: torn.yaml \(line 2\)"):
        loaded(folder, "torn")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="harness.include_path=.*none: no folder on this machine"):
        loaded(tmp_path / "none", "x")


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lm-eval is not installed; pip install 'gpt-orchestrator\[eval\]'"):
        prepare_harness()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["harness.limit=3"], "harness.limit=3: belongs to harness.tasks; name tasks there"),
        (["harness.tasks=x", "data=stdlib"], "data: belongs to a text, and harness.tasks have rows of their own"),
        (["harness.tasks=x", "max_sequences=3"], "max_sequences: belongs to a text"),
        (["harness.taks=x"], "harness.taks=x: unknown; did you mean harness.tasks?"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "model.path=/none", *words]) == 2
    assert message in capsys.readouterr().err


def test_nothing_of_a_refused_python_file_was_run(folder: Path) -> None:
    with pytest.raises(UserError):
        loaded(folder, "above")
    assert not [name for name in sys.modules if name.endswith("outside")]
