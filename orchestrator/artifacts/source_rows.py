"""The file and the row that each document, or example of a task, of prepared data comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules.config import DataConfig
from modules.data.document_rows import ROW_DTYPE, Place, names_within, rows_name
from modules.data.number_files import NumberFiles, Numbers
from orchestrator.storage.redaction import redact, without_query

_NAMES = "source_files"
"""What the manifest calls the names of the files. They say where the data set was, so they are in no file of it."""


def listed_names(data: DataConfig, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the part of the manifest that names the files of a data set, in the order in which they are read."""
    shown = [redact(without_query(name)) for name in names]
    return {_NAMES: shown if data.source == "huggingface" else names_within(shown)}


@dataclass(frozen=True)
class SourceRows:
    """Where the documents or examples of a split come from."""

    names: Sequence[str]
    """Of the files."""
    rows: Numbers
    """The file's number and the row of each document, one after another."""

    @classmethod
    def open(cls, files: NumberFiles, manifest: Mapping[str, Any], split: str) -> "SourceRows | None":
        """Return those of a split; None if an earlier version has prepared the data.

        Args:
            files: Those of the prepared data.
            manifest: That of the prepared data.
            split: Its name.
        """
        kind = "example" if manifest["kind"] == "examples" else "document"
        name = rows_name(split, kind)
        if _NAMES not in manifest or name not in manifest["files"]:
            return None
        return cls(manifest[_NAMES], files.open(name, ROW_DTYPE))

    def place(self, number: int) -> Place:
        """Return where a document or an example comes from."""
        return Place(*self.rows[2 * number : 2 * number + 2].tolist())

    def name(self, place: Place) -> str:
        """Return the name of the file."""
        return self.names[place.file]
