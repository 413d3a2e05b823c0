"""Every row belongs to one split: the one that it says, that of its file, or a share of train by its content."""

import io
import json
import sys
import types
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet
import pytest

from modules.config import DataConfig
from modules.data.rows import Fields
from modules.data.splits import SplitRows
from modules.errors import InputError

TEXT = Fields({"text": "task.text_field"}, {"note": "task.note_field"})


@dataclass
class MemoryFile:
    name: str
    content: bytes
    num_opened: int = 0

    @property
    def num_bytes(self):
        return len(self.content)

    def open(self):
        self.num_opened += 1
        return io.BytesIO(self.content)


def jsonl(name, *rows):
    return MemoryFile(name, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def marked(*splits):
    return [{"text": f"{number}", "split": split} for number, split in enumerate(splits)]


def unmarked(number, first=0):
    return [{"text": f"{n}"} for n in range(first, first + number)]


def split_rows(train, val=(), test=(), fields=TEXT, **settings):
    config = DataConfig(source="files", path=("a",), **settings)
    return SplitRows({"train": train, "val": val, "test": test}, config, fields)


def splits(*args, **settings):
    return [(split, row.values["text"]) for split, row in split_rows(*args, **settings)]


def refusal(*args, **settings):
    with pytest.raises(InputError) as caught:
        splits(*args, **settings)
    return str(caught.value)


def test_a_row_belongs_to_the_split_that_it_says_in_any_spelling():
    said = ["train", "TEST", " Dev", "valid", "validation", "val", "test"]
    expected = ["train", "test", "val", "val", "val", "val", "test"]
    assert [split for split, _ in splits([jsonl("a.jsonl", *marked(*said))])] == expected


def test_the_field_of_the_split_is_in_a_row_only_if_it_was_asked_for():
    files = [jsonl("a.jsonl", *marked("train", "val"))]
    assert [row.values for _, row in split_rows(files)] == [{"text": "0"}, {"text": "1"}]
    asked = Fields({"text": "x", "split": "x"})
    assert [row.values["split"] for _, row in split_rows(files, fields=asked)] == ["train", "val"]


def test_the_split_is_read_from_another_or_a_nested_field():
    row = {"text": "a", "meta": {"part": "test"}, "split": "into three"}
    assert splits([jsonl("a.jsonl", row)], split_field="meta.part") == [("test", "a")]
    table = MemoryFile("a.csv", b"part,text\ntest,a\nval,b\n")
    assert splits([table], split_field="part") == [("test", "a"), ("val", "b")]
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": ["a", "b"], "part": ["dev", "train"]}), stream)
    assert splits([MemoryFile("a.parquet", stream.getvalue())], split_field="part") == [("val", "a"), ("train", "b")]


@pytest.mark.parametrize("value", ["holdout", "into two", 1, True, ["train"], "trains"])
def test_a_split_that_there_is_not_is_refused_with_its_row(value):
    told = refusal([jsonl("a.jsonl", *marked("train", "val", value))])
    assert told.startswith(f"a.jsonl:3: field 'split' holds {value!r}, which is no split; known are train, val, valid,")
    assert told.endswith("or data.split_field=null")


def test_a_field_of_the_name_split_that_says_something_else_is_left_alone_if_asked():
    rows = [{"text": "a", "split": "into two"}]
    assert splits([jsonl("a.jsonl", *rows)], split_field=None, val_fraction=0) == [("train", "a")]


@pytest.mark.parametrize("nothing", [{}, {"split": None}, {"split": ""}, {"split": " "}])
@pytest.mark.parametrize("comes_first", [True, False])
def test_a_row_that_says_no_split_among_those_that_do_is_named(nothing, comes_first):
    without, with_split = jsonl("b.jsonl", {"text": "x"} | nothing), jsonl("a.jsonl", *marked("train", "val", "test"))
    files = [without, with_split] if comes_first else [with_split, without]
    other = "a.jsonl:1"
    told = refusal(files)
    assert told.startswith(f"b.jsonl:1: no split in field 'split', in which {other} has one; write one into every row")


def test_files_of_their_own_are_the_val_and_test_splits_in_order():
    files = [jsonl("a.jsonl", *unmarked(2))], [jsonl("v.jsonl", *unmarked(1, 2))], [jsonl("t.jsonl", *unmarked(1, 3))]
    expected = [("train", "0"), ("train", "1"), ("val", "2"), ("test", "3")]
    assert splits(*files, val_fraction=0.9) == expected


def test_the_field_may_say_the_split_of_a_file_and_nothing_else():
    train, val = [jsonl("a.jsonl", *unmarked(1))], [jsonl("v.jsonl", *marked("validation"), *unmarked(1, 1))]
    assert splits(train, val) == [("train", "0"), ("val", "0"), ("val", "1")]
    for said in ("train", "test"):
        told = refusal(train, [jsonl("v.jsonl", *unmarked(1), *marked(said))])
        assert told.startswith(f"v.jsonl:2: field 'split' says {said}, but the row is in data.val_path; move it, or ")
    told = refusal(train, [], [jsonl("t.jsonl", *marked("dev"))])
    assert told.startswith("t.jsonl:1: field 'split' says val, but the row is in data.test_path")


def test_rows_that_say_val_join_those_of_its_files():
    train, val = [jsonl("a.jsonl", *marked("train", "val"))], [jsonl("v.jsonl", *unmarked(1, 9))]
    assert splits(train, val) == [("train", "0"), ("val", "1"), ("val", "9")]


@pytest.mark.parametrize("marks", [{}, {"split": "train"}])
def test_a_share_of_train_is_held_out_where_no_row_is_val(marks):
    train, test = [row | marks for row in unmarked(2000)], unmarked(500, 3000)
    drawn = splits([jsonl("a.jsonl", *train)], [], [jsonl("t.jsonl", *test)], val_fraction=0.2)
    assert [text for _, text in drawn] == [row["text"] for row in train + test]
    counts = {split: sum(1 for found, _ in drawn if found == split) for split in ("train", "val", "test")}
    assert counts["test"] == 500
    assert 330 < counts["val"] < 470  # 400 and four standard deviations


def test_no_share_is_held_out_of_rows_that_say_test():
    drawn = splits([jsonl("a.jsonl", *marked(*["test"] * 50, *["train"] * 50))], val_fraction=0.5)
    assert {split for split, _ in drawn[:50]} == {"test"}
    assert {split for split, _ in drawn[50:]} == {"train", "val"}


def test_one_row_that_is_val_anywhere_holds_out_no_share():
    rows = marked(*["train"] * 200, "dev")
    assert [split for split, _ in splits([jsonl("a.jsonl", *rows)], val_fraction=0.5)] == ["train"] * 200 + ["val"]


def test_without_a_share_and_without_val_the_split_is_empty():
    assert {split for split, _ in splits([jsonl("a.jsonl", *unmarked(300))], val_fraction=0)} == {"train"}


def test_equal_rows_stay_together_whatever_else_they_have():
    plain = [{"text": f"{n}", "note": {"a": 1, "b": [n]}, "id": n} for n in range(300)]
    turned = [{"id": -n, "note": {"b": [n], "a": 1}, "text": f"{n}"} for n in range(300)]
    drawn = splits([jsonl("a.jsonl", *plain), jsonl("b.jsonl", *turned)], val_fraction=0.5)
    assert drawn[:300] == drawn[300:]
    table = b"note,text\n" + b"".join(b"same,%d\n" % n for n in range(300))
    with_notes = splits([MemoryFile("a.csv", table)], val_fraction=0.5)
    assert with_notes != drawn[:300]  # what was asked for decides, the optional field too


def test_how_a_row_writes_its_split_does_not_decide_whether_it_is_held_out():
    texts = unmarked(100)
    files = [jsonl(f"{mark}.jsonl", *(row | {"split": mark} for row in texts)) for mark in ("train", "TRAIN")]
    drawn = splits(files, val_fraction=0.5)
    assert drawn[:100] == drawn[100:]


def test_the_same_splits_come_at_each_reading():
    file = jsonl("a.jsonl", *marked(*["train"] * 20, "test"))
    rows = split_rows([file], val_fraction=0.3)
    first, second = list(rows), list(rows)
    assert first == second
    assert {split for split, _ in first} == {"train", "val", "test"}
    assert file.num_opened == 3  # once to find that no row is val


@pytest.mark.parametrize(
    ("settings", "times"),
    [({"split_field": None}, [1, 1]), ({"val_fraction": 0}, [1, 1]), ({}, [2, 1]), ({"split_field": "text"}, [2, 1])],
)
def test_no_more_is_searched_for_a_val_row_than_it_takes(settings, times):
    texts = [{"text": "dev"}, {"text": "train"}] if settings.get("split_field") else unmarked(9)
    files = [jsonl("a.jsonl", *texts), jsonl("b.jsonl", *texts)]
    list(split_rows(files, **settings))
    assert [file.num_opened for file in files] == times


def test_rows_are_streamed():
    file = MemoryFile("a.jsonl", b'{"text": "a"}\n{"text": "b"}\nno JSON\n')
    rows = iter(split_rows([file], val_fraction=0))
    assert [next(rows)[1].values["text"] for _ in range(2)] == ["a", "b"]
    with pytest.raises(InputError, match=r"^a.jsonl:3: not JSON"):
        next(rows)


def test_a_required_column_is_named_with_its_setting_before_the_split():
    told = refusal([MemoryFile("a.csv", b"body,split\na,train\n")])
    assert told == "a.csv:1: no column 'text'; columns here: 'body', 'split'; set task.text_field"


HUB = {"train": unmarked(2), "validation": unmarked(1, 2), "test": unmarked(1, 3), "marked": marked("train", "test")}


def hub_splits(monkeypatch, **settings):
    def load_dataset(path, subset, split, **_):
        return iter(HUB[split])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    data = DataConfig(source="huggingface", path=("owner/name",), **settings)
    return [(split, row.values["text"]) for split, row in SplitRows({}, data, TEXT)]


def test_splits_of_a_hub_data_set_are_those_that_are_named(monkeypatch):
    named = {"hub_val_split": "validation", "hub_test_split": "test"}
    expected = [("train", "0"), ("train", "1"), ("val", "2"), ("test", "3")]
    assert hub_splits(monkeypatch, val_fraction=0.9, **named) == expected
    assert hub_splits(monkeypatch, val_fraction=0) == expected[:2]
    assert hub_splits(monkeypatch, hub_split="marked", val_fraction=0) == [("train", "0"), ("test", "1")]
    with pytest.raises(InputError, match=r"^owner/name \(marked\), row 1: .* says train, .* in data.hub_test_split;"):
        hub_splits(monkeypatch, hub_test_split="marked")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"val_path": "v.jsonl"}, "data.val_path needs data=files"),
        ({"source": "huggingface", "path": "a", "test_path": "t"}, "a split of a hub data set is data.hub_test_split"),
        ({"source": "files", "path": "a", "hub_val_split": "v"}, "files of a split are data.val_path"),
        ({"source": "huggingface", "path": "a", "hub_test_split": "train"}, "must be different splits"),
        ({"source": "files", "path": "a", "test_path": ""}, "test_path is empty, which would be the current folder"),
        ({"split_field": ""}, "at least 1 character"),
    ],
)
def test_settings_of_splits_that_do_not_suit_the_source_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        DataConfig(**settings)
