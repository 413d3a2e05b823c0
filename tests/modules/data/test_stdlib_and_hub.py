import pickle
import sys
import types

import pytest

from modules.config import DataConfig
from modules.data.documents import read_documents
from modules.data.hub import read_hub_dataset
from modules.data.rows import TextField
from modules.data.stdlib import LocalFile, stdlib_files
from modules.errors import InputError


def test_the_standard_library_has_text_sorted_and_readable():
    files = stdlib_files()
    names = [file.name for file in files]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert not any("site-packages" in name or "__pycache__" in name for name in names)
    assert sum(file.num_bytes for file in files) > 5_000_000


def test_broken_empty_and_foreign_files_are_left_out(tmp_path):
    contents = {"b.py": b"x = 1", "a.txt": b"\xc3\xa9", "latin.py": b"# \xe9", "empty.py": b"", "c.pickle": b"x"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "d.py").write_bytes(b"x")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "e.py").write_bytes(b"xy")
    found = stdlib_files(str(tmp_path))
    assert [(file.name, file.num_bytes) for file in found] == [("a.txt", 2), ("b.py", 5), ("b/e.py", 2)]


def test_a_local_file_pickles_and_is_known_by_its_content(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same")
    (tmp_path / "c.txt").write_text("other")
    a, b, c = (LocalFile(str(tmp_path), name, 4) for name in ("a.txt", "b.txt", "c.txt"))
    assert a.identity() == b.identity() != c.identity()
    data = DataConfig()
    pieces = read_documents(pickle.loads(pickle.dumps(a)), data, TextField(data))
    assert [piece.text for piece in pieces] == ["same"]


def hub(monkeypatch, load_dataset):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_a_hub_data_set_is_streamed_row_by_row(monkeypatch):
    asked = []

    def load_dataset(path, subset, **options):
        asked.append((path, subset, options))
        return iter([{"text": "a"}, {"text": "b"}])

    hub(monkeypatch, load_dataset)
    pieces = list(read_hub_dataset("owner/name", "c0ffee", "sub", "train", TextField(DataConfig())))
    assert [piece.text for piece in pieces] == ["a", "b"]
    assert asked == [("owner/name", "sub", {"split": "train", "revision": "c0ffee", "streaming": True})]


def test_an_unreachable_hub_is_told_in_one_line(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route to the hub\nand pages of detail")

    hub(monkeypatch, load_dataset)
    with pytest.raises(InputError, match=r"^data.path=owner/name: .* cannot be read: no route to the hub; check"):
        list(read_hub_dataset("owner/name", None, None, "train", TextField(DataConfig())))


def test_a_hub_row_without_text_is_named(monkeypatch):
    hub(monkeypatch, lambda *_, **__: iter([{"text": "a"}, {"body": "b"}]))
    with pytest.raises(InputError, match=r"^owner/name \(train\), row 2: no field 'text'"):
        list(read_hub_dataset("owner/name", None, None, "train", TextField(DataConfig())))


def test_hub_rows_without_text_are_left_out_and_counted_if_asked(monkeypatch):
    hub(monkeypatch, lambda *_, **__: iter([{"doc": {"text": "a"}}, {"doc": None}, {"doc": {"text": ""}}]))
    field = TextField(DataConfig(text_field="doc.text", missing="skip"))
    assert [piece.text for piece in read_hub_dataset("owner/name", None, None, "train", field)] == ["a"]
    assert (field.num_left_out, field.num_rows) == (2, 3)


def test_a_missing_datasets_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        list(read_hub_dataset("owner/name", None, None, "train", TextField(DataConfig())))
