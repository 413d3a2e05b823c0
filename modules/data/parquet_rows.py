"""Rows of Parquet files, of which a small batch is held at a time."""

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from modules.data.compression import CHUNK_BYTES, import_package, seekable
from modules.data.rows import Fields, Row
from modules.errors import InputError

_BATCH_ROWS = 64


def rows_of_parquet(stream: BinaryIO, name: str, fields: Fields) -> Iterator[Row]:
    """Yield each row.

    Raises:
        InputError: The file is damaged, or lacks a required field.
    """
    import_package("pyarrow", "to read .parquet files")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with seekable(stream) as table_stream:
        num_before = 0
        try:
            # as long as nothing is read beforehand, a buffer makes it stream within a row group
            table = ParquetFile(table_stream, buffer_size=CHUNK_BYTES, pre_buffer=False)
            places = _places(table.schema_arrow, fields, name)
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=list(places)):
                yield from _rows(batch, places, name, num_before)
                num_before += batch.num_rows
        except (ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the storage's; Arrow's own errors of this type have no number
            raise InputError(f"{name}: not a readable Parquet file ({error})") from error


def _places(schema: Any, fields: Fields, name: str) -> dict[str, list[str]]:
    """Return the column that holds each field, and the names that lead to the field within it."""
    found = {path: _place(schema, path, fields, name) for path in fields.settings}
    return {path: place for path, place in found.items() if place is not None}


def _place(schema: Any, path: str, fields: Fields, name: str) -> list[str] | None:
    from pyarrow.types import is_temporal

    place = [path] if path in schema.names else path.split(".")
    if schema.names.count(place[0]) > 1:
        raise InputError(f"{name}: {schema.names.count(place[0])} columns are named {place[0]!r}; rename the others")
    kind = _kind(schema, place) if place[0] in schema.names else None
    if kind is None and path in fields.required:
        found = ", ".join(map(repr, schema.names[:8])) or "none"
        raise InputError(f"{name}: no column {path!r}; columns here: {found}; set {fields.settings[path]}")
    if kind is not None and is_temporal(kind):  # Python has no value for some of them
        raise InputError(f"{name}: column {path!r} holds {kind}, not text; set {fields.settings[path]}")
    return None if kind is None else place


def _kind(schema: Any, place: list[str]) -> Any:
    """Return the type of a field; None if there is none."""
    kind = schema.field(place[0]).type
    for step in place[1:]:
        if getattr(kind, "get_field_index", lambda _: -1)(step) < 0:  # structs alone have it
            return None
        kind = kind.field(step).type
    return kind


def _rows(batch: Any, places: Mapping[str, list[str]], name: str, num_before: int) -> Iterator[Row]:
    columns = {path: _values(batch, place, path, name, num_before) for path, place in places.items()}
    for number in range(num_before + 1, num_before + batch.num_rows + 1):
        yield Row({path: next(values) for path, values in columns.items()}, f"{name}, row {number}")


def _values(batch: Any, place: list[str], path: str, name: str, num_before: int) -> Iterator[Any]:
    compute = import_package("pyarrow.compute", "to read .parquet files")
    column, *inner = place
    values = compute.struct_field(batch.column(column), inner) if inner else batch.column(column)
    try:
        yield from values.to_pylist()
    except (ValueError, OverflowError):
        # one by one, so that the row of the error is known
        for number, value in enumerate(values, start=num_before + 1):
            yield _value(value, f"{name}, row {number}: field {path!r}")


def _value(value: Any, start: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise InputError(f"{start} is not UTF-8") from error
    except (ValueError, OverflowError) as error:  # a time that Python has not, or two fields of one name
        raise InputError(f"{start} cannot be read ({error})") from error
