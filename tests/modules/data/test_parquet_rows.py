"""Rows of Parquet come without their whole row group being read first, however large that is."""

import io

import pyarrow as pa
import pyarrow.parquet

from modules.data.parquet_rows import rows_of_parquet
from modules.data.rows import Fields


class NotedReads(io.BytesIO):
    """Counts the bytes that are read."""

    num_read = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.num_read += len(found)
        return found


def test_first_row_of_a_large_row_group_comes_before_most_of_it_is_read() -> None:
    stream = NotedReads()
    texts = [f"{number} ".ljust(4096, "x") for number in range(5000)]
    table = pa.table({"text": texts})
    pyarrow.parquet.write_table(table, stream, row_group_size=len(texts), compression="none", use_dictionary=False)
    num_bytes = len(stream.getvalue())
    stream.num_read = 0
    stream.seek(0)
    rows = rows_of_parquet(stream, "a.parquet", Fields({"text": "data.text_field"}))
    found = [next(rows).values["text"]]
    assert stream.num_read < num_bytes / 4
    assert found + [row.values["text"] for row in rows] == texts
    assert stream.num_read < 1.5 * num_bytes
