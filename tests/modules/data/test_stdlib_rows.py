"""Every machine has rows: functions of the standard library, each with its package as the label."""

from pathlib import Path

from modules.data.stdlib_rows import PACKAGES, stdlib_row_files, stdlib_rows

SOURCE = '''class A:
    def method(self):
        """Say é."""

        def inside():
            return 1
        return inside

def short():
    return 1

async def other(x):
    if x:
        x += 1
    return x
'''


def test_functions_of_a_file_are_rows_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "asyncio").mkdir()
    for name in ("json/a.py", "asyncio/a.py"):
        (tmp_path / name).write_text(SOURCE)
    (file,) = stdlib_row_files(str(tmp_path))
    rows = list(stdlib_rows(file))
    assert [place for _, place in rows] == ["asyncio/a.py:2", "asyncio/a.py:12"]
    assert [values["label"] for values, _ in rows] == ["asyncio", "asyncio"]
    assert rows[0][0]["text"].startswith('def method(self):\n    """Say é."""\n\n    def inside():')
    assert rows[1][0]["text"] == "async def other(x):\n    if x:\n        x += 1\n    return x"


def test_equal_functions_are_in_the_same_split(tmp_path: Path) -> None:
    (tmp_path / "xml").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / f"xml/{name}.py").write_text(SOURCE)
    splits = [values["split"] for file in stdlib_row_files(str(tmp_path)) for values, _ in stdlib_rows(file)]
    assert splits[::2] == [splits[0]] * 3


def test_this_python_has_rows_of_every_package_and_split() -> None:
    rows = [values for file in stdlib_row_files() for values, _ in stdlib_rows(file)]
    assert {row["label"] for row in rows} == set(PACKAGES)
    shares = {split: sum(row["split"] == split for row in rows) / len(rows) for split in ("train", "val", "test")}
    assert shares["train"] > 0.75
    assert min(shares.values()) > 0.07
