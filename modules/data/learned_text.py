"""The text that is learned or held out, in groups of files, and who reads it."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modules.config import DataConfig, TokenizerConfig
from modules.cores import num_cores
from modules.data.file_groups import FileGroup, GroupReader, file_groups
from modules.data.part_store import PartStore
from modules.data.parts import CountRequest, PartMaker, counted, note_tokenizer, noted_tokenizer
from modules.data.quality.sieve import Others, Sieve, is_on
from modules.data.source_files import SourceFile
from modules.data.tokenizer import Tokenizer, build_tokenizer
from modules.data.worker_pool import WorkerPool

LEAST_BYTES = 2**24
"""A process that reads files takes half a second to start, twice as long as one that tokenises; this takes it two."""


class Crew(Protocol):
    """Processes that answer requests as `PartMaker` does."""

    def answers(self, requests: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Answer each request and give the answer back with the request's tag, in order."""
        ...


@dataclass(frozen=True)
class Work:
    """Where parts of a text are kept until they are joined, and who makes them."""

    parts: PartStore
    crew: Crew | None = None
    """Processes elsewhere, which read the files themselves; None takes those of this machine."""


@contextmanager
def learned_text(
    files: Sequence[SourceFile],
    data: DataConfig,
    others: Others,
    folder: Path,
    work: Work,
    progress: Callable[[int], None],
) -> Iterator[tuple["LearnedText", dict[str, Any] | None]]:
    """Yield the text that is learned, and what was found if anything is to be left out or replaced."""
    with ExitStack() as stack:
        groups, sieve, filtered = file_groups(files, data), None, None
        if is_on(data):
            inside = stack.enter_context(tempfile.TemporaryDirectory(prefix=".filters-", dir=folder))
            sieve = Sieve(data, others, GroupReader(groups[0], data).whole, Path(inside))
            filtered = sieve.scan(progress)
        num_processes = data.num_processes or num_cores()
        crew = work.crew
        if crew is None and _can_be_shared_out(groups, num_processes):
            program = "from modules.data.part_process import main; main()"
            crew = stack.enter_context(WorkerPool(program, (), PartMaker, num_processes))
        yield LearnedText(groups, data, sieve, work.parts, crew), filtered


def _can_be_shared_out(groups: Sequence[FileGroup], num_processes: int) -> bool:
    """Return whether no process would be left alone with a group at the end, and each has enough to start for."""
    sizes = [group.num_bytes for group in groups]
    return num_processes > 1 and max(max(sizes), LEAST_BYTES) * num_processes <= sum(sizes)


class LearnedText:
    """The text that is learned or held out, in groups of files."""

    def __init__(
        self, groups: list[FileGroup], data: DataConfig, sieve: Sieve | None, parts: PartStore, crew: Crew | None
    ):
        self._groups = groups
        self.data = data
        self.sieve = sieve
        self.parts = parts
        self.crew = crew
        """Processes that read the files themselves; None if one reads and others tokenise."""
        self._starts: list[int] | None = None
        self._val_start = 0

    def placed(self) -> tuple[list[tuple[FileGroup, int]], int]:
        """Return the groups up to `data.max_bytes`, each with the bytes before it, and where the held-out part begins.

        Neither is counted where nothing depends on it.
        """
        if self._starts is None:
            data = self.data
            by_position = data.split == "position" and data.val_fraction > 0
            self._starts = [0] * len(self._groups)
            if by_position or (data.max_bytes is not None and len(self._groups) > 1):
                self._starts, total = self._counted_starts()
                self._val_start = int(total * (1 - data.val_fraction)) if by_position else 0
        return list(zip(self._groups, self._starts, strict=False)), self._val_start

    def _counted_starts(self) -> tuple[list[int], int]:
        starts, total, most = [], 0, self.data.max_bytes
        for group, num_bytes in zip(self._groups, self._counts(), strict=False):
            starts.append(total)
            if most is not None and total + num_bytes >= most:  # the last character may not fit
                return starts, total + GroupReader(group, self.data, total, 0, self.sieve).count()
            total += num_bytes
        return starts, total

    def _counts(self) -> Iterator[int]:
        requests = (CountRequest(group, self.data, self.parts) for group in self._groups)
        if self.sieve is not None:
            return iter([GroupReader(self._groups[0], self.data, sieve=self.sieve).count()])
        if self.crew is None:
            return map(counted, requests)
        return (num_bytes for num_bytes, _ in self.crew.answers((request, None) for request in requests))

    def training_texts(self) -> Iterator[str]:
        """Yield the text of the training split, in pieces."""
        placed, val_start = self.placed()
        for group, start in placed:
            reader = GroupReader(group, self.data, start, val_start, self.sieve)
            yield from (item.piece.text for item in reader.assigned() if item.split == "train")

    def tokenizer(self, config: TokenizerConfig, file: bytes | None) -> Tokenizer:
        """Return the tokenizer, which learns from the training split once."""
        if not config.learns:
            return build_tokenizer(config, self.training_texts, file)
        note = self.parts.note("trained")
        made = noted_tokenizer(self.parts, note["name"]) if note else None
        if made is None:
            made = build_tokenizer(config, self.training_texts, None)
            self.parts.write_note("trained", {"name": note_tokenizer(self.parts, made)})
        return made
