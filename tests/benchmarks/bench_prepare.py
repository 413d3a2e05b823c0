"""Text to shards beside the batch calls of `tokenizers` and `tiktoken`, same vocabulary (GPT-2's), same cores.

Code is Python's own and that of the installed packages; English is what shared/data has and the texts in triple quotes
of that code; other languages are the catalogues of messages in /usr/share/locale, of which a machine may have none. All
are lines of jsonl, up to 100 MB of each, so that starting counts for little; `tokenizers` gets the first 20 MB.

Run: python tests/benchmarks/bench_prepare.py

Ours reads files, tokenises, and writes shards, start of the processes included; the peers get text that is already in
memory and leave lists of numbers in memory. Only `tiktoken from files` reads the same files and writes its tokens.
"""

import gettext
import json
import random
import re
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from tiktoken import Encoding

from modules.config import DataConfig, TokenizerConfig
from modules.cores import num_cores
from modules.data.prepare import prepare_tokens
from modules.data.stdlib import LocalFile, stdlib_files
from modules.data.traits import token_bytes

Row = tuple[str, float, float, float]
GPT2 = Path(__file__).parents[3] / "shared" / "data" / "gpt2_tokenizer.json"
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
TEXT_BYTES, TOKENIZERS_BYTES = 100_000_000, 20_000_000
REPEATS = 3


def main() -> list[Row]:
    """Megabytes of text a second, ours and each peer's; a ratio above 1 says that ours is faster."""
    if not GPT2.exists():
        print(f"bench_prepare: skipped, there is no {GPT2.name} in shared/data")
        return []
    return [row for kind, texts in _texts().items() if texts for row in _rows(kind, texts)]


def _rows(kind: str, texts: list[str]) -> list[Row]:
    few = _first(iter(texts), TOKENIZERS_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        files = _written(Path(folder), texts)
        runs = {
            "ours": (texts, lambda: _ours(files)),
            "tokenizers encode_batch": (few, _tokenizers(few)),
            "tiktoken encode_ordinary_batch": (texts, lambda: _tiktoken(texts)),
            "tiktoken from files": (texts, lambda: _tiktoken_from(files, Path(folder) / "tokens.bin")),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(REPEATS):
            for name in runs if repeat % 2 else reversed(runs):
                of, run = runs[name]
                start = time.perf_counter()
                run()
                rates[name].append(sum(len(text.encode()) for text in of) / 1e6 / (time.perf_counter() - start))
    ours, *peers = ((name, statistics.median(found)) for name, found in rates.items())
    return [(f"{kind} to shards beside {name} (MB/s)", ours[1], peer, ours[1] / peer) for name, peer in peers]


def _texts() -> dict[str, list[str]]:
    kinds = {"code": _code(), "English": _english(), "other": _other()}
    return {kind: _first(found, TEXT_BYTES) for kind, found in kinds.items()}


def _code() -> Iterator[str]:
    for root in (None, sysconfig.get_path("purelib")):
        yield from ((Path(file.root) / file.name).read_text("utf-8") for file in stdlib_files(root))


def _first(texts: Iterator[str], most: int) -> list[str]:
    chosen, size = [], 0
    for text in texts:
        chosen.append(text)
        size += len(text.encode())
        if size >= most:
            break
    return chosen


def _english() -> Iterator[str]:
    for name in ("sentiment_movie_reviews", "topics_packages", "dialogue_dolly", "dialogue_chitchat"):
        for line in (GPT2.parent / f"{name}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            yield row.get("text") or "\n".join(turn["content"] for turn in row["messages"])
    for text in _code():
        yield from re.findall(r'"""(.{100,}?)"""', text, re.DOTALL)


def _other() -> Iterator[str]:
    """Yield the messages of each catalogue of a language with letters beyond ASCII, in an order that mixes them."""
    catalogues = sorted(Path("/usr/share/locale").rglob("*.mo"))
    random.Random(0).shuffle(catalogues)
    for path in catalogues:
        try:
            with path.open("rb") as stream:
                messages = gettext.GNUTranslations(stream)._catalog.values()
        except (OSError, UnicodeDecodeError, IndexError):
            continue
        text = "\n".join(message for message in messages if isinstance(message, str))
        if len(text.encode()) > 1.05 * len(text):
            yield text


def _written(folder: Path, texts: list[str]) -> list[LocalFile]:
    """Write the texts as rows of files of a megabyte."""
    contents: list[list[str]] = [[]]
    for text in texts:
        if sum(map(len, contents[-1])) > 1_000_000:
            contents.append([])
        contents[-1].append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    for number, rows in enumerate(contents):
        (folder / f"{number:03d}.jsonl").write_text("".join(rows), encoding="utf-8")
    return [LocalFile(str(folder), path.name, path.stat().st_size) for path in sorted(folder.iterdir())]


def _ours(files: list[LocalFile]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = TokenizerConfig(kind="file", path=str(GPT2))
        prepare_tokens(files, DataConfig(), tokenizer, GPT2.read_bytes(), Path(folder), lambda *_: None)


def _tokenizers(texts: list[str]) -> Callable[[], object]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(GPT2))
    return lambda: tokenizer.encode_batch(texts)


def _tiktoken(texts: list[str]) -> list[list[int]]:
    return _tiktoken_encoding().encode_ordinary_batch(texts, num_threads=num_cores())


def _tiktoken_from(files: list[LocalFile], path: Path) -> None:
    texts = [json.loads(line)["text"] for file in files for line in file.open()]
    np.concatenate([np.array(ids, dtype=np.uint16) for ids in _tiktoken(texts)]).tofile(path)


@cache
def _tiktoken_encoding() -> Encoding:
    vocabulary = json.loads(GPT2.read_bytes())["model"]["vocab"]
    end_of_text = vocabulary.pop("<|endoftext|>")
    ranks = {token_bytes(token): rank for token, rank in vocabulary.items()}
    return Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": end_of_text})


if __name__ == "__main__":
    for name, ours, peer, ratio in main():
        print(f"{name:60s} ours {ours:7.2f}   peer {peer:7.2f}   ratio {ratio:5.2f}")
