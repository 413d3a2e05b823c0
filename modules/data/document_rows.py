"""Where each document, or example of a task, comes from: a file of the data set, and a row in it.

Beside the tokens of a split lies `<split>_document_rows.bin` or `<split>_example_rows.bin`: int64 [n, 2], the number of
the file and the row. It is not named in data.json, whose digest identifies tokens; what an earlier version prepared has
no such file.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ROW_DTYPE = np.dtype("<i8")


class Place(NamedTuple):
    """Where a document comes from."""

    file: int
    """The file's number, in the order in which the data set's files are read."""
    row: int
    """Counted from 0, with rows that have no text or are left out; 0 in a file of plain text."""


NO_PLACE = Place(0, 0)


def rows_name(split: str, of: str = "document") -> str:
    """Return the name of the file with the places of a split's documents, or examples."""
    return f"{split}_{of}_rows.bin"


def names_within(names: Sequence[str]) -> list[str]:
    """Return the names of files as they are within the innermost folder that holds all of them."""
    parts = [name.split("/") for name in names]
    shared = 0
    for of_all in zip(*(of_one[:-1] for of_one in parts), strict=False):
        if len(set(of_all)) > 1:
            break
        shared += 1
    return ["/".join(of_one[shared:]) for of_one in parts]
