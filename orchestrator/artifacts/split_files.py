"""The files that hold the rows of each split of a task."""

from collections.abc import Mapping, Sequence

from modules.config import DataConfig
from modules.data.row_files import check_holds_rows
from modules.data.source_files import SourceFile
from modules.data.splits import PATH_SETTINGS, Split
from modules.data.stdlib_rows import stdlib_row_files
from orchestrator.errors import UserError
from orchestrator.storage.input_files import StoredFile, find_files


def find_split_files(data: DataConfig) -> Mapping[Split, Sequence[SourceFile]]:
    """Return the files of each split, before anything of them is read; none for a hub data set.

    Raises:
        UserError: A path leads to no file, or a file belongs to two splits.
        InputError: A file, or the source, holds no rows.
    """
    if data.source == "huggingface":
        return {}
    if data.source == "stdlib":
        return {"train": stdlib_row_files()}
    paths: Mapping[Split, Sequence[str]] = {"train": data.path, "val": data.val_path, "test": data.test_path}
    found: dict[Split, list[StoredFile]] = {split: find_files(of_split) for split, of_split in paths.items()}
    seen: dict[str, Split] = {}
    for split, files in found.items():
        for file in files:
            check_holds_rows(file)
            if (other := seen.setdefault(file.url, split)) != split:
                raise UserError(
                    f"{file.name}: among the files of {PATH_SETTINGS[other]} and of {PATH_SETTINGS[split]}, so that "
                    "the same rows would be in two splits; leave it out of one of them"
                )
    return found
