"""Classification, translation and text generation: rows to examples and questions, and rows that are refused."""

import re
from typing import Any

import pytest
from task_tokenizers import task_tokenizer

from modules.data.rows import Row
from modules.errors import InputError
from modules.tasks.classification import labels_in
from modules.tasks.registry import TASKS, build_task
from modules.tasks.settings import ClassificationConfig, TextGenerationConfig, TranslationConfig
from modules.tasks.task import Task

KINDS = ["gpt2", "llama3", "llama2", "unigram"]
CONFIGS: dict[str, Any] = {
    "classification": ClassificationConfig,
    "translation": TranslationConfig,
    "text_generation": TextGenerationConfig,
}


def made(name: str, kind: str = "gpt2", length: int = 64, **settings: Any) -> Task:
    labels = ("no", "yes") if name == "classification" else ()
    return build_task(CONFIGS[name](**settings), task_tokenizer(kind), length, labels=labels)


def row(number: int = 1, **values: Any) -> Row:
    return Row(values, f"a.jsonl:{number}")


@pytest.mark.parametrize("name", ["classification", "translation", "text_generation"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_of_a_question_are_those_of_the_example_before_its_first_target(kind: str, name: str) -> None:
    task = made(name, kind)
    given = row(text="to be", label="yes", source="to be", target="or not")
    (example,), (question,) = task.examples(given), task.questions(given)
    if name == "translation":
        assert question.ids == example.ids[: example.is_target.index(True)]
        assert (question.reference, question.text) == ("or not", "to be")
    elif name == "classification":
        assert (question.ids, question.reference, question.text) == (example.ids, "yes", "to be")
        assert (example.label, example.is_target, example.num_bytes) == (1, [], 0)
    else:
        assert [*question.ids, task_tokenizer(kind).end_of_text_id] == example.ids
        assert question.reference is None


def test_no_question_holds_its_reference_and_a_row_needs_none() -> None:
    plain, other = (made("translation").questions(row(source="to be", target=text))[0] for text in ("or not", "suffer"))
    assert plain.ids == other.ids
    assert made("translation").questions(row(source="to be"))[0] == plain._replace(reference=None)
    assert made("classification").questions(row(text="to be"))[0].reference is None


def test_a_source_with_braces_is_taken_as_it_is() -> None:
    tokenizer = task_tokenizer("gpt2")
    (question,) = made("translation", prompt="a {b} {source} {0}").questions(row(source="{target} {source} {{x"))
    assert tokenizer.decode(question.ids) == "a {b} {target} {source} {{x {0}"


def test_a_pair_is_read_with_its_separator() -> None:
    task = made("classification", pair_field="other", separator=" | ")
    assert list(task.fields) == ["text", "other", "label"]
    (example,) = task.examples(row(text="to be", other="or not", label="no"))
    (question,) = task.questions(row(text="to be", other="or not"))
    assert task_tokenizer("gpt2").decode(example.ids) == question.text == "to be | or not"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["spam", "ham", "spam"], ("ham", "spam")),
        ([10, 9, -1], ("-1", "9", "10")),
        (["10", "9", "b", "a"], ("9", "10", "a", "b")),
        ([True, False], ("false", "true")),
        ([b"yes", "no"], ("no", "yes")),
    ],
)
def test_labels_are_those_of_the_rows_sorted(values: list[Any], labels: tuple[str, ...]) -> None:
    assert labels_in([row(label=value) for value in values], ClassificationConfig()) == labels


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "task.label_field=label: no row has a label; a classification needs two labels or more"),
        ([1, 1], "task.label_field=label: every row has the label '1'; a classification needs two labels or more"),
        (["a", None], "a.jsonl:2: field 'label' is null; name the field of the label in task.label_field"),
        (["a", ""], "a.jsonl:2: field 'label' is empty; name the field of the label in task.label_field"),
        ([1.5], "a.jsonl:1: field 'label' holds 1.5; a label is a text, a whole number, or true or false"),
        ([["a"]], "a.jsonl:1: field 'label' holds ['a']; a label is a text, a whole number, or true or false"),
        (["\ud800"], "a.jsonl:1: field 'label' holds half a surrogate pair at character 0; repair the row"),
    ],
)
def test_labels_of_no_use_are_refused(values: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        labels_in([row(number, label=value) for number, value in enumerate(values, start=1)], ClassificationConfig())


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("classification", {"text": "a", "label": "maybe"}, "label 'maybe' is none of the known ones, 'no', 'yes'; "),
        ("classification", {"label": "yes"}, "no field 'text'; name another field in task.text_field, or remove the"),
        ("classification", {"text": None, "label": "yes"}, "field 'text' is null; name another field in task.text_f"),
        ("classification", {"text": 3, "label": "yes"}, "field 'text' holds 3, not text; name a field of text in ta"),
        ("translation", {"target": "a"}, "no field 'source'; name another field in task.source_field, or remove the"),
        ("translation", {"source": "a", "target": ["a"]}, "field 'target' holds ['a'], not text; name a field of te"),
        ("translation", {"source": "a\udc00", "target": "a"}, "field 'source' holds half a surrogate pair at charac"),
        ("text_generation", {"text": b"a\xff"}, "field 'text' is not UTF-8 at byte 1; repair the row"),
        ("text_generation", {}, "no field 'text'; name another field in task.text_field, or remove the row"),
    ],
)
def test_a_row_of_no_use_is_refused_by_place(name: str, values: dict[str, Any], message: str, asks: bool) -> None:
    task = made(name)
    with pytest.raises(InputError, match=f"^{re.escape('a.jsonl:1: ' + message)}"):
        (task.questions if asks else task.examples)(row(**values))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("classification", {"text": "a"}, "no field 'label'; name the field of the label in task.label_field, or rem"),
        ("translation", {"source": "a"}, "no field 'target'; name another field in task.target_field, or remove the"),
    ],
)
def test_a_row_without_an_answer_teaches_nothing(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape('a.jsonl:1: ' + message)}"):
        made(name).examples(row(**values))


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("classification", {"text": "", "label": "yes"}, "no text"),
        ("translation", {"source": "", "target": "a"}, "no source text"),
        ("translation", {"source": "a", "target": ""}, "no translation"),
        ("text_generation", {"text": ""}, "no text"),
    ],
)
def test_a_row_with_an_empty_text_is_dropped_and_counted(name: str, values: dict[str, Any], reason: str) -> None:
    task = made(name)
    assert task.examples(row(7, **values)) == []
    assert task.tally.lines(name) == [f"{name}: 1 of 1 rows dropped: {reason} (first: a.jsonl:7)"]
    if "source" not in values or not values["source"]:
        with pytest.raises(InputError, match=r"^a\.jsonl:7: "):
            task.questions(row(7, **values))


def test_a_document_is_split_or_cut_as_asked() -> None:
    text = "to be or not to be " * 9
    split = made("text_generation", length=16)
    assert sum(sum(example.is_target) for example in split.examples(row(text=text))) == len(
        task_tokenizer("gpt2").encode(text)
    )
    (cut,) = made("text_generation", length=16, too_long="right").examples(row(text=text))
    assert cut.ids == task_tokenizer("gpt2").encode(text)[:16]
    (question,) = split.questions(row(text=text))
    assert question.ids == task_tokenizer("gpt2").encode(text)[-16:]


@pytest.mark.parametrize("name", ["translation", "text_generation"])
def test_a_tokenizer_without_an_end_is_refused_by_tasks_that_predict_text(name: str) -> None:
    with pytest.raises(InputError, match=r"^model\.path: its tokenizer names no token that ends a text"):
        build_task(CONFIGS[name](), task_tokenizer("no_accents"), 64)


def test_every_task_of_the_settings_is_registered() -> None:
    assert {"dialogue", *CONFIGS} == set(TASKS)
    assert all(type(task).__module__ == TASKS[name] for name in CONFIGS for task in [made(name)])
