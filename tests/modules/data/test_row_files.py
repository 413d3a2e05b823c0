"""Rows with any set of fields, from every format: typed, whole, or refused by their place and the setting to change."""

import datetime
import gzip
import io
import json
import sys
import types
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from memory_file import MemoryFile

from modules.config import DataConfig
from modules.data.hub import read_hub_rows
from modules.data.row_files import read_rows
from modules.data.rows import Fields
from modules.errors import InputError

FIELDS = Fields({"text": "task.text_field", "label": "task.label_field"}, {"meta.id": "task.id_field"})
MESSAGES = Fields({"messages": "task.messages_field"})
TURNS = [{"role": "user", "content": "Grüß dich 😀"}, {"role": "assistant", "content": ""}]


def rows(name, content, fields=FIELDS, **settings):
    return list(read_rows(MemoryFile(name, content), DataConfig(**settings), fields))


def values(name, content, fields=FIELDS, **settings):
    return [row.values for row in rows(name, content, fields, **settings)]


def refusal(name, content, fields=FIELDS, **settings):
    with pytest.raises(InputError) as caught:
        rows(name, content, fields, **settings)
    return str(caught.value)


def jsonl(*objects):
    return b"".join(json.dumps(item).encode() + b"\n" for item in objects)


def parquet(**columns):
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), stream, row_group_size=2)
    return stream.getvalue()


TYPED = [
    {"text": "größe, \u2028 \x00", "label": 1, "meta": {"id": None}, "other": "not asked for"},
    {"text": 'a "b"\nc', "label": 2**62, "meta": {"id": "x"}, "other": ""},
    {"text": "", "label": -3, "meta": {"id": ""}, "other": None},
]
ASKED = [{"text": row["text"], "label": row["label"], "meta.id": row["meta"]["id"]} for row in TYPED]
FORMATS = {
    "a.jsonl": jsonl(*TYPED),
    "a.json": json.dumps(TYPED, indent=1).encode(),
    "a.parquet": parquet(**{name: [row[name] for row in TYPED] for name in TYPED[0]}),
}
PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("name", FORMATS)
def test_rows_keep_their_types_and_hold_what_was_asked_for_alone(name, packing):
    assert values(name + packing, PACKERS[packing](FORMATS[name])) == ASKED


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
def test_columns_of_a_table_are_found_by_name_in_any_order(ending):
    delimiter = "\t" if ending == ".tsv" else ","
    header = delimiter.join(["label", "other", "meta.id", "text"])
    content = PACKERS[ending[4:]](f'{header}\r\n1{delimiter}x{delimiter}{delimiter}"a\nb"{delimiter}\r\n'.encode())
    assert values(f"a{ending}", content) == [{"text": "a\nb", "label": "1", "meta.id": ""}]


def test_a_row_says_where_it_is():
    table = b'text,label\n"two\nlines",x\nb,y\n'
    assert [row.location for row in rows("a.csv", table)] == ["a.csv:2", "a.csv:4"]
    assert [row.location for row in rows("d/a.jsonl", b"\n" + jsonl(*TYPED[:2]))] == ["d/a.jsonl:2", "d/a.jsonl:3"]
    assert [row.location for row in rows("a.json", FORMATS["a.json"])] == [f"a.json, row {n}" for n in (1, 2, 3)]
    many = parquet(text=["a"] * 150, label=["b"] * 150)
    assert [row.location for row in rows("a.parquet", many)] == [f"a.parquet, row {n + 1}" for n in range(150)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl({"messages": TURNS}, {"messages": []})),
        ("a.json", json.dumps([{"messages": TURNS}, {"messages": []}]).encode()),
        ("a.parquet", parquet(messages=[TURNS, []])),
        ("a.parquet.gz", gzip.compress(parquet(messages=pa.array([TURNS, []]).cast(pa.large_list(pa.struct(
            [("role", pa.string()), ("content", pa.large_string())])))), mtime=0)),
    ],
)  # fmt: skip
def test_a_conversation_comes_as_a_list_of_objects(name, content):
    assert values(name, content, MESSAGES) == [{"messages": TURNS}, {"messages": []}]


def test_a_field_that_a_row_lacks_is_left_out_and_null_is_not():
    first, second = rows("a.jsonl", jsonl({"text": None, "meta": 5, "labels": {"x": 1}}, {"label": None, "text": "a"}))
    assert first.values == {"text": None}
    assert first.no_field("label") == "a.jsonl:1: no field 'label'; fields here: 'text', 'meta', 'labels.x'"
    assert second.values == {"label": None, "text": "a"}
    nested = parquet(text=["a"] * 3, label=["b"] * 3, meta=pa.array([{"id": 1}, {"id": None}, None]))
    assert [found["meta.id"] for found in values("a.parquet", nested)] == [1, None, None]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl({"text": "a", "label": "b"})),
        ("a.csv", b"text,label,meta\na,b,c\n"),
        ("a.parquet", parquet(text=["a"], label=["b"])),
        ("a.parquet", parquet(text=["a"], label=["b"], meta=["c"])),
    ],
)
def test_an_optional_field_may_be_absent(name, content):
    assert values(name, content) == [{"text": "a", "label": "b"}]


