"""Prepared examples of a task: found by the recipe's fingerprint, or made. Nothing is tokenised in a worker."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.config import DataConfig
from modules.data.example_data import write_examples
from modules.data.prepare import OnProgress
from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.rows import Fields, Row
from modules.data.shards import DATA_FILE
from modules.data.source_files import SourceFile
from modules.data.splits import PATH_SETTINGS, Split, SplitRows
from modules.errors import InputError
from modules.model_config import ClassifierConfig
from modules.tasks.fields import fields_of
from modules.tasks.registry import build_task
from modules.tasks.settings import ClassificationConfig, DialogueConfig, TaskConfig
from modules.tasks.task import Example, Task
from orchestrator.artifacts import artifact
from orchestrator.artifacts.digests import digest_bytes
from orchestrator.artifacts.prepared_data import identity_of, with_commit
from orchestrator.artifacts.recipe import fingerprint, identity
from orchestrator.artifacts.source_rows import listed_names
from orchestrator.artifacts.split_files import find_split_files
from orchestrator.artifacts.staging import staging_folder
from orchestrator.artifacts.template_file import read_template
from orchestrator.storage.store import Storage

_FORMAT = 1
"""Must change whenever the same rows and settings give other examples."""


@dataclass(frozen=True)
class TaskRequest:
    """What decides the examples of a task."""

    task: TaskConfig
    data: DataConfig
    files: Mapping[str, bytes]
    """Settings, tokenizer and chat template of the model, by name."""
    sequence_length: int
    """Longest example in tokens; shorter ones fill a sequence together."""


@dataclass(frozen=True)
class PreparedExamples:
    """A committed artifact of examples, and what a training has to know of it."""

    name: str
    """Relative to the storage root."""
    files: Mapping[str, bytes]
    """The model's small files, with the control tokens and the template that the task adds."""
    vocab_size: int
    labels: tuple[str, ...]
    """Names of the classes by number; empty where tokens are predicted."""
    splits: Mapping[Split, Mapping[str, Any]]
    """Numbers of examples, tokens, targets and packs of each split."""
    notes: tuple[str, ...]
    """Lines for the user: what was found, and what was dropped or cut."""

    def classifier(self, task: TaskConfig) -> ClassifierConfig | None:
        """Return the head that the task needs; None where tokens are predicted."""
        if not isinstance(task, ClassificationConfig):
            return None
        return ClassifierConfig(labels=self.labels, attention=task.attention)

    def num_steps(self, num_epochs: float, global_batch_size: int) -> int:
        """Return the steps in which so many passes over the training examples are complete."""
        return max(1, math.ceil(self.splits["train"]["num_packs"] * num_epochs / global_batch_size))


def prepared_task(storage: Storage, request: TaskRequest, progress: Callable[[int], OnProgress]) -> PreparedExamples:
    """Return the examples of a task; make them first if they are not there.

    Args:
        storage: Where they are kept.
        request: What decides them.
        progress: Takes the number of bytes to read; returns the callback that receives the progress.

    Raises:
        UserError, InputError: the rows cannot be used, or the model cannot learn the task; nothing is left behind.
    """
    files_of = find_split_files(request.data)
    request = _with_chat_files(request)
    data = with_commit(request.data)
    recipe = _recipe(request, data, files_of)
    name = f"data/{request.task.name}-{fingerprint(recipe)}"
    if not artifact.is_committed(storage, name):
        with staging_folder(storage, name) as folder:
            notes = _make(folder, request, files_of, progress(sum(_sizes(files_of))))
            facts = json.loads((folder / DATA_FILE).read_bytes())
            about = {key: facts[key] for key in ("vocab_size", "labels", "splits")} | {"notes": notes}
            about |= listed_names(data, SplitRows(files_of, data, Fields({})).file_names)
            artifact.publish(storage, folder, name, {"kind": "examples", "recipe": recipe, **about})
    manifest = artifact.read_manifest(storage, name)
    return PreparedExamples(
        name=name,
        files=request.files,
        vocab_size=manifest["vocab_size"],
        labels=tuple(manifest["labels"]),
        splits=manifest["splits"],
        notes=(*_summary(request.task, manifest["splits"]), *manifest["notes"]),
    )


def _sizes(files_of: Mapping[Split, Sequence[SourceFile]]) -> list[int]:
    return [file.num_bytes for files in files_of.values() for file in files]


