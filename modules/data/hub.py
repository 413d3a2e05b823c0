"""Text data sets of the Hugging Face hub."""

from collections.abc import Iterator

from modules.data.documents import Piece, cut_pieces, row_text
from modules.errors import InputError


def read_hub_dataset(path: str, subset: str | None, split: str, text_field: str) -> Iterator[Piece]:
    """Yield the text of a Hugging Face hub data set in pieces, one document per row, streamed.

    Args:
        path: The data set's name on the hub, or anything else that `datasets.load_dataset` takes.
        subset: Its configuration, if it has several.
        split: The split to read.
        text_field: Column that holds the text.

    Raises:
        InputError: `datasets` is missing, the hub cannot be reached or lacks the data set, or a row has no text.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError("data.source=huggingface needs the package datasets: pip install datasets") from error
    try:
        rows = datasets.load_dataset(path, subset, split=split, streaming=True)
        for number, row in enumerate(rows):
            yield from cut_pieces([row_text(row, text_field, f"{path} ({split}), row {number}")])
    except InputError:
        raise
    except Exception as error:  # `datasets` and its HTTP client raise many unrelated types here
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(
            f"data.path={path}: the hub data set (subset {subset}, split {split}) cannot be read: {reason[0]}; "
            "check the name, data.subset, data.hub_split and the network"
        ) from error