def test_rows_are_counted_where_no_field_that_was_asked_for_is_there():
    assert values("a.parquet", parquet(other=["a"] * 70), Fields({}, {"text": "x"})) == [{}] * 70


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"text,id\na,1\n", "a.csv:1: no column 'label'; columns here: 'text', 'id'; set task.label_field"),
        ("a.csv", b"text;label\na;b\n", "a.csv:1: no column 'text' in 'text;label', which looks separated by ';'; set"),
        ("a.csv", b"text,label,label\na,b,c\n", "a.csv:1: 2 columns are named 'label'"),
        ("a.csv", b"text,label,meta.id,meta.id\na,b,c,d\n", "a.csv:1: 2 columns are named 'meta.id'"),
        ("a.csv", b"text,label\na,b,c\n", "a.csv:2: 3 fields, but the header has 2"),
        ("a.csv", b"text,label\na\n", "a.csv:2: 1 field, but the header has 2"),
        ("a.csv", b'text,label\na,"b\n', "a.csv:2: a double quote is opened in this row and never closed"),
        ("a.csv", b"text,label\n", "a.csv: it has no rows; remove it or leave it out"),
        ("a.csv", b"text,label\na\xff,b\n", "a.csv: byte 12 (0xff) is not UTF-8"),
        ("a.jsonl", b"\n", "a.jsonl: it has no rows"),
        ("a.json", b"[]", "a.json: it has no rows"),
        ("a.jsonl", b'{"text": "a\xff"}', "a.jsonl: byte 11 (0xff) is not UTF-8"),
        ("a.jsonl", b"[1]", 'a.jsonl:1: not a JSON object; each row must be like {"text": …, "label": …}'),
        ("a.jsonl", b'{"text": "a", "label": 1, "label": 2}', "a.jsonl:1: two fields are named 'label'"),
        ("a.jsonl", b'{"text": 1, "meta": {"id": 1, "\\u0069d": 2}}', "a.jsonl:1: two fields are named 'id'"),
        ("a.json", b'[{"meta": {"id": 1}, "meta": 2}]', "a.json, row 1: two fields are named 'meta'"),
        ("a.jsonl", b'{"label": %s}' % (b"1" * 5000), "a.jsonl:1: a number of more than 4300 digits"),
        ("a.jsonl", b'{"label": %s' % (b"[" * 100_000), "a.jsonl:1: JSON nested too deeply"),
        ("a.jsonl", b'{"text": "a", "label": "\\ud800"}', "a.jsonl:1: field 'label' holds half a surrogate pair at c"),
        ("a.parquet", parquet(text=["a"]), "a.parquet: no column 'label'; columns here: 'text'; set task.label_field"),
        ("a.parquet", parquet(text=["a"], label=[datetime.date(2020, 1, 1)]),
         "a.parquet: column 'label' holds date32[day], not text; set task.label_field"),
        ("a.parquet", parquet(text=["a", "b"], label=[b"a", b"a\xff"]),
         "a.parquet, row 2: field 'label' is not UTF-8 at byte 1"),
        ("a.parquet", b"PAR1 nonsense", "a.parquet: not a readable Parquet file ("),
        ("a.jsonl.gz", gzip.compress(jsonl(*TYPED), mtime=0)[:-12], "a.jsonl.gz: damaged compressed data ("),
        ("a.csv.zst", zstandard.compress(b"text,label\na,b\n" * 99)[:-9], "a.csv.zst: damaged compressed data ("),
        ("a.txt", b"text", "a.txt: plain text has no rows with fields; rows are read from .jsonl .json .csv .tsv .par"),
        ("a.docx", b"text", "a.docx: unknown ending '.docx'"),
    ],
)  # fmt: skip
def test_an_odd_file_is_refused_with_its_place_and_the_setting_of_its_user(name, content, told):
    assert refusal(name, content).startswith(told)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b'[{"role": "user", "content": "a", "content": "b"}]', "two fields are named 'content'"),
        (b'[[{"a": {"b": 1, "\\u0062": 2}}]]', "two fields are named 'b'"),
        (b'[{"role": "user", "content": "ab\\udc00"}]', "field 'messages' holds half a surrogate pair at character 2"),
        (b'[{"\\ud83d": "user"}]', "field 'messages' holds half a surrogate pair at character 0"),
        (b"[" * 600 + b"]" * 600, "field 'messages' is nested too deeply"),
        (b'{"a":' * 400 + b"1" + b"}" * 400, None),
    ],
)  # fmt: skip
def test_what_is_odd_within_a_value_is_refused_at_any_depth(value, told):
    line = b'{"messages": ' + value + b"}"
    if told is None:
        assert len(rows("a.jsonl", line, MESSAGES)) == 1
    else:
        assert refusal("a.jsonl", line, MESSAGES).startswith(f"a.jsonl:1: {told}")
        assert refusal("a.json", b"[" + line + b"]", MESSAGES).startswith(f"a.json, row 1: {told}")
    assert len(rows("a.jsonl", line, Fields({}, {"text": "x"}))) == 1


