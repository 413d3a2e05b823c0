"""The rows that a model is measured on or answers: those of one split, streamed as often as they are needed."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

from modules.config import DataConfig
from modules.data.rows import Row
from modules.data.splits import SplitRows
from modules.errors import InputError
from modules.tasks.fields import fields_of
from modules.tasks.settings import TaskConfig
from modules.tasks.task import Task
from orchestrator.artifacts.split_files import find_split_files
from orchestrator.errors import UserError

SplitName = Literal["test", "val", "train", "all"]
_MAX_MISTAKES = 20


class TaskRows:
    """The rows of a split, in the order of their files; nothing but the row at hand is in memory."""

    def __init__(
        self,
        data: DataConfig,
        settings: TaskConfig,
        task: Task,
        split: SplitName,
        *,
        limit: int | None = None,
        has_answers: bool = True,
    ) -> None:
        """Find the files.

        Args:
            data: Where the rows are.
            settings: The task that names their fields.
            task: It says which.
            split: `all` takes rows of every split.
            limit: Read no more rows.
            has_answers: Whether rows must have all fields that are needed to learn from them.

        Raises:
            UserError: There is no such file, or one that holds no rows.
        """
        fields = (task.fields, task.optional_fields) if has_answers else ((), (*task.fields, *task.optional_fields))
        if split == "all":
            data = data.model_copy(update={"val_fraction": 0.0})
        self._rows = SplitRows(find_split_files(data), data, fields_of(settings, *fields))
        self._split, self._limit = split, limit

    def __iter__(self) -> Iterator[Row]:
        rows = (row for split, row in self._rows if self._split in (split, "all"))
        return islice(rows, self._limit)

    def checked(self, use: Callable[[Row], Any]) -> int:
        """Read every row before anything is computed, and return their number.

        Args:
            use: What is done with a row later, short of asking the model.

        Raises:
            UserError: lists the rows that cannot be used; or there is none.
        """
        mistakes: list[str] = []
        num_rows = num_mistakes = 0
        for row in self:
            num_rows += 1
            try:
                use(row)
            except InputError as error:
                num_mistakes += 1
                mistakes += [str(error)] if num_mistakes <= _MAX_MISTAKES else []
        if mistakes:
            rest = [f"… and {num_mistakes - _MAX_MISTAKES:,} more"] if num_mistakes > _MAX_MISTAKES else []
            raise UserError("\n".join(mistakes + rest))
        if not num_rows:
            raise UserError(
                f"split={self._split}: the data has no such row; rows say their split in the field data.split_field,"
                " or data.test_path and data.val_path name files; split=all takes every row"
            )
        return num_rows
