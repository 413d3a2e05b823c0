import csv
import gzip
import io
import json
import tracemalloc
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from memory_file import MemoryFile

from modules.config import DataConfig
from modules.data.documents import PIECE_CHARS, Piece, cut_pieces, read_documents
from modules.data.rows import TextField
from modules.data.source_files import check_formats
from modules.errors import InputError


def texts(name, content, field="text", **settings):
    documents, current = [], ""
    data = DataConfig(text_field=field, **settings)
    for piece in read_documents(MemoryFile(name, content), data, TextField(data)):
        current += piece.text
        if piece.ends_document:
            documents.append(current)
            current = ""
    assert current == ""
    return documents


def message(name, content, field="text", **settings):
    with pytest.raises(InputError) as caught:
        texts(name, content, field, **settings)
    return str(caught.value)


def csv_content(rows, delimiter=","):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerows([["id", "text"], *enumerate(rows)])
    return stream.getvalue().encode()


def parquet_content(rows, **options):
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"id": range(len(rows)), "text": rows}), stream, **options)
    return stream.getvalue()


def jsonl_content(rows):
    return "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()


ROWS = ["plain", 'quo"ted, with\nnewline', "größe ☃ \U0001f600", "x " * 20000]
CONTENTS = {
    ".jsonl": jsonl_content(ROWS),
    ".json": json.dumps([{"id": i, "text": row} for i, row in enumerate(ROWS)]).encode(),
    ".csv": csv_content(ROWS),
    ".tsv": csv_content(ROWS, "\t"),
    ".parquet": parquet_content(ROWS),
}
PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("ending", CONTENTS)
def test_rows_of_every_format_come_back_unchanged(ending, packing):
    assert texts(f"a{ending}{packing}", PACKERS[packing](CONTENTS[ending])) == ROWS


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("ending", [".txt", ".md", ".rst", ".py", ".TXT"])
def test_a_plain_text_file_is_one_document_with_its_line_ends(ending, packing):
    text = "line\r\nother\rthird\n ümlaut" * 3000
    assert texts(f"folder.d/a{ending}{packing}", PACKERS[packing](text.encode())) == [text]


def test_a_byte_order_mark_is_left_out():
    assert texts("a.txt", b"\xef\xbb\xbfhello") == ["hello"]
    assert texts("a.jsonl", b"\xef\xbb\xbf" + jsonl_content(["hello"])) == ["hello"]


def test_blank_lines_are_passed_over():
    assert texts("a.jsonl", b'\n{"text": "a"}\n\n  \n{"text": "b"}') == ["a", "b"]
    assert texts("a.csv", b"\n\ntext\na\n\nb\n\n") == ["a", "b"]


@given(st.lists(st.text(alphabet="ab \n\té☃", max_size=50), max_size=50), st.integers(1, 40))
def test_pieces_join_to_the_text_and_do_not_depend_on_the_chunks(parts, repeats):
    text = "".join(parts) * repeats * 10
    pieces = list(cut_pieces([text]))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True] * bool(text)
    assert all(len(piece.text) <= PIECE_CHARS for piece in pieces)
    assert pieces == list(cut_pieces(text[i : i + 777] for i in range(0, len(text), 777)))


def test_pieces_are_cut_before_a_single_space_between_words():
    first, second = cut_pieces(["word  \n " * 1000 + "two words" + "x" * (PIECE_CHARS - 8010) + "  y" * 500])
    assert first == Piece("word  \n " * 1000 + "two", False)
    assert second.text.startswith(" wordsx")


def test_text_without_gaps_is_cut_at_a_line_end_or_else_anywhere():
    assert next(cut_pieces(["ab\n" * PIECE_CHARS])).text.endswith("ab\n")
    assert len(next(cut_pieces(["字" * 2 * PIECE_CHARS])).text) == PIECE_CHARS


@pytest.mark.parametrize("packing", PACKERS)
def test_an_undecodable_byte_is_named_with_file_and_offset(packing):
    good = "é".encode() * 1_000_003
    told = message(f"bad.txt{packing}", PACKERS[packing](good + b"\xff" + good))
    assert told.startswith(f"bad.txt{packing}: byte 2000006 (0xff) is not UTF-8")


