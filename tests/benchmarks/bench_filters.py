"""Each filter of text beside encoding with GPT-2's vocabulary: processor time of one process, on the same text.

Run: python tests/benchmarks/bench_filters.py

What every document costs once any filter is on (its digest, and its beginning with secrets masked) is a row of its own
and is taken off the others. What takes less than a hundredth of encoding's time is shown as that.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from modules.data.documents import cut_pieces
from modules.data.encoding import Passage, TextEncoder
from modules.data.quality.inspection import Inspector, InspectorSettings
from modules.data.quality.overlap import write_index
from modules.data.quality.rules import RULES

Row = tuple[str, float, float, float]
DATA = Path(__file__).parents[3] / "shared" / "data"
REPEATS = 3


def main() -> list[Row]:
    """Megabytes of text a second, each filter's and the encoder's; a ratio above 1 says that the filter is faster."""
    if not (DATA / "dialogue_chitchat.jsonl").exists():
        print("bench_filters: skipped, there is no dialogue_chitchat.jsonl in shared/data")
        return []
    texts = _conversations()
    num_bytes = sum(len(text.encode()) for text in texts)
    encoder = TextEncoder((DATA / "gpt2_tokenizer.json").read_text(encoding="utf-8"), np.dtype("<u2"))
    passages = [Passage(piece.text) for text in texts for piece in cut_pieces([text])]
    with tempfile.TemporaryDirectory() as folder:
        write_index(texts[-100:], 13, Path(folder))
        works: dict[str, Callable[[], Any]] = {"encoding": lambda: encoder.encode(passages)}
        for name, settings in _settings(folder).items():
            works[name] = _inspection(settings, texts)
        seconds = {name: _seconds(work) for name, work in works.items()}
    encoding, always = seconds.pop("encoding"), seconds["any filter"]
    own = {
        name: value if name == "any filter" else max(value - always, encoding / 100) for name, value in seconds.items()
    }
    rates = {name: num_bytes / 1e6 / value for name, value in own.items()}
    peer = num_bytes / 1e6 / encoding
    return [(f"{name} beside encoding (MB/s)", rate, peer, rate / peer) for name, rate in rates.items()]


def _conversations() -> list[str]:
    lines = (DATA / "dialogue_chitchat.jsonl").read_text(encoding="utf-8").splitlines()
    return ["\n".join(message["content"] for message in json.loads(line)["messages"]) for line in lines]


def _settings(index: str) -> dict[str, dict[str, Any]]:
    return {
        "any filter": {},
        **{f"filters.rules={name}": {"filters": {"rules": [name]}} for name in RULES},
        "filters.languages": {"filters": {"languages": ["en"]}},
        **{f"redact.kinds={kind}": {"redact": {"kinds": [kind]}} for kind in ("email", "ip", "key")},
        "redact.kinds=phone": {"redact": {"kinds": ["phone"], "phone_regions": ["US", "DE"]}},
        "decontaminate": {"held_out": index},
        "deduplicate.kind=near": {"signs": True},
    }


def _inspection(settings: dict[str, Any], texts: list[str]) -> Callable[[], Any]:
    inspector = Inspector(InspectorSettings.model_validate(settings))
    return lambda: inspector((texts, False))


def _seconds(work: Callable[[], Any]) -> float:
    """Return the median processor time, which other programs on the machine change little."""
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


if __name__ == "__main__":
    for name, ours, peer, ratio in main():
        print(f"{name:60s} ours {ours:7.2f}   peer {peer:7.2f}   ratio {ratio:5.2f}")