def test_the_same_name_in_every_object_of_a_list_is_no_mistake():
    assert values("a.jsonl", jsonl({"messages": TURNS * 3, "n": TURNS}), MESSAGES) == [{"messages": TURNS * 3}]


def nested_parquet(values):
    return parquet(messages=pa.ListArray.from_arrays([0, 1, 2], values))


def test_odd_values_within_parquet_are_read_or_refused_with_their_row():
    far = pa.StructArray.from_arrays([pa.array([0, 2**52], pa.timestamp("ms"))], ["when"])
    told = refusal("a.parquet", nested_parquet(far), MESSAGES)
    assert told.startswith("a.parquet, row 2: field 'messages' cannot be read (")
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"], pa.binary()).buffers())
    told = refusal("a.parquet", nested_parquet(pa.StructArray.from_arrays([bad], ["content"])), MESSAGES)
    assert told == "a.parquet, row 2: field 'messages' is not UTF-8"
    twice = pa.StructArray.from_arrays([pa.array(["a", "b"]), pa.array(["c", "d"])], ["content", "content"])
    told = refusal("a.parquet", nested_parquet(twice), MESSAGES)
    assert told.startswith("a.parquet, row 1: field 'messages' cannot be read (")
    assert "duplicate" in told
    known = [{"when": datetime.datetime(2020, 1, 2), "cost": Decimal("1.50"), "raw": "é".encode()}]
    read = values("a.parquet", parquet(messages=[known]), MESSAGES)
    assert read == [{"messages": [{"when": "2020-01-02 00:00:00", "cost": "1.50", "raw": "é"}]}]


def test_a_parquet_struct_and_a_field_within_it_are_both_read():
    content = parquet(a=[{"b": 1, "c": "x"}, None], **{"a.c": ["flat", None]})
    fields = Fields({"a": "s", "a.b": "s", "a.c": "s"})
    assert values("a.parquet", content, fields) == [
        {"a": {"b": 1, "c": "x"}, "a.b": 1, "a.c": "flat"},
        {"a": None, "a.b": None, "a.c": None},
    ]


def test_another_delimiter_reads_every_column():
    assert values("a.csv", b"label;text\nx;a,b\n", csv_delimiter=";") == [{"text": "a,b", "label": "x"}]


def hub_rows(monkeypatch, load_dataset, fields=FIELDS):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    data = DataConfig(source="huggingface", path=("owner/name",), revision="c0ffee", subset="sub")
    return list(read_hub_rows(data, "test", "data.hub_test_split", fields))


def test_rows_of_a_hub_data_set_are_read_like_those_of_files(monkeypatch):
    asked = []

    def load_dataset(*names, **options):
        asked.append((*names, options))
        return iter([TYPED[0], {"text": "b", "time": object()}])

    first, second = hub_rows(monkeypatch, load_dataset)
    assert (first.values, first.location) == (ASKED[0], "owner/name (test), row 1")
    assert second.no_field("label") == "owner/name (test), row 2: no field 'label'; fields here: 'text', 'time'"
    assert asked == [("owner/name", "sub", {"split": "test", "revision": "c0ffee", "streaming": True})]


def test_a_hub_value_that_no_task_can_use_is_refused(monkeypatch):
    row = {"text": "a", "label": types.SimpleNamespace()}
    told = r"^owner/name \(test\), row 1: field 'label' holds SimpleNamespace, which is neither text nor a number"
    with pytest.raises(InputError, match=told):
        hub_rows(monkeypatch, lambda *_, **__: iter([row]))


def test_a_hub_split_that_is_not_there_names_its_setting(monkeypatch):
    def load_dataset(*_, **__):
        raise ValueError("Bad split: test")

    with pytest.raises(InputError, match=r"Bad split: test; check the name, data.subset, data.hub_test_split and"):
        hub_rows(monkeypatch, load_dataset)
