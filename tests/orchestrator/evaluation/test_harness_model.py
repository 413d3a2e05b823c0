"""Our model in lm-evaluation-harness, beside the harness's own `hf` model on the same weights."""

import copy
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness_tasks import TASKS, write_model, write_tasks

from modules.chat_template import find_chat_template
from orchestrator.artifacts.models import load_model
from orchestrator.cli import main
from orchestrator.evaluation.harness.environment import prepare_harness

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
POSITIONS = 64
both_families = pytest.mark.parametrize("kind", ["gpt2", "llama"])


class Compared(NamedTuple):
    hf: dict[str, Any]
    ours: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _asks_no_hub() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        prepare_harness()
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("harness")
    os.environ["HF_DATASETS_CACHE"] = str(made / "cache")
    write_tasks(made / "tasks")
    for kind in ("gpt2", "llama"):
        write_model(made / kind, kind, TEMPLATE)
    return made


@pytest.fixture(scope="module")
def compared(folder: Path) -> Any:
    """Return a function that gives the results of both for a kind of model."""

    @cache
    def compare(kind: str, apply_chat_template: bool = False) -> Compared:
        models = (hf_model(folder / kind), our_model(folder / kind))
        return Compared(*(results(model, folder / "tasks", apply_chat_template) for model in models))

    return compare


def hf_model(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=3)


def our_model(folder: Path) -> Any:
    from orchestrator.evaluation.harness.model import HarnessModel

    trained = load_model(str(folder)).prepared("32", prepack=False)
    template = find_chat_template(trained.files, "model")
    return HarnessModel(trained, batch_size=5, max_length=POSITIONS, template=template, progress=lambda *_: None)


def results(model: Any, tasks: Path, apply_chat_template: bool) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_path=str(tasks), include_defaults=False).load(list(TASKS))
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=task.get_config("num_fewshot") or 0)
        task.set_fewshot_seed(seed=1234)
    found = evaluate(
        lm=model,
        task_dict=loaded,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=True,
    )
    assert found is not None
    return dict(found)


def numbers_in(value: Any) -> list[float]:
    """Return every number in nested lists, in order; whether a text is greedy counts as 0 or 1."""
    return (
        [found for item in value for found in numbers_in(item)] if isinstance(value, list | tuple) else [float(value)]
    )


@both_families
def test_every_printed_digit_of_the_metrics_is_that_of_hf(compared: Any, kind: str) -> None:
    hf, ours = ({task: shown(one["results"][task]) for task in TASKS} for one in compared(kind))
    assert ours == hf
    assert {name for task in TASKS for name in ours[task]} >= {"acc,none", "acc_norm,none", "exact_match,none"}


def shown(metrics: dict[str, Any]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in metrics.items() if isinstance(value, float) and "perpl" not in name}


@both_families
@pytest.mark.parametrize("task", ["choices", "cloze", "texts"])
def test_log_likelihoods_are_those_of_hf(compared: Any, kind: str, task: str) -> None:
    hf, ours = (numbers_in([sample["resps"] for sample in one["samples"][task]]) for one in compared(kind))
    assert len(ours) >= 4
    # hf adds up a text's tokens in float32, which is right to 1e-7 of the sum
    assert ours == pytest.approx(hf, abs=1e-4, rel=2e-7)


@both_families
def test_generated_texts_are_those_of_hf(compared: Any, kind: str) -> None:
    hf, ours = ([sample["resps"] for sample in one["samples"]["answers"]] for one in compared(kind))
    assert ours == hf
    assert len({str(text) for text in ours}) == 6


@pytest.mark.parametrize(
    "settings",
    [
        {"until": [], "max_gen_toks": 10, "num_beams": 3},
        {"until": ["lazy"], "max_new_tokens": 10, "repetition_penalty": 1.7},
        {"until": "q", "max_gen_toks": 40},  # leaves 24 tokens for the question
    ],
    ids=["beams", "penalty", "long answers"],
)
def test_a_tasks_settings_of_generation_mean_what_they_do_in_hf(folder: Path, settings: dict[str, Any]) -> None:
    from lm_eval.api.instance import Instance

    texts = ["the quick brown", "over a", "the lazy dog and then sleeps " * 8]
    asked = [
        Instance("generate_until", {}, (text, copy.deepcopy(settings)), number) for number, text in enumerate(texts)
    ]
    hf, ours = (model(folder / "llama").generate_until(asked) for model in (one_by_one, our_model))
    assert ours == hf
    assert len(set(ours)) == 3


def one_by_one(folder: Path) -> Any:
    model = hf_model(folder)
    model.batch_size_per_gpu = 1
    return model


def test_drawn_answers_are_the_same_again_and_differ_between_repeats(folder: Path) -> None:
    from lm_eval.api.instance import Instance

    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_k": 20}
    asked = [Instance("generate_until", {}, ("the quick", dict(settings)), number) for number in range(3)]
    first, again = (our_model(folder / "gpt2").generate_until(asked) for _ in range(2))
    assert first == again
    assert len(set(first)) == 3


