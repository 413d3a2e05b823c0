"""The header of a safetensors file, which says where in the file each tensor lies.

The `safetensors` library opens local files alone, and whole.
"""

import json
import math
from dataclasses import dataclass

import torch

from modules.errors import InputError
from modules.huggingface.folder import ModelFolder

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 * 10**6
"""The limit of the `safetensors` library."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies."""

    file: str
    start: int
    """First byte in the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_header(folder: ModelFolder, file: str) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a safetensors file by name, and its metadata.

    Raises:
        InputError: The file is damaged, too short, or holds numbers of another type than float32, float16 or bfloat16.

    Source: the format's description, https://github.com/huggingface/safetensors#format
    """
    where = f"{folder.url}/{file}"
    num_bytes = folder.num_bytes(file)
    try:
        length = int.from_bytes(_read(folder, file, 0, _LENGTH_BYTES), "little")
        if length > min(_MAX_HEADER_BYTES, num_bytes - _LENGTH_BYTES):
            raise ValueError("its header is longer than the file")
        header = json.loads(_read(folder, file, _LENGTH_BYTES, length))
        metadata = header.pop("__metadata__", None) or {}
        begin = _LENGTH_BYTES + length
        tensors = {name: _stored(entry, name, where, begin) for name, entry in header.items()}
        if any(tensor.start + _num_bytes(tensor) > num_bytes for tensor in tensors.values()):
            raise ValueError(f"it has {num_bytes} bytes, which is too few for its tensors")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{where}: not a readable safetensors file ({error}); fetch it again") from error
    return tensors, metadata


def _read(folder: ModelFolder, file: str, start: int, count: int) -> bytes:
    data = bytearray(count)
    folder.read_into(file, start, memoryview(data))
    return bytes(data)


def _stored(entry: dict, name: str, where: str, begin: int) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise InputError(f"{where}: {name} has numbers of type {entry['dtype']}; only {known} can be loaded")
    first, last = entry["data_offsets"]
    tensor = StoredTensor(str(where.rpartition("/")[2]), begin + first, _DTYPES[entry["dtype"]], tuple(entry["shape"]))
    if first < 0 or last - first != _num_bytes(tensor):
        raise ValueError(f"the bytes of {name} are not as many as its shape needs")
    return tensor


def _num_bytes(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize
