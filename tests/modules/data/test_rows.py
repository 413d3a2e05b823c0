"""Odd rows of every format are read, refused by their place, or counted; none is passed over in silence."""

import gzip
import io
import json
import random
import tracemalloc

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from memory_file import MemoryFile

from modules.config import DataConfig
from modules.data import csv_rows, json_rows, lines
from modules.data.documents import read_documents
from modules.data.rows import Fields, TextField
from modules.errors import InputError


def read(name, content, **settings):
    """Return the documents, and the field that has counted the rows."""
    data = DataConfig(**settings)
    field = TextField(data)
    documents = "".join(
        piece.text + "\0" * piece.ends_document for piece in read_documents(MemoryFile(name, content), data, field)
    )
    return documents.split("\0")[:-1], field


def texts(name, content, **settings):
    return read(name, content, **settings)[0]


def refusal(name, content, **settings):
    with pytest.raises(InputError) as caught:
        texts(name, content, **settings)
    return str(caught.value)


def parquet(column, name="text"):
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({name: column}), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"id,text\n1,fine\n2,I came, I saw\n", "a.csv:3: 3 fields, but the header has 2; "),
        (b'id,text\n1,"two\nlines"\n2,I came, I saw\n', "a.csv:4: 3 fields, "),
        (b'id,text\n1,"two\nlines",more\n', "a.csv:2: 3 fields, "),
        (b"id,text,label\n1,a line\nbreak,x\n", "a.csv:2: 2 fields, but the header has 3; "),
        (b"id,text\n1,a\n2\n", "a.csv:3: 1 field, "),
        (b"text,text\na,b\n", "a.csv:1: 2 columns are named 'text'"),
        (b'id,text\n1,"abc"def\n', "a.csv:2: text follows a closing quote"),
        (b'id,text\r1,"two\rlines"\r2,"abc"def\r', "a.csv:4: text follows a closing quote"),
        (b'id,text\n1,a\n2,"never\n3,closed\n', "a.csv:3: a double quote is opened in this row and never closed"),
        (b"id;text\n1;a\n", "a.csv:1: no column 'text' in 'id;text', which looks separated by ';'; set data.csv_del"),
        (b"text;other,x\n1;a,b\n", "a.csv:1: no column 'text' in 'text;other,x', which looks separated by ';'"),
        (b"id\tbody\n1\ta\n", "a.csv:1: no column 'text' in 'id\\tbody', which looks separated by '\\t'"),
        (b"id, text\n1,a\n", "a.csv:1: no column 'text'; columns here: 'id', ' text'"),
        (b"id,text\n", "a.csv: it has no rows"),
        (b"PK\x03\x04,\n", "a.csv:1: no column 'text'; columns here: 'PK\\x03\\x04', ''"),
    ],
)
def test_broken_csv_is_refused_with_its_line(content, told):
    assert refusal("a.csv", content).startswith(told)


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b"id,text\n1,trailing comma,\n2,two,,\n", ["trailing comma", "two"]),
        (b"id,text\r1,old mac\r2,line\r", ["old mac", "line"]),
        (b'id,text\r\n1,a\n2,b\r3,"c\r\nd\re\nf"', ["a", "b", "c\r\nd\re\nf"]),
        (b"text\nhello; there\n", ["hello; there"]),
        ("\ufeffid,text\n1,\u2028ä\x0b\n".encode(), ["\u2028ä\x0b"]),
    ],
)
def test_odd_csv_is_read(content, documents):
    assert texts("a.csv", content) == documents


def test_the_delimiter_is_that_of_the_ending_unless_another_is_set():
    assert texts("a.tsv", b'id\ttext\n1\thi, "you"\n') == ['hi, "you"']
    assert texts("a.csv.gz", gzip.compress(b"id|text\n1|a,b\n"), csv_delimiter="|") == ["a,b"]
    for tab in ("\t", "\\t", "tab"):
        assert texts("a.csv", b"id\ttext\n1\ta,b\n", csv_delimiter=tab) == ["a,b"]
    assert texts("a.tsv", b"id;text\n1;a\n", csv_delimiter=";") == ["a"]


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n"])
def test_a_delimiter_that_is_none_is_refused(delimiter):
    with pytest.raises(ValueError, match="must be one character"):
        DataConfig(csv_delimiter=delimiter)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_lines_do_not_depend_on_how_the_text_comes(length):
    text = "a\r\nb\rc\n\n\r\r\nlast"
    pieces = (text[i : i + length] for i in range(0, len(text), length))
    assert list(lines.any_end_lines(pieces, "a.csv")) == ["a\r\n", "b\r", "c\n", "\n", "\r", "\r\n", "last"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[{"text": "a"},\n {"text": "b"', "a.json:2: not JSON (Expecting ',' delimiter)"),
        (b'[{"text": "a"},\n {"text": "b', "a.json:2: not JSON (Unterminated string starting at)"),
        (b'[{"text": "a"}\n {"text": "b"}]', "a.json:2: not JSON (expecting ']')"),
        (b'[\n{"text": "a"},\n]', "a.json:3: not JSON (Expecting value)"),
        (b'[{"text": "a"}\n] x', "a.json:2: not JSON (text after the array)"),
        (b'[{"text": "a"}, 5]', "a.json, row 2: not a JSON object"),
        (b'[{"text": "a"}, {"body": "b"}]', "a.json, row 2: no field 'text'; fields here: 'body'"),
        (b'[\n{"text": "a", "n": %s}]' % (b"1" * 5000), "a.json:2: a number of more than 4300 digits"),
        (b'[\n{"text": "a", "n": %s}]' % (b"[" * 100_000), "a.json:2: JSON nested too deeply"),
        (b"[]", "a.json: it has no rows"),
        (b'{"data": [{"text": "a"}]}', "a.json:1: no field 'text'; fields here: 'data'"),
        (b'[{"text": "a"}, {"text": "\xff"}]', "a.json: byte 26 (0xff) is not UTF-8"),
    ],
)
def test_a_broken_json_array_is_refused_with_its_place(content, told):
    assert refusal("a.json", content).startswith(told)


def test_a_json_array_is_read_however_it_is_laid_out():
    rows = [{"id": 1, "text": '[a], {b} " \\ ü \U0001f600'}, {"text": "c", "n": [{"text": 1.5e3}, None, True]}]
    for indent in (None, 2):
        assert texts("a.json", b"\xef\xbb\xbf \n" + json.dumps(rows, indent=indent).encode()) == [rows[0]["text"], "c"]
    assert texts("a.json", b'{"text": "a"}\n{"text": "b"}\n') == ["a", "b"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 13])
def test_a_json_array_does_not_depend_on_how_it_is_cut(monkeypatch, chunk):
    rows = [{"text": f'é\\u00e9 "{i}" ' * (i % 7 + 1), "n": -1.5e-3 * i, "t": [True, None, {}]} for i in range(40)]
    monkeypatch.setattr(lines, "CHUNK_BYTES", chunk)
    assert texts("a.json", json.dumps(rows, indent=1).encode()) == [row["text"] for row in rows]


def test_a_json_array_is_read_in_little_memory():
    row = json.dumps({"text": "word " * 2000}) + ", "
    content = b"[" + (row * 1500 + row[:-2]).encode() + b"]"
    tracemalloc.start()
    try:
        documents = sum(1 for _ in json_rows.rows_of_json(io.BytesIO(content), "a.json", Fields({"text": "x"})))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert documents == 1501
    assert len(content) > 15 * 10**6
    assert peak < 8 * 2**20


def test_rows_that_never_end_are_refused(monkeypatch):
    for module in (lines, json_rows, csv_rows):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 2**16)
    long = b"x" * 2**17
    assert refusal("a.json", b'[\n{"text": "' + long).startswith("a.json:2: not JSON (a row of 65536 characters or m")
    assert refusal("a.jsonl", b'\n{"text": "' + long).startswith("a.jsonl:2: a line of 65536 bytes or more")
    assert refusal("a.csv", b"text\n" + long).startswith("a.csv:2: a line of 65536 bytes or more")
    told = refusal("a.csv", b'text\nfine\n"' + b"line\n" * 2**15)
    assert told.startswith("a.csv:3: a field of 65536 characters or more; is a double quote never closed?")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"n": %s, "text": "a"}' % (b"7" * 5000), "a.jsonl:2: a number of more than 4300 digits"),
        (b'{"text": "a", "text": "b"}', "a.jsonl:2: two fields are named 'text'"),
        (b'["a"]', "a.jsonl:2: not a JSON object"),
        (b"5", "a.jsonl:2: not a JSON object"),
        (b"null", "a.jsonl:2: not a JSON object"),
        (b'{"text": ["a"]}', "a.jsonl:2: field 'text' holds a list, not text"),
        (b'{"text": true}', "a.jsonl:2: field 'text' holds true or false, not text"),
        (b'{"text": {"en": "a"}}', "a.jsonl:2: field 'text' holds an object, not text"),
    ],
)
def test_an_odd_line_of_json_is_refused_with_its_number(line, told):
    assert refusal("a.jsonl", b'{"text": "fine"}\n' + line).startswith(told)


def test_another_field_of_the_same_name_further_in_is_no_mistake():
    assert texts("a.jsonl", b'{"text": "a", "meta": {"text": "b"}}') == ["a"]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b'{"text": "a", "te\\u0078t": "b"}', "text"),
        (b'{"a.b": "a", "a.b": "b"}', "a.b"),
        (b'{"a": {"b": "a", "\\u0062": "b"}}', "a.b"),
        (b'{"a": {"b": "a"}, "a": {"c": "b"}}', "a.b"),
    ],
)
def test_a_field_twice_on_the_way_to_the_text_is_refused(line, field):
    assert "a.jsonl:1: two fields are named" in refusal("a.jsonl", line, text_field=field)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b'{"text": "a", "meta": {"text": 1, "text": 2}}', "text"),
        (b'{"a": {"b": "a"}, "b": 1, "b": 2}', "a.b"),
        (b'{"text": "a", "n": {"\\u0061": 1, "a": 2}}', "text"),
    ],
)
def test_a_field_twice_elsewhere_is_no_mistake(line, field):
    assert texts("a.jsonl", line, text_field=field) == ["a"]


def test_a_quoted_header_with_another_delimiter_is_explained():
    told = refusal("a.csv", b'"id";"text"\n1;"a"\n')
    assert told.endswith("or set data.csv_delimiter=';' if that separates columns")
    assert texts("a.csv", b'"id";"text"\n1;"a"\n', csv_delimiter=";") == ["a"]


NESTED = [{"doc": {"text": "a"}}, {"doc": {"lang": "en"}}, {"doc": None}, {"doc": {"text": ""}}, {"doc": {"text": "b"}}]
WITHOUT_TEXT = {
    "a.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in NESTED),
    "a.json": json.dumps(NESTED).encode(),
    "a.parquet": parquet([row["doc"] for row in NESTED], "doc"),
    "a.csv": b"id,doc.text\n1,a\n2,\n3,\n4,\n5,b\n",
}


@pytest.mark.parametrize("name", WITHOUT_TEXT)
def test_rows_without_text_are_refused_or_left_out_and_counted(name):
    place = {"a.jsonl": "a.jsonl:2", "a.csv": "a.csv:3"}.get(name, f"{name}, row 2")
    told = refusal(name, WITHOUT_TEXT[name], text_field="doc.text")
    assert told.startswith(place)
    assert told.endswith("data.missing=skip, which leaves rows without text out")
    documents, field = read(name, WITHOUT_TEXT[name], text_field="doc.text", missing="skip")
    assert documents == ["a", "b"]
    assert (field.num_left_out, field.num_rows) == (3, 5)
    assert field.left_out_line().startswith(f"left out 3 of 5 rows, which have no text; the first is {place}: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"x": 1}\n{"doc": null}\n'),
        ("a.json", b'[{"x": 1}, {"doc": null}]'),
        ("a.csv", b"doc.text,x\n,1\n,2\n"),
        ("a.parquet", parquet(pa.array([None, {"text": ""}], pa.struct({"text": pa.string()})), "doc")),
    ],
)
def test_a_file_whose_rows_are_all_left_out_is_refused(name, content):
    told = refusal(name, content, text_field="doc.text", missing="skip")
    assert told.startswith(f"{name}: none of its 2 rows has text in field 'doc.text'")


@pytest.mark.parametrize("column", [["flat"], [{"other": "a"}], [[{"text": "a"}]], [None]])
def test_a_parquet_column_without_the_nested_field_is_refused(column):
    told = refusal("a.parquet", parquet(column, "doc"), text_field="doc.text", missing="skip")
    assert told.startswith("a.parquet: no column 'doc.text'; columns here: 'doc'")