def test_a_cut_off_character_at_the_end_is_named():
    assert "cut.txt: byte 3 (0xc3)" in message("cut.txt", b"abc\xc3")


def test_an_undecodable_row_is_named_with_its_offset_in_the_file():
    assert "a.jsonl: byte 17 (0xff)" in message("a.jsonl", b'{"text": "a"}\n{"a\xff')
    assert "a.csv: byte 6 (0xff)" in message("a.csv", b"text\na\xff\n")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz", "a.txt.zst"])
def test_an_empty_file_is_refused(name):
    packing = PACKERS[name[5:]] if name.startswith("a.txt.") else bytes
    reason = "the file is empty" if ".txt" in name else "it has no rows"
    assert message(name, packing(b"")) == f"{name}: {reason}; remove it or leave it out of data.path"


def test_a_line_that_is_no_json_is_named():
    assert message("a.jsonl", b'{"text": "a"}\n\n{"text": \n').startswith("a.jsonl:3: not JSON")
    assert message("a.jsonl", b"[" * 100_000).startswith("a.jsonl:1: ")
    assert message("a.jsonl", b"[1]\n").startswith("a.jsonl:1: not a JSON object")


def test_a_row_without_its_text_is_named_with_the_fields_it_has():
    told = message("a.jsonl", b'{"text": "a"}\n{"body": "b", "id": 1}\n')
    assert told.startswith("a.jsonl:2: no field 'text'; fields here: 'body', 'id'; set data.text_field")
    assert message("a.jsonl", b'{"text": 5}').startswith("a.jsonl:1: field 'text' holds a number, not text")
    told = message("a.csv", CONTENTS[".csv"], "body")
    assert told.startswith("a.csv:1: no column 'body'; columns here: 'id', 'text'")
    told = message("a.parquet", CONTENTS[".parquet"], "body")
    assert told.startswith("a.parquet: no column 'body'; columns here: 'id', 'text'")
    assert message("a.parquet", CONTENTS[".parquet"], "id").startswith("a.parquet, row 1: field 'id' holds a number")


def test_half_a_surrogate_pair_is_refused():
    assert "a.jsonl:1: field 'text' holds half a surrogate pair" in message("a.jsonl", b'{"text": "ab\\ud800"}')


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_damaged_compressed_files_are_refused(packing):
    packed = PACKERS[packing](json.dumps([str(i) for i in range(5000)]).encode())
    assert "damaged" in message(f"a.txt{packing}", packed[: len(packed) // 2])
    assert "damaged" in message(f"a.txt{packing}", b"this was never packed")


def test_zstandard_files_of_several_frames_are_read_whole():
    packed = zstandard.compress(b"one ") + zstandard.compress(b"two")
    assert texts("a.txt.zst", packed) == ["one two"]


def test_a_damaged_parquet_file_is_refused():
    assert "not a readable Parquet file" in message("a.parquet", b"PAR1 nonsense")


def test_unknown_endings_are_all_named_before_anything_is_read():
    files = [MemoryFile(name, b"x") for name in ("a.txt", "b.docx", "c", "d.gz")]
    with pytest.raises(InputError) as caught:
        check_formats(files)
    told = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in told] == ["b.docx", "c", "d.gz"]
    assert "unknown ending '.docx'; known are .txt" in told[0]


@dataclass(frozen=True)
class EndlessFile:
    name: str
    num_bytes: int

    def open(self):
        return io.BufferedReader(_Repeated(self.num_bytes))


class _Repeated(io.RawIOBase):
    def __init__(self, left):
        self.left = left

    def readable(self):
        return True

    def readinto(self, buffer):
        count = min(len(buffer), self.left)
        buffer[:count] = (b"some text " * (count // 10 + 1))[:count]
        self.left -= count
        return count


def test_one_huge_text_is_read_in_little_memory():
    data = DataConfig()
    field = TextField(data)
    tracemalloc.start()
    try:
        num_chars = sum(len(piece.text) for piece in read_documents(EndlessFile("a.txt", 50_000_000), data, field))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_chars == 50_000_000
    assert peak < 20 * 2**20
