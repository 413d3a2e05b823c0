"""Whether the labels of the data are those of a classifier."""

from collections.abc import Set

from modules.tasks.classification import label_if_given
from modules.tasks.settings import ClassificationConfig
from orchestrator.errors import UserError
from orchestrator.evaluation.task_model import TaskModel
from orchestrator.evaluation.task_rows import TaskRows

_SHOWN = 10


def check_labels(model: TaskModel, rows: TaskRows) -> None:
    """Refuse rows with labels that the model does not know.

    Raises:
        UserError: There are some, or task.labels names others than the model has.
    """
    settings, known = model.settings, set(model.labels)
    assert isinstance(settings, ClassificationConfig)
    if settings.labels and set(settings.labels) != known:
        raise _other_labels(model, "task.labels names", set(settings.labels))
    found = {label for row in rows if (label := label_if_given(row, settings)) is not None}
    if found - known:
        raise _other_labels(model, f"the rows have in the field {settings.label_field!r}", found)


def _other_labels(model: TaskModel, what: str, labels: Set[str]) -> UserError:
    known = set(model.labels)
    lines = [f"task.label_field: {what} labels that {model.path} does not know: {_listed(labels - known)}"]
    if known - labels:
        lines.append(f"  its labels (config.json, id2label) that are not there: {_listed(known - labels)}")
    lines.append("  a label of the data is that of the model if it has the same name; rename them, or choose the data")
    return UserError("\n".join(lines))


def _listed(labels: Set[str]) -> str:
    names = sorted(labels)
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
