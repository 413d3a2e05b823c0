"""Rows of Parquet files, of which a small batch is held at a time."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from modules.data.compression import CHUNK_BYTES, import_package, seekable
from modules.data.rows import TextField
from modules.errors import InputError

_BATCH_ROWS = 64


def parquet_texts(stream: BinaryIO, name: str, field: TextField) -> Iterator[str]:
    """Yield the text of each row.

    Raises:
        InputError: The file is damaged, lacks the field, or a row has no text.
    """
    import_package("pyarrow", "to read .parquet files")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with seekable(stream) as table_stream:
        number = 0
        try:
            table = ParquetFile(table_stream, buffer_size=CHUNK_BYTES)  # a buffer makes it stream within a row group
            column, *inner = _path(table.schema_arrow, field, name)
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=[field.name]):
                for value in _values(batch.column(column), inner):
                    number += 1
                    yield field.text({field.name: value}, f"{name}, row {number}")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}, row {number + 1}: field {field.name!r} is not UTF-8") from error
        except (ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the storage's; Arrow's own errors of this type have no number
            raise InputError(f"{name}: not a readable Parquet file ({error})") from error


def _path(schema: Any, field: TextField, name: str) -> list[str]:
    """Return the column that holds the field, and the names that lead to the field within it."""
    from pyarrow.types import is_temporal

    path = [field.name] if field.name in schema.names else field.parts
    if schema.names.count(path[0]) > 1:
        raise InputError(f"{name}: {schema.names.count(path[0])} columns are named {path[0]!r}; rename the others")
    kind = _kind(schema, path) if path[0] in schema.names else None
    if kind is None:
        found = ", ".join(map(repr, schema.names[:8])) or "none"
        raise InputError(f"{name}: no column {field.name!r}; columns here: {found}; set data.text_field")
    if is_temporal(kind):  # Python has no value for some of them
        raise InputError(f"{name}: column {field.name!r} holds {kind}, not text; set data.text_field")
    return path


def _kind(schema: Any, path: list[str]) -> Any:
    """Return the type of a field; None if there is none."""
    kind = schema.field(path[0]).type
    for part in path[1:]:
        if getattr(kind, "get_field_index", lambda _: -1)(part) < 0:  # structs alone have it
            return None
        kind = kind.field(part).type
    return kind


def _values(column: Any, inner: list[str]) -> Iterator[Any]:
    compute = import_package("pyarrow.compute", "to read .parquet files")
    values = compute.struct_field(column, inner) if inner else column
    try:
        yield from values.to_pylist()
    except UnicodeDecodeError:
        # one by one, so that the row of the error is known
        yield from (value.as_py() for value in values)