def _with_chat_files(request: TaskRequest) -> TaskRequest:
    """Return the request with the files of a model that knows the conversation's template and control tokens."""
    if not isinstance(request.task, DialogueConfig):
        return request
    from modules.tasks.chat_files import SETTING, chat_files

    path = request.task.chat_template
    template = None if path is None else read_template(path, SETTING)
    files = chat_files(request.files, request.task, template)
    return TaskRequest(request.task, request.data, files, request.sequence_length)


def _recipe(request: TaskRequest, data: DataConfig, files_of: Mapping[Split, Sequence[SourceFile]]) -> dict[str, Any]:
    return {
        "command": "prepare",
        "format": _FORMAT,
        "task": identity(request.task),
        "data": identity(data),
        "model_files": {name: digest_bytes(content).xxh3_128 for name, content in sorted(request.files.items())},
        "sequence_length": request.sequence_length,
        # by content and not by path, so that the same rows prepared elsewhere are the same data
        "files": {split: identity_of(files) for split, files in files_of.items()} or [*data.path, data.revision],
    }


def rows_identity(data: DataConfig) -> Any:
    """Return what changes with the rows that a configuration names.

    Raises:
        UserError, InputError: they are not there.
    """
    found = {split: identity_of(files) for split, files in find_split_files(data).items()}
    return found or [*data.path, with_commit(data).revision]


def examples_name(request: TaskRequest) -> str:
    """Return the name that the prepared examples have, whether they are there or not."""
    request = _with_chat_files(request)
    recipe = _recipe(request, with_commit(request.data), find_split_files(request.data))
    return f"data/{request.task.name}-{fingerprint(recipe)}"


def _make(
    folder: Path, request: TaskRequest, files_of: Mapping[Split, Sequence[SourceFile]], progress: OnProgress
) -> list[str]:
    """Write the examples into an empty folder; return lines for the user on what was dropped or cut."""
    tokenizer = load_pretrained(request.files, "model.path")
    settings, length = request.task, request.sequence_length
    template = _template(request)
    unlabelled = build_task(settings, tokenizer, length, labels=(), template=template)
    rows = SplitRows(files_of, request.data, fields_of(settings, unlabelled.fields, unlabelled.optional_fields))
    labels = _labels(settings, rows)
    tasks: dict[Split, Task] = {
        split: build_task(settings, tokenizer, length, labels=labels, template=template) for split in PATH_SETTINGS
    }
    description = {"task": identity(settings)}
    examples = _examples(rows, tasks, progress)
    try:
        write_examples(folder, examples, tokenizer, request.files, labels, length, description)
    except InputError as error:
        lines = _notes(tasks, tokenizer.unknown_token)
        raise InputError("\n".join([str(error), *lines])) from error
    return _notes(tasks, tokenizer.unknown_token)


def _examples(
    rows: SplitRows, tasks: Mapping[Split, Task], progress: OnProgress
) -> Iterator[tuple[Split, Example, Row]]:
    num_bytes = num_tokens = 0
    for number, (split, row) in enumerate(rows, start=1):
        for example in tasks[split].examples(row):
            num_tokens += len(example.ids)
            yield split, example, row
        num_bytes += _num_bytes(row)
        if number % 256 == 0:
            progress(num_bytes, num_tokens)
    progress(num_bytes, num_tokens)


def _num_bytes(row: Row) -> int:
    return sum(len(str(value)) for value in row.values.values())


def _labels(settings: TaskConfig, rows: SplitRows) -> tuple[str, ...]:
    if not isinstance(settings, ClassificationConfig):
        return ()
    if settings.labels:
        return settings.labels
    from modules.tasks.classification import labels_in

    return labels_in((row for split, row in rows if split == "train"), settings)


def _template(request: TaskRequest) -> Any:
    if not isinstance(request.task, DialogueConfig):
        return None
    from modules.chat_template import find_chat_template

    return find_chat_template(request.files, "model.path")


def _notes(tasks: Mapping[Split, Task], unknown_token: str | None) -> list[str]:
    return [line for split, task in tasks.items() for line in task.tally.lines(split, unknown_token)]


def _summary(task: TaskConfig, splits: Mapping[Split, Mapping[str, Any]]) -> list[str]:
    counts = ", ".join(f"{facts['num_examples']:,} {split}" for split, facts in splits.items())
    return [f"{task.name}: {counts} examples"]
