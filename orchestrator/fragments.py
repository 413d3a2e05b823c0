"""Files of fragments: flat float32 ranges of parameters and moments in safetensors, written and read by the range."""

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.errors import ArtifactError
from orchestrator.storage import Storage
from orchestrator.training_state import Fragment

_MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit
Range = tuple[int, int]
Index = dict[str, dict[str, list[tuple[int, int, str]]]]
"""parameter -> kind -> (start, stop, file), in order of start."""


def fragment_key(parameter: str, kind: str, start: int) -> str:
    """Return the name of a fragment inside its file."""
    return f"{parameter}/{kind}/{start}"


def write_fragments(fragments: Iterable[Fragment], path: Path) -> Index:
    """Write the non-empty fragments to one file; return what it holds, without the file's name."""
    tensors, index = {}, {}
    for item in fragments:
        if item.start == item.stop:
            continue
        tensors[fragment_key(item.parameter, item.kind, item.start)] = item.view.float().cpu().contiguous()
        index.setdefault(item.parameter, {}).setdefault(item.kind, []).append((item.start, item.stop, path.name))
    save_file(tensors, path)
    return index


def merge_indexes(indexes: Iterable[Index]) -> Index:
    """Return one index of all files, ranges in order."""
    merged: Index = {}
    for index in indexes:
        for parameter, kinds in index.items():
            for kind, ranges in kinds.items():
                merged.setdefault(parameter, {}).setdefault(kind, []).extend(ranges)
    for kinds in merged.values():
        for ranges in kinds.values():
            ranges.sort()
    return merged


@dataclass(frozen=True)
class FragmentFile:
    """One safetensors file, read by byte range: memory-mapped when local, in parts from an object store."""

    storage: Storage
    name: str

    @cached_property
    def _header(self) -> tuple[int, dict[str, Any]]:
        """Return the offset of the data and the tensors' descriptions.

        Source: https://github.com/huggingface/safetensors#format
        """
        size = int.from_bytes(self.storage.read_range(self.name, 0, 8), "little")
        if not 0 < size <= _MAX_HEADER_BYTES:
            raise ArtifactError(f"{self.name}: not a safetensors file (its header claims {size} bytes)")
        try:
            return 8 + size, json.loads(self.storage.read_range(self.name, 8, 8 + size))
        except ValueError as error:
            raise ArtifactError(f"{self.name}: not a safetensors file (its header is not JSON)") from error

    @cached_property
    def _mapped(self) -> np.memmap | None:
        local = self.storage.local_path(self.name)
        return None if local is None else np.memmap(local, dtype=np.uint8, mode="r")

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Return elements [start, stop) of the flat float32 tensor `key`."""
        data_offset, tensors = self._header
        entry = tensors.get(key)
        if not isinstance(entry, dict) or entry.get("dtype") != "F32":
            raise ArtifactError(f"{self.name}: holds no float32 tensor {key}")
        first, last = entry["data_offsets"]
        begin, end = data_offset + first + 4 * start, data_offset + first + 4 * stop
        if not data_offset + first <= begin <= end <= data_offset + last:
            raise ArtifactError(f"{self.name}: {key} has no elements {start} to {stop}")
        if self._mapped is not None:
            return self._mapped[begin:end].view(np.float32)
        return np.frombuffer(self.storage.read_range(self.name, begin, end), dtype=np.float32)


class FragmentReader:
    """Gives any flat range of any parameter's state, from whichever files hold it."""

    def __init__(self, storage: Storage, folder: str, index: Index) -> None:
        self._index = index
        files = {file for kinds in index.values() for ranges in kinds.values() for _, _, file in ranges}
        self._files = {file: FragmentFile(storage, f"{folder}/{file}") for file in files}

    def read(self, parameter: str, kind: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) as flat float32; it may be a view of a file, so it is only read.

        Raises:
            ArtifactError: some of them are in no file.
        """
        parts = list(self._parts(parameter, kind, start, stop))
        values = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype=np.float32), *parts])
        if len(values) < stop - start:
            raise ArtifactError(f"no file holds elements {start + len(values)} to {stop} of {kind} of {parameter}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(values)

    def _parts(self, parameter: str, kind: str, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield what lies from `start` on without a gap, a file at a time."""
        position = start
        for first, last, file in self._index.get(parameter, {}).get(kind, ()):
            if first <= position < last and position < stop:
                until = min(last, stop)
                yield self._files[file].read(fragment_key(parameter, kind, first), position - first, until - first)
                position = until
