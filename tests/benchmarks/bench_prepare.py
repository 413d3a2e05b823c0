"""Text to shards beside the batch calls of `tokenizers` and `tiktoken`, same vocabulary (GPT-2's), same cores.

Run: python tests/benchmarks/bench_prepare.py

Ours reads files, tokenises, and writes shards, start of the processes included; the peers get text that is already in
memory and leave lists of numbers in memory.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from modules.config import DataConfig, TokenizerConfig
from modules.cores import num_cores
from modules.data.prepare import prepare_tokens
from modules.data.stdlib import LocalFile, stdlib_files
from modules.data.traits import byte_alphabet

Row = tuple[str, float, float, float]
GPT2 = Path(__file__).parents[3] / "shared" / "data" / "gpt2_tokenizer.json"
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
TEXT_BYTES = 20_000_000
REPEATS = 5


def main() -> list[Row]:
    """Megabytes of text a second, ours and each peer's; a ratio above 1 says that ours is faster."""
    if not GPT2.exists():
        print(f"bench_prepare: skipped, there is no {GPT2.name} in shared/data")
        return []
    files = _files(TEXT_BYTES)
    texts = [(Path(file.root) / file.name).read_text("utf-8") for file in files]
    peers = {"tokenizers encode_batch": _tokenizers(texts), "tiktoken encode_ordinary_batch": _tiktoken(texts)}
    rates: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    num_bytes = sum(file.num_bytes for file in files)
    for repeat in range(REPEATS):
        runs = {"ours": lambda: _ours(files), **peers}
        for name in runs if repeat % 2 else reversed(runs):
            start = time.perf_counter()
            runs[name]()
            rates[name].append(num_bytes / 1e6 / (time.perf_counter() - start))
    ours = statistics.median(rates["ours"])
    medians = {name: statistics.median(rates[name]) for name in peers}
    return [(f"text to shards beside {name} (MB/s)", ours, peer, ours / peer) for name, peer in medians.items()]


def _files(num_bytes: int) -> list[LocalFile]:
    chosen: list[LocalFile] = []
    for file in stdlib_files():
        if sum(each.num_bytes for each in chosen) >= num_bytes:
            break
        chosen.append(file)
    return chosen


def _ours(files: list[LocalFile]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = TokenizerConfig(kind="file", path=str(GPT2))
        prepare_tokens(files, DataConfig(), tokenizer, GPT2.read_bytes(), Path(folder), lambda *_: None)


def _tokenizers(texts: list[str]) -> Callable[[], object]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(GPT2))
    return lambda: tokenizer.encode_batch(texts)


def _tiktoken(texts: list[str]) -> Callable[[], object]:
    from tiktoken import Encoding

    bytes_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    vocabulary = json.loads(GPT2.read_bytes())["model"]["vocab"]
    end_of_text = vocabulary.pop("<|endoftext|>")
    ranks = {bytes(bytes_of[character] for character in token): rank for token, rank in vocabulary.items()}
    encoding = Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": end_of_text}
    )
    return lambda: encoding.encode_ordinary_batch(texts, num_threads=num_cores())


if __name__ == "__main__":
    for name, ours, peer, ratio in main():
        print(f"{name:60s} ours {ours:7.2f}   peer {peer:7.2f}   ratio {ratio:5.2f}")
