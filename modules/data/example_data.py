"""Prepared examples of a task: written once, read through memory maps.

    data.json                what they are: task, labels, and by split the number of examples, tokens and targets
    <split>_tokens.bin       the tokens of all examples, one after another
    <split>_offsets.bin      int64 [E + 1], where each example begins; the last one is the number of tokens
    <split>_is_target.bin    uint8, by token, whether the loss predicts it (language-model tasks)
    <split>_labels.bin       int32 [E], the number of each example's class (classification)
    <split>_num_bytes.bin    int64 [E], UTF-8 bytes of text for which an example's targets stand
    <split>_order.bin        int64 [E], the examples pack after pack
    <split>_starts.bin       int64 [P + 1], where each pack begins in that order
    <split>_pack_tokens.bin  int64 [P], the tokens of each pack
    <split>_pack_targets.bin int64 [P], the targets of each pack (language-model tasks)
    <split>_places.txt       a line for each example, which names the file and the row that it comes from
    <split>_example_rows.bin int64 [E, 2], the same in numbers, as `document_rows` has it
    tokenizer/               the tokenizer's files

E examples, P packs: sequences that several examples fill together.
"""

import json
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modules.data.digested_file import DigestedFile
from modules.data.document_rows import ROW_DTYPE, rows_name
from modules.data.number_files import MappedFiles, NumberFiles, Numbers
from modules.data.packing import Plan, pack, pack_in_order, pack_totals
from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.rows import Row
from modules.data.shards import DATA_FILE, token_dtype
from modules.data.splits import PATH_SETTINGS, Split
from modules.data.tokenizer import Tokenizer
from modules.errors import InputError
from modules.tasks.task import Example

TOKENIZER_FOLDER = "tokenizer"
_NUMBER, _LABEL, _FLAG = np.dtype("<i8"), np.dtype("<i4"), np.dtype("u1")


@dataclass(frozen=True)
class ExampleSplit:
    """The examples of a split and the packs that they make up; the arrays may be memory-mapped.

    n examples, p packs. A language-model task has `is_target`, a classification `labels`.
    """

    tokens: Numbers
    """Tokens of all examples, one after another."""
    offsets: np.ndarray
    """int64 [n + 1]: where each example begins in `tokens`, and their end."""
    order: np.ndarray
    """int64 [n]: the numbers of the examples, pack after pack."""
    starts: np.ndarray
    """int64 [p + 1]: where each pack begins in `order`, and their end."""
    pack_tokens: np.ndarray
    """int64 [p]: the tokens of each pack."""
    pack_targets: np.ndarray
    """int64 or float64 [p]: the number of each pack's targets, or the sum of their weights."""
    is_target: Numbers | None = None
    """uint8, for each token: 1 where the loss predicts it. The first token of an example is no target."""
    labels: np.ndarray | None = None
    """int32 [n]: the number of each example's class."""
    num_bytes: np.ndarray | None = None
    """int64 [n]: UTF-8 bytes of the text for which each example's targets stand, where they are counted."""

    @property
    def num_packs(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True)
class ExampleData:
    """The prepared examples of a task."""

    splits: Mapping[Split, ExampleSplit]
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    """Names of the classes by number; empty where tokens are predicted."""
    sequence_length: int
    """Tokens that the examples of a sequence have together, at most."""

    @classmethod
    def open(cls, folder: Path, files: NumberFiles | None = None) -> "ExampleData":
        """Open what an `ExampleWriter` has written.

        Args:
            folder: Folder with data.json and the tokenizer, which the caller has verified.
            files: The other files; None for those in the same folder, which the caller has verified, too.
        """
        files = files or MappedFiles(folder)
        description = json.loads((folder / DATA_FILE).read_bytes())
        dtype, classifies = np.dtype(description["dtype"]), bool(description["labels"])
        return cls(
            splits={split: _open_split(files, split, dtype, classifies) for split in PATH_SETTINGS},
            tokenizer=load_pretrained(_tokenizer_files(folder), str(folder)),
            labels=tuple(description["labels"]),
            sequence_length=description["sequence_length"],
        )


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    root = folder / TOKENIZER_FOLDER
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _open_split(files: NumberFiles, split: str, dtype: np.dtype, is_classification: bool) -> ExampleSplit:
    def numbers(name: str, dtype: np.dtype = _NUMBER) -> np.ndarray:
        # a few numbers for each example, which are looked up in any order
        return files.open(f"{split}_{name}.bin", dtype)[:]

    return ExampleSplit(
        tokens=files.open(f"{split}_tokens.bin", dtype),
        offsets=numbers("offsets"),
        order=numbers("order"),
        starts=numbers("starts"),
        pack_tokens=numbers("pack_tokens"),
        # with class weights another sum takes its place
        pack_targets=np.ones(len(numbers("starts")) - 1, np.int64) if is_classification else numbers("pack_targets"),
        is_target=None if is_classification else files.open(f"{split}_is_target.bin", _FLAG),
        labels=numbers("labels", _LABEL) if is_classification else None,
        num_bytes=numbers("num_bytes"),
    )


