"""The layout of a rank's fragments as one safetensors file, computed before any byte is copied."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from orchestrator.checkpoints.parts import Index
from orchestrator.distributed.training_state import MASTER, MOMENTS, Fragment

_ALIGNMENT = 8
_ORDER = (MASTER, *MOMENTS)
"""Order of the kinds in a file; reading only the weights reads a third of it."""


@dataclass(frozen=True)
class Snapshot:
    """The current state, which must be written or copied before the next step.

    Source: https://github.com/huggingface/safetensors#format
    """

    fragments: tuple[Fragment, ...]

    @classmethod
    def of(cls, fragments: Iterable[Fragment]) -> "Snapshot":
        """Return the snapshot of the fragments that are not empty."""
        held = [fragment for fragment in fragments if fragment.start < fragment.stop]
        return cls(tuple(sorted(held, key=lambda fragment: _ORDER.index(fragment.kind))))

    @property
    def num_bytes_with_moments(self) -> int:
        """`num_bytes` for the same parameters with moments; an upper bound where some have but one."""
        masters = [item for item in self.fragments if item.kind == MASTER]
        return Snapshot.of(replace(item, kind=kind) for item in masters for kind in _ORDER).num_bytes

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self._offsets[-1]

    @property
    def index(self) -> Index:
        """Which ranges the file holds, and where."""
        index: Index = {}
        for item, offset in zip(self.fragments, self._offsets[:-1], strict=True):
            index.setdefault(item.parameter, {}).setdefault(item.kind, []).append((item.start, item.stop, offset))
        return index

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes of the file: the header, then each fragment."""
        yield memoryview(self._header)
        for fragment in self.fragments:
            yield _flat(fragment).cpu().numpy().data.cast("B")

    def copy_into(self, memory: Tensor) -> None:
        """Copy the file into `memory`, uint8 [num_bytes]; the copies of a device are only begun."""
        memory[: len(self._header)] = torch.frombuffer(bytearray(self._header), dtype=torch.uint8)
        for fragment, offset in zip(self.fragments, self._offsets[:-1], strict=True):
            values = _flat(fragment)
            memory[offset : offset + 4 * values.numel()].view(torch.float32).copy_(values, non_blocking=True)

    @cached_property
    def _header(self) -> bytes:
        tensors, offset = {}, 0
        for item in self.fragments:
            stop = offset + 4 * (item.stop - item.start)
            entry = {"dtype": "F32", "shape": [item.stop - item.start], "data_offsets": [offset, stop]}
            tensors[f"{item.parameter}/{item.kind}/{item.start}"] = entry
            offset = stop
        text = json.dumps(tensors, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        """Offset of each fragment in the file, and the end of the file."""
        offsets = [len(self._header)]
        for item in self.fragments:
            offsets.append(offsets[-1] + 4 * (item.stop - item.start))
        return tuple(offsets)


def _flat(fragment: Fragment) -> Tensor:
    return fragment.view.detach().float().contiguous()
