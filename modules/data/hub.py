"""Text data sets of the Hugging Face hub."""

import re
from collections.abc import Iterator
from pathlib import Path

from modules.config import DataConfig
from modules.data.document_rows import Place
from modules.data.documents import Piece, cut_pieces
from modules.data.rows import Fields, Row, TextField, checked
from modules.errors import InputError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_commit(path: str, revision: str | None) -> str:
    """Return the commit that `revision` of a hub data set means now, so that the same data can be read again.

    A whole commit is returned as it is, without a network.

    Raises:
        InputError: `huggingface_hub` is missing, or the hub cannot be reached or lacks the data set or revision.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError("data.source=huggingface needs the package datasets: pip install datasets") from error
    try:
        commit = huggingface_hub.HfApi().dataset_info(path, revision=revision).sha
    except Exception as error:  # the hub client and the HTTP stack below it raise many unrelated types
        raise InputError(
            f"data.path={path}: the hub does not tell the commit of revision {revision or 'main'}: {_reason(error)}; "
            "check the name and the network, or name a commit of 40 digits in data.revision"
        ) from error
    if commit is None:
        raise InputError(f"data.path={path}: the hub tells no commit; name one in data.revision")
    return commit


def is_on_this_machine(path: str) -> bool:
    """Return whether `path` is a local folder, which `datasets` takes before it asks the hub."""
    return Path(path).expanduser().exists()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_hub_dataset(
    path: str, revision: str | None, subset: str | None, split: str, field: TextField
) -> Iterator[Piece]:
    """Yield the text of a Hugging Face hub data set in pieces, one document per row, streamed.

    Args:
        path: The data set's name on the hub, or anything else that `datasets.load_dataset` takes.
        revision: Its commit; None for what is no hub data set.
        subset: Its configuration, if it has several.
        split: The split to read.
        field: The field that holds the text; it counts the rows.

    Raises:
        InputError: `datasets` is missing, the hub cannot be reached or lacks the data set, or a row has no text.
    """
    for number, row in enumerate(_rows(path, revision, subset, split, field.fields, "data.hub_split")):
        yield from cut_pieces([field.text(row)], Place(0, number))


def read_hub_rows(data: DataConfig, split: str, setting: str, fields: Fields) -> Iterator[Row]:
    """Yield the rows of a split of the hub data set that `data.path` names, streamed.

    Args:
        data: Which data set, and its commit.
        split: The split to read.
        setting: The setting that names the split.
        fields: The fields to read, as `row_files.read_rows` has them.

    Raises:
        InputError: `datasets` is missing, the hub cannot be reached or lacks the data set, or a value of a row cannot
            be used.
    """
    yield from map(checked, _rows(data.path[0], data.revision, data.subset, split, fields, setting))


def _rows(
    path: str, revision: str | None, subset: str | None, split: str, fields: Fields, setting: str
) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise InputError("data.source=huggingface needs the package datasets: pip install datasets") from error
    try:
        rows = datasets.load_dataset(path, subset, split=split, revision=revision, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield fields.of(row, f"{path} ({split}), row {number}")
    except Exception as error:  # `datasets` and its HTTP client raise many unrelated types here
        raise InputError(
            f"data.path={path}: the hub data set (subset {subset}, split {split}) cannot be read: {_reason(error)}; "
            f"check the name, data.subset, {setting} and the network"
        ) from error