def test_with_a_chat_template_the_same_texts_are_asked_and_answered_alike(compared: Any) -> None:
    hf, ours = compared("llama", True)
    asked, answered = ([sample[field] for sample in ours["samples"]["answers"]] for field in ("arguments", "resps"))
    assert asked[0][0][0].startswith("<s>user: ")
    assert [sample["resps"] for sample in hf["samples"]["answers"]] == answered
    found, expected = (numbers_in([s["resps"] for s in one["samples"]["choices"]]) for one in (ours, hf))
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("last", ["The answer is ", "it is"])
def test_a_message_that_goes_on_ends_where_hf_ends_it(folder: Path, last: str) -> None:
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": last}]
    texts = [model(folder / "llama").apply_chat_template(said, False) for model in (hf_model, our_model)]
    assert texts[1] == texts[0] == f"<s>user: Why?</s>\n<s>assistant: {last.strip()}"


@both_families
@pytest.mark.parametrize("text", ["", "the fox", "<s>the fox", "a </s> b", " the  "])
def test_tokens_of_a_text_are_those_of_hf(folder: Path, kind: str, text: str) -> None:
    hf, ours = hf_model(folder / kind), our_model(folder / kind)
    assert ours.tok_encode(text) == hf.tok_encode(text)
    assert ours.tok_encode(text, add_special_tokens=False) == hf.tok_encode(text, add_special_tokens=False)
    assert (ours.prefix_token_id, ours.eot_token_id) == (hf.prefix_token_id, hf.eot_token_id)


def test_the_command_prints_and_keeps_the_figures_of_hf(
    compared: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"model.path={folder / 'gpt2'}", f"harness.tasks=[{','.join(TASKS)}]", "harness.batch_size=7"]
    assert main(["evaluate", *arguments, f"harness.include_path={folder / 'tasks'}"]) == 0
    said = capsys.readouterr()
    rows = re.findall(r"│ (\w*) +│ +\d* │ (\w+) +│ +([\d.]+) │", said.out)
    hf = compared("gpt2").hf["results"]
    expected = {name.partition(",")[0]: value for task in TASKS for name, value in hf[task].items() if task != "cloze"}
    printed = {metric: value for _, metric, value in rows}
    assert {name: printed[name] for name in ("acc_norm", "exact_match", "bits_per_byte")} == {
        name: f"{expected[name]:.4f}" for name in ("acc_norm", "exact_match", "bits_per_byte")
    }
    kept = json.loads((folder / "gpt2" / "evaluation.json").read_text())
    assert set(kept) == {f"harness/{task}" for task in TASKS}
    (entry,) = kept["harness/choices"].values()
    assert entry["metrics"]["acc_norm"] == pytest.approx(expected["acc_norm"])
    assert entry["settings"].items() >= {"num_fewshot": 1, "limit": None, "precision": "32", "version": 2.0}.items()
    assert (entry["settings"]["bos"], entry["settings"]["chat_template"]) == ([], None)
    assert entry["details"]["batch_size"] == 7
    assert entry["model"]["path"] == str(folder / "gpt2")
    assert "it/s" not in said.err


def test_a_chat_template_and_its_begin_token_are_recorded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["harness.tasks=choices", "harness.apply_chat_template=true", "harness.limit=2", "harness.num_fewshot=2"]
    where = [f"model.path={folder / 'llama'}", f"harness.include_path={folder / 'tasks'}"]
    assert main(["evaluate", *where, *chosen]) == 0
    kept = json.loads((folder / "llama" / "evaluation.json").read_text())
    (entry,) = kept["harness/choices"].values()
    assert entry["settings"]["bos"] == ["<s>"]
    assert re.fullmatch("[0-9a-f]{32}", entry["settings"]["chat_template"])
    assert (entry["settings"]["limit"], entry["settings"]["num_fewshot"]) == (2, 2)


def test_neither_bars_nor_lines_nor_warnings_of_the_libraries_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    from orchestrator.evaluation.harness import run

    with run._quiet():
        print("bootstrapping for stddev: f1")
        assert list(tqdm(range(3))) == [0, 1, 2]
        warnings.warn_explicit("ill-defined", UserWarning, "_classification.py", 1, "sklearn.metrics._classification")
    assert capsys.readouterr() == ("", "")
    assert list(tqdm(range(3), ascii=True)) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["harness.max_length=65"], "harness.max_length=65: the model has 64 positions"),
        (["harness.max_length=12"], "max_gen_toks=12 of a task: the model sees 12 tokens at once"),
    ],
)
def test_what_the_model_cannot_hold_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    where = [f"model.path={folder / 'gpt2'}", f"harness.include_path={folder / 'tasks'}", "harness.tasks=answers"]
    assert main(["evaluate", *where, *settings]) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_a_chat_template_is_refused_when_one_is_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "gpt2", tmp_path / "base", ignore=shutil.ignore_patterns("*.jinja", "evaluation.json"))
    where = [f"model.path={tmp_path / 'base'}", f"harness.include_path={folder / 'tasks'}", "harness.tasks=answers"]
    assert main(["evaluate", *where, "harness.apply_chat_template=true"]) == 2
    said = capsys.readouterr().err
    assert re.search("harness.apply_chat_template=true: .* without a chat template.*; set it to false, or put", said)
    assert not (tmp_path / "base" / "evaluation.json").exists()
