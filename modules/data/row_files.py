"""Files of rows: one reader for each ending."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from modules.config import DataConfig
from modules.data.csv_rows import rows_of_csv
from modules.data.json_rows import rows_of_json, rows_of_jsonl
from modules.data.parquet_rows import rows_of_parquet
from modules.data.rows import Fields, Row, checked
from modules.data.source_files import PLAIN_TEXT_ENDINGS, ROW_ENDINGS, SourceFile, checked_ending, damage_told, opened
from modules.errors import InputError

_READERS: dict[str, Callable[[BinaryIO, str, Fields], Iterator[Row]]] = {
    ".jsonl": rows_of_jsonl,
    ".json": rows_of_json,
    ".csv": partial(rows_of_csv, delimiter=","),
    ".tsv": partial(rows_of_csv, delimiter="\t"),
    ".parquet": rows_of_parquet,
}


def read_rows(file: SourceFile, data: DataConfig, fields: Fields) -> Iterator[Row]:
    """Yield the rows of `file` with their asked-for fields, of which values keep their types.

    A table without the column of a required field is refused. A single row without the field is not: it has it left
    out of its values, and the reader's user says what becomes of it.

    Args:
        file: .jsonl, .json, .csv, .tsv or .parquet, each also with .gz or .zst.
        data: How it is read.
        fields: The fields to read.

    Raises:
        InputError: The ending is another, the file is damaged, not UTF-8 or has no rows, or a value of a row cannot be
            used.
    """
    check_holds_rows(file)
    with damage_told(file):
        row = None
        for row in rows_of_file(file, data, fields):
            yield checked(row)
        if row is None:
            raise InputError(f"{file.name}: it has no rows; remove it or leave it out")


def rows_of_file(file: SourceFile, data: DataConfig, fields: Fields) -> Iterator[Row]:
    """Yield the rows of `file` with their values as the format has them."""
    read = _READERS[checked_ending(file.name)]
    if data.csv_delimiter and isinstance(read, partial):
        read = partial(read, delimiter=data.csv_delimiter)
    with opened(file, data) as stream:
        yield from read(stream, file.name, fields)


def check_holds_rows(file: SourceFile) -> None:
    """Refuse a file of plain text.

    Raises:
        InputError: It is one, or of an unknown ending.
    """
    if checked_ending(file.name) in PLAIN_TEXT_ENDINGS:
        raise InputError(
            f"{file.name}: plain text has no rows with fields; rows are read from {' '.join(ROW_ENDINGS)}, each also "
            "with .gz or .zst"
        )
