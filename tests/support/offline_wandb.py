"""What W&B has recorded offline, read from its `.wandb` files."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_records(file: Path) -> list[Any]:
    from wandb.proto import wandb_internal_pb2

    return [wandb_internal_pb2.Record.FromString(data) for data in read_log(file.read_bytes()[7:])]


def read_log(data: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log after W&B's header of 7 bytes, which counts into the first 32 KiB block."""
    position, parts = 0, b""
    while position + 7 <= len(data):
        left = 32768 - (position + 7) % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def config_of(run: Any) -> dict[str, Any]:
    return {item.key: json.loads(item.value_json) for item in run.config.update}


def history_of(records: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def summary_of(records: list[Any]) -> dict[str, Any]:
    updates = [item for record in records if record.HasField("summary") for item in record.summary.update]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def artifact_records(records: list[Any]) -> list[Any]:
    found = []
    for record in records:
        if record.HasField("artifact"):
            found.append(record)
        elif record.HasField("request") and record.request.HasField("log_artifact"):
            found.append(record.request.log_artifact)
    return found
