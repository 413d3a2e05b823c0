"""Predictions that another program has made of the rows on which a model is measured."""

from modules.config import DataConfig
from modules.data.row_files import read_rows
from modules.data.rows import Fields, Row
from modules.tasks.scorers import class_scorers
from modules.tasks.settings import ClassificationConfig, TaskConfig, TranslationConfig
from modules.tasks.text_scores import TextScores
from orchestrator.errors import UserError
from orchestrator.evaluation.measurement import Measurement
from orchestrator.storage.input_files import StoredFile, find_files
from orchestrator.storage.redaction import redact

_FIELD, _PLACE = "prediction", "place"
_SETTING = "other.predictions"


def predictions_file(path: str, task: TaskConfig) -> StoredFile:
    """Return the file that a path leads to.

    Raises:
        UserError: It leads to none, or to several; or the task has no answers that can be compared.
    """
    if not isinstance(task, ClassificationConfig | TranslationConfig):
        raise UserError(f"{_SETTING}: task={task.name} has no right answers to compare predictions with; name a model")
    files = find_files([path])
    if len(files) > 1:
        raise UserError(f"{_SETTING}={redact(path)}: leads to {len(files)} files; name one of them")
    return files[0]


def measured_predictions(file: StoredFile, data: DataConfig, model: Measurement, bleu_tokenizer: str) -> Measurement:
    """Return how well predictions fit the rows on which a model was measured.

    Args:
        file: A line for each of those rows, in the same order.
        data: How files are read.
        model: The measurement of the model.
        bleu_tokenizer: How BLEU divides a translation into words.

    Raises:
        UserError: There are more or fewer, of other rows, or a label that the model does not know.
    """
    rows = list(read_rows(file, data, Fields({_FIELD: _SETTING}, {_PLACE: _SETTING})))
    if len(rows) != len(model.places):
        raise UserError(
            f"{file.name}: has {len(rows):,} rows, and {len(model.places):,} of the data are measured; {_SETTING} "
            "needs a line for each of them, in order"
        )
    answers = [_answer(row, place) for row, place in zip(rows, model.places, strict=True)]
    if not model.labels:
        scores = TextScores(answers, model.references, bleu_tokenizer)
        return Measurement(model.task, model.places, scores.scorers, signatures=scores.signatures)
    numbers = {label: number for number, label in enumerate(model.labels)}
    for row, answer in zip(rows, answers, strict=True):
        if answer not in numbers:
            raise UserError(f"{row.location}: the prediction {answer!r} is no label of the model; correct it")
    right, found = ([numbers[label] for label in labels] for labels in (model.references, answers))
    scorers = class_scorers(right, found, len(numbers))
    return Measurement(model.task, model.places, scorers, labels=model.labels)


def _answer(row: Row, place: str) -> str:
    """Return the prediction of a row.

    Raises:
        UserError: There is none, or it is that of another row.
    """
    if _FIELD not in row.values:
        raise UserError(f"{row.no_field(_FIELD)}; {_SETTING} needs it in every row")
    said = row.values.get(_PLACE)
    # folders may differ from where they were when the predictions were made
    if said is not None and str(said).rpartition("/")[2] != place.rpartition("/")[2]:
        raise UserError(f"{row.location}: is the prediction of {said}, and {place} is measured; give the same split")
    answer = row.values[_FIELD]
    if isinstance(answer, bool):
        return "true" if answer else "false"
    return str(answer)
