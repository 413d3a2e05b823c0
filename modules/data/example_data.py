"""Prepared examples of a task: written once, read through memory maps.

    data.json                what they are: task, labels, and by split the number of examples, tokens and targets
    <split>_tokens.bin       the tokens of all examples, one after another
    <split>_offsets.bin      int64 [E + 1], where each example begins; the last one is the number of tokens
    <split>_is_target.bin    uint8, by token, whether the loss predicts it (language-model tasks)
    <split>_labels.bin       int32 [E], the number of each example's class (classification)
    <split>_num_bytes.bin    int64 [E], UTF-8 bytes of text for which an example's targets stand
    <split>_pack_order.bin   int64 [E], the examples in the order in which they fill sequences
    <split>_pack_starts.bin  int64 [P + 1], the place in that order with which each sequence begins
    <split>_places.txt       a line for each example, which names the file and the row that it comes from
    tokenizer/               the tokenizer's files

E examples, P sequences of packed examples.
"""

import json
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from modules.data.packing import pack
from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.shards import DATA_FILE, token_dtype
from modules.data.splits import SPLITS, Split
from modules.data.tokenizer import Tokenizer
from modules.errors import InputError
from modules.tasks.task import Example

TOKENIZER_FOLDER = "tokenizer"
_OFFSET, _LABEL, _FLAG = np.dtype("<i8"), np.dtype("<i4"), np.dtype("u1")


@dataclass(frozen=True)
class ExampleSplit:
    """The examples of a split, memory-mapped."""

    tokens: np.ndarray
    """[offsets[-1]], of an unsigned type."""
    offsets: np.ndarray
    """int64 [E + 1]."""
    is_target: np.ndarray | None
    """uint8 [offsets[-1]]; None where labels are predicted."""
    labels: np.ndarray | None
    """int32 [E]; None where tokens are predicted."""
    num_bytes: np.ndarray
    """int64 [E]."""
    pack_order: np.ndarray
    """int64 [E]."""
    pack_starts: np.ndarray
    """int64 [P + 1]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1


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
    def open(cls, folder: Path) -> "ExampleData":
        """Open the folder that an `ExampleWriter` has written; the caller has verified its content."""
        description = json.loads((folder / DATA_FILE).read_bytes())
        dtype = np.dtype(description["dtype"])
        return cls(
            splits={split: _open_split(folder, split, dtype) for split in SPLITS},
            tokenizer=load_pretrained(_tokenizer_files(folder), str(folder)),
            labels=tuple(description["labels"]),
            sequence_length=description["sequence_length"],
        )


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    root = folder / TOKENIZER_FOLDER
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _open_split(folder: Path, split: str, dtype: np.dtype) -> ExampleSplit:
    return ExampleSplit(
        tokens=_map(folder / f"{split}_tokens.bin", dtype),
        offsets=_map(folder / f"{split}_offsets.bin", _OFFSET),
        is_target=_map_if_there(folder / f"{split}_is_target.bin", _FLAG),
        labels=_map_if_there(folder / f"{split}_labels.bin", _LABEL),
        num_bytes=_map(folder / f"{split}_num_bytes.bin", _OFFSET),
        pack_order=_map(folder / f"{split}_pack_order.bin", _OFFSET),
        pack_starts=_map(folder / f"{split}_pack_starts.bin", _OFFSET),
    )


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    # viewed as a plain array, because slicing np.memmap itself costs microseconds of bookkeeping
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def _map_if_there(path: Path, dtype: np.dtype) -> np.ndarray | None:
    return _map(path, dtype) if path.exists() else None


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
        self._is_target = None if labels else self._open(stack, "is_target.bin")
        self._lengths, self._numbers, self._num_bytes = array("q"), array("q"), array("q")
        self.num_targets = 0

    def _open(self, stack: ExitStack, name: str) -> BinaryIO:
        return stack.enter_context(open(self._folder / f"{self._split}_{name}", "wb"))

    def add(self, example: Example, location: str) -> None:
        """Write one example, and where it comes from."""
        self._tokens.write(np.asarray(example.ids, dtype=self._dtype).tobytes())
        self._places.write(f"{location}\n".encode())
        self._lengths.append(len(example.ids))
        self._num_bytes.append(example.num_bytes)
        if self._is_target is not None:
            self._is_target.write(np.asarray(example.is_target, dtype=_FLAG).tobytes())
            self.num_targets += sum(example.is_target)
        else:
            assert example.label is not None
            self._numbers.append(example.label)

    def finish(self, sequence_length: int) -> dict[str, Any]:
        """Write where examples begin and how they fill sequences; return what `data.json` says of the split."""
        lengths = np.frombuffer(self._lengths, dtype=np.int64) if self._lengths else np.empty(0, np.int64)
        self._save("offsets.bin", np.concatenate([[0], np.cumsum(lengths)]), _OFFSET)
        self._save("num_bytes.bin", np.array(self._num_bytes, dtype=np.int64), _OFFSET)
        order, starts = _one_by_one(len(lengths)) if self._labels else pack(lengths, sequence_length)
        self._save("pack_order.bin", order, _OFFSET)
        self._save("pack_starts.bin", starts, _OFFSET)
        facts = {"num_examples": len(lengths), "num_tokens": int(lengths.sum()), "num_sequences": len(starts) - 1}
        if not self._labels:
            return {**facts, "num_targets": self.num_targets, "bytes": sum(self._num_bytes)}
        numbers = np.array(self._numbers, dtype=np.int64)
        self._save("labels.bin", numbers, _LABEL)
        counts = np.bincount(numbers, minlength=len(self._labels)).tolist()
        return {**facts, "label_counts": dict(zip(self._labels, counts, strict=True))}

    def _save(self, name: str, values: np.ndarray, dtype: np.dtype) -> None:
        (self._folder / f"{self._split}_{name}").write_bytes(values.astype(dtype).tobytes())


def _one_by_one(number: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(number), np.arange(number + 1)


def write_examples(
    folder: Path,
    examples: Iterator[tuple[Split, Example, str]],
    tokenizer: Tokenizer,
    files: Mapping[str, bytes],
    labels: tuple[str, ...],
    sequence_length: int,
    description: Mapping[str, Any],
) -> None:
    """Write examples into an empty folder.

    Args:
        folder: Local; after an error it holds partial output that the caller must remove.
        examples: Each with its split and the place that it comes from.
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
        writers = {split: SplitWriter(folder, split, dtype, labels, stack) for split in SPLITS}
        for split, example, location in examples:
            writers[split].add(example, location)
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