def test_a_field_with_a_dot_in_its_name_is_found_before_a_nested_one():
    assert texts("a.jsonl", b'{"a.b": "flat", "a": {"b": "nested"}}', text_field="a.b") == ["flat"]
    assert texts("a.parquet", parquet(["flat"], "a.b"), text_field="a.b") == ["flat"]
    told = refusal("a.jsonl", b'{"a": {"c": "nested"}, "n": 1}', text_field="a.b")
    assert "fields here: 'a.c', 'n'" in told


@pytest.mark.parametrize(
    ("column", "documents"),
    [
        (pa.array(["a", "é"], pa.large_string()), ["a", "é"]),
        (pa.array(["a", "é"], pa.string_view()), ["a", "é"]),
        (pa.array(["a", "a"]).dictionary_encode(), ["a", "a"]),
        (pa.array([b"a", "é".encode()], pa.binary()), ["a", "é"]),
    ],
)
def test_every_parquet_column_of_text_is_read(column, documents):
    assert texts("a.parquet", parquet(column)) == documents


FAR = pa.array([2**52], pa.timestamp("ms"))
"""A time in the year 144,683, for which Python has no value."""


def test_a_parquet_field_is_read_at_any_depth_and_beside_any_other():
    odd = pa.StructArray.from_arrays([pa.array(["a"]), FAR], ["text", "when"])
    assert texts("a.parquet", parquet(odd, "doc"), text_field="doc.text") == ["a"]
    assert texts("a.parquet", parquet([{"b": {"c": "a"}}], "a"), text_field="a.b.c") == ["a"]


def test_a_parquet_column_of_times_is_refused():
    assert refusal("a.parquet", parquet(FAR)).startswith("a.parquet: column 'text' holds timestamp[ms], not text")


def test_odd_parquet_is_refused_with_file_and_row():
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"], pa.binary()).buffers())
    assert refusal("a.parquet", parquet(bad)) == "a.parquet, row 2: field 'text' is not UTF-8"
    binary = pa.array([b"ok", b"a\xff"], pa.binary())
    assert refusal("a.parquet", parquet(binary)) == "a.parquet, row 2: field 'text' is not UTF-8 at byte 1"
    numbers = [str(random.Random(i).random()) for i in range(1000)]
    damaged = bytearray(parquet(numbers))
    damaged[40:80] = b"\xff" * 40
    assert refusal("a.parquet", bytes(damaged)).startswith("a.parquet: not a readable Parquet file (")
    twice = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), twice)
    assert refusal("a.parquet", twice.getvalue()).startswith("a.parquet: 2 columns are named 'text'")


@pytest.mark.parametrize(
    ("name", "content", "looks_like"),
    [
        ("a.txt", gzip.compress(b"text", mtime=0), "gzip (.gz)"),
        ("a.jsonl", zstandard.compress(b'{"text": "a"}'), "zstandard (.zst)"),
        ("a.txt.gz", zstandard.compress(b"text"), "zstandard (.zst)"),
        ("a.jsonl", parquet(["a"]), "Parquet (.parquet)"),
        ("a.csv", b"PK\x03\x04\n", "a ZIP archive"),
        ("a.csv", "text\na\n".encode("utf-16"), "UTF-16 or UTF-32"),
    ],
)
def test_a_file_of_another_format_than_its_name_says_is_told(name, content, looks_like):
    assert refusal(name, content).endswith(f"; it looks like {looks_like}, whatever its name says")


def test_a_damaged_file_of_the_format_that_its_name_says_is_told_without_that():
    assert "looks like" not in refusal("a.txt.gz", gzip.compress(b"text" * 99)[:-9])
    assert "looks like" not in refusal("a.parquet", parquet(["a"] * 999)[:-9])


def test_zstandard_windows_are_read_up_to_the_bound():
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(b"text") + packer.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 2**28
    assert texts("a.txt.zst", packed) == ["text"]
    told = refusal("a.txt.zst", packed, zstd_window_bytes=2**27)
    assert told.startswith("a.txt.zst: needs a larger window than data.zstd_window_bytes=134217728; raise that")
