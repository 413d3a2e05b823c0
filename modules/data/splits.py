"""Which split a row belongs to: said by a field of the row, by its file, or drawn by a hash of its content."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import xxhash

from modules.config import DataConfig
from modules.data.document_rows import Place
from modules.data.hub import read_hub_rows
from modules.data.row_files import read_rows
from modules.data.rows import Fields, Row
from modules.data.source_files import SourceFile
from modules.data.stdlib_rows import stdlib_rows
from modules.errors import InputError

Split = Literal["train", "val", "test"]
PATH_SETTINGS: Mapping[Split, str] = {"train": "data.path", "val": "data.val_path", "test": "data.test_path"}
"""The setting that names the files of each split; rows of `data.path` may say another one."""
_HUB_SETTINGS: Mapping[Split, str] = {"train": "hub_split", "val": "hub_val_split", "test": "hub_test_split"}
_NAMES: Mapping[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""What a row may call its split, in any case."""


class SplitRows:
    """The rows of a data set, each with its split; every iteration streams them from the start, in the same order.

    A row belongs to the split that its field `data.split_field` says; without it, to that of its file or hub split.
    Where none belongs to `val`, a share `data.val_fraction` of `train` does: equal rows together, and none of `test`.
    """

    def __init__(self, files: Mapping[Split, Sequence[SourceFile]], data: DataConfig, fields: Fields):
        """Read nothing yet.

        Args:
            files: The files that `PATH_SETTINGS` name, in order; empty for `data.source=huggingface`.
            data: How they are read, and the rules above.
            fields: The fields of each row; that of the split is read beside them, and is in no row unless asked for.
        """
        self._files = files
        self._data = data
        self._fields = fields
        self._holds_out: bool | None = None

    @property
    def file_names(self) -> list[str]:
        """What holds the rows, in the order in which `Row.place` counts: files, or splits of a hub data set."""
        found = [item for split in PATH_SETTINGS for item in self._found(split)]
        return [f"{self._data.path[0]} ({item})" if isinstance(item, str) else item.name for item in found]

    def __iter__(self) -> Iterator[tuple[Split, Row]]:
        """Yield each row with its split.

        Raises:
            InputError: A file or a row cannot be used, a row says a split that there is not or that is not its file's,
                or only some rows of `data.path` say one.
        """
        if self._holds_out is None:
            self._holds_out = self._must_hold_out()
        fraction = self._data.val_fraction if self._holds_out else 0
        for split, row in self._said():
            values = {path: value for path, value in row.values.items() if path in self._fields.settings}
            is_val = split == "train" and fraction > 0 and is_held_out(_canonical(values), fraction)
            yield "val" if is_val else split, row._replace(values=values)

    def _must_hold_out(self) -> bool:
        data = self._data
        has_val = data.hub_val_split if data.source == "huggingface" else self._files.get("val")
        return data.val_fraction > 0 and not has_val and not self._some_row_says_val()

    def _some_row_says_val(self) -> bool:
        if self._data.split_field is None:
            return False
        for row in self._rows("train", self._with_split(Fields({}))):
            split = self._split_of(row)
            if split in (None, "val"):  # if one says none, then all do, or reading them refuses the first that does
                return split == "val"
        return False

    def _said(self) -> Iterator[tuple[Split, Row]]:
        """Yield each row with the split that it says or that is its file's."""
        fields, first = self._with_split(self._fields), None
        for source in PATH_SETTINGS:
            for row in self._rows(source, fields):
                said = self._split_of(row)
                if source == "train":
                    first = first or (said, row)
                    self._check_all_or_none(*first, said, row)
                elif said not in (None, source):
                    raise InputError(
                        f"{row.location}: field {self._data.split_field!r} says {said}, but the row is in "
                        f"{self._setting(source)}; move it, or set data.split_field=null to go by the place alone"
                    )
                yield said or source, row

    def _check_all_or_none(self, first_said: Split | None, first: Row, said: Split | None, row: Row) -> None:
        if (first_said is None) == (said is None):
            return
        without, other = (first, row) if first_said is None else (row, first)
        raise InputError(
            f"{without.location}: no split in field {self._data.split_field!r}, in which {other.location} has one; "
            "write one into every row, or set data.split_field=null to go by no field"
        )

    def _split_of(self, row: Row) -> Split | None:
        path = self._data.split_field
        value = None if path is None else row.values.get(path)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        split = _NAMES.get(value.strip().lower()) if isinstance(value, str) else None
        if split is None:
            raise InputError(
                f"{row.location}: field {path!r} holds {repr(value)[:80]}, which is no split; known are "
                f"{', '.join(_NAMES)}; set data.split_field to the field that says it, or data.split_field=null"
            )
        return split

    def _with_split(self, fields: Fields) -> Fields:
        path = self._data.split_field
        return fields if path is None else Fields(fields.required, {path: "data.split_field", **fields.optional})

    def _rows(self, split: Split, fields: Fields) -> Iterator[Row]:
        first = 0
        for before in PATH_SETTINGS:
            if before == split:
                break
            first += len(self._found(before))
        for number, found in enumerate(self._found(split), start=first):
            for row_number, row in enumerate(self._rows_of(found, split, fields)):
                yield row._replace(place=Place(number, row_number))

    def _found(self, split: Split) -> Sequence[SourceFile | str]:
        """Return the files of a split, or the name of its hub split."""
        if self._data.source != "huggingface":
            return self._files.get(split, ())
        return [name for name in [getattr(self._data, _HUB_SETTINGS[split])] if name is not None]

    def _rows_of(self, found: SourceFile | str, split: Split, fields: Fields) -> Iterator[Row]:
        if isinstance(found, str):
            return read_hub_rows(self._data, found, self._setting(split), fields)
        if self._data.source == "stdlib":
            return (fields.of(values, location) for values, location in stdlib_rows(found))
        return read_rows(found, self._data, fields)

    def _setting(self, split: Split) -> str:
        is_hub = self._data.source == "huggingface"
        return f"data.{_HUB_SETTINGS[split]}" if is_hub else PATH_SETTINGS[split]


def is_held_out(content: bytes, val_fraction: float) -> bool:
    """Return whether `content` falls into the share that is held out: by its hash, so that equal ones stay together."""
    return xxhash.xxh3_64_intdigest(content) < val_fraction * 2**64


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