class SplitWriter:
    """Writes the examples of one split; beside the files it holds a few numbers for each example."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, labels: tuple[str, ...], stack: ExitStack) -> None:
        """Begin the files.

        Args:
            folder: Where they are written.
            split: Its name.
            dtype: Of the tokens.
            labels: Names of the classes; empty where tokens are predicted.
            stack: Closes the files.
        """
        self._folder, self._split, self._dtype, self._labels = folder, split, dtype, labels
        self._tokens = self._open(stack, "tokens.bin")
        self._places = self._open(stack, "places.txt")
        self._rows = stack.enter_context(closing(DigestedFile(folder / rows_name(split, "example"))))
        self._is_target = None if labels else self._open(stack, "is_target.bin")
        self._lengths, self._labels_of, self._num_bytes, self._num_targets = (array("q") for _ in range(4))

    def _open(self, stack: ExitStack, name: str) -> DigestedFile:
        return stack.enter_context(closing(DigestedFile(self._folder / f"{self._split}_{name}")))

    def add(self, example: Example, row: Row) -> None:
        """Write one example, and the row that it comes from."""
        self._tokens.write(np.asarray(example.ids, dtype=self._dtype).tobytes())
        self._places.write(f"{row.location}\n".encode())
        self._rows.write(np.array(row.place, dtype=ROW_DTYPE).tobytes())
        self._lengths.append(len(example.ids))
        self._num_bytes.append(example.num_bytes)
        self._num_targets.append(sum(example.is_target))
        if self._is_target is not None:
            self._is_target.write(np.asarray(example.is_target, dtype=_FLAG).tobytes())
        else:
            assert example.label is not None
            self._labels_of.append(example.label)

    def finish(self, sequence_length: int) -> dict[str, Any]:
        """Write where examples begin and how they are packed; return what `data.json` says of the split."""
        lengths, num_targets = np.array(self._lengths, np.int64), np.array(self._num_targets, np.int64)
        plan = self._plan(lengths, sequence_length)
        self._save("offsets", np.concatenate([[0], lengths.cumsum()]))
        self._save("num_bytes", np.array(self._num_bytes, np.int64))
        for name, values in zip(("order", "starts"), plan, strict=True):
            self._save(name, values)
        self._save("pack_tokens", pack_totals(lengths, plan))
        facts = {"num_examples": len(lengths), "num_tokens": int(lengths.sum()), "num_packs": len(plan[1]) - 1}
        if not self._labels:
            self._save("pack_targets", pack_totals(num_targets, plan))
            return {**facts, "num_targets": int(num_targets.sum()), "bytes": sum(self._num_bytes)}
        labels = np.array(self._labels_of, np.int64)
        self._save("labels", labels, _LABEL)
        counts = np.bincount(labels, minlength=len(self._labels)).tolist()
        return {**facts, "label_counts": dict(zip(self._labels, counts, strict=True))}

    def _plan(self, lengths: np.ndarray, sequence_length: int) -> Plan:
        if self._labels:
            return np.arange(len(lengths)), np.arange(len(lengths) + 1)
        # a validation that does not read all takes the first packs, which then hold the first examples
        return (pack if self._split == "train" else pack_in_order)(lengths, sequence_length)

    def _save(self, name: str, values: np.ndarray, dtype: np.dtype = _NUMBER) -> None:
        (self._folder / f"{self._split}_{name}.bin").write_bytes(values.astype(dtype).tobytes())


def write_examples(
    folder: Path,
    examples: Iterator[tuple[Split, Example, Row]],
    tokenizer: Tokenizer,
    files: Mapping[str, bytes],
    labels: tuple[str, ...],
    sequence_length: int,
    description: Mapping[str, Any],
) -> None:
    """Write examples into an empty folder.

    Args:
        folder: Local; after an error it holds partial output that the caller must remove.
        examples: Each with its split and the row that it comes from.
        tokenizer: What has made the tokens.
        files: The tokenizer's files, from which it is loaded again.
        labels: Names of the classes; empty where tokens are predicted.
        sequence_length: Tokens that the examples of a sequence may have together.
        description: Further fields of data.json.

    Raises:
        InputError: The training split has no example.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    with ExitStack() as stack:
        writers = {split: SplitWriter(folder, split, dtype, labels, stack) for split in PATH_SETTINGS}
        for split, example, row in examples:
            writers[split].add(example, row)
    facts = {split: writer.finish(sequence_length) for split, writer in writers.items()}
    if not facts["train"]["num_examples"]:
        raise InputError("data: the training split has no example; see data.split_field, or name another data.path")
    for name, content in files.items():
        path = folder / TOKENIZER_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    about = {"format": 1, "dtype": dtype.str, "vocab_size": tokenizer.vocab_size, "labels": list(labels)}
    about |= {"sequence_length": sequence_length, **description, "splits": facts}
    (folder / DATA_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
