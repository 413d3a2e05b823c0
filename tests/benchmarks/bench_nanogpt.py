"""Seconds of the whole training command to nanoGPT's quality on a CPU, by AdamW and by Muon, beside nanoGPT's.

nanoGPT's setting is that of its README for a CPU ("I only have a macbook"): 4 layers of width 128, 12 sequences of 64
characters, 2,000 steps of AdamW, validation loss 1.88. Ours are `+experiment=shakespeare_char` and
`+experiment=shakespeare_char_muon`. Text is prepared before; all three validate every 250 steps on 20 batches, and a
row fails if its training does not end at 1.886 or lower, but for the error of such a validation (0.02).

Run: NANOGPT=folder SHAKESPEARE=tinyshakespeare.txt python tests/benchmarks/bench_nanogpt.py
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from nanogpt import nanogpt_folder

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
REPEATS = 3
GOAL, ERROR = 1.886, 0.02
"""Nats a character; the standard error of a loss on 20 batches of 12 x 64 characters."""
NANOGPT = [
    *("train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20"),
    *("--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128"),
    *("--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
]
PEERS_LOSS = re.compile(r"^step \d+: train loss [\d.]+, val loss ([\d.]+)", re.MULTILINE)
OUR_LOSS = re.compile(r"validation: bits per byte [\d.]+, clm ([\d.]+)")


def main() -> list[Row]:
    """Medians in seconds; the three take turns, forwards and backwards."""
    with tempfile.TemporaryDirectory(prefix="bench-nanogpt-") as folder:
        peer, ours = prepared_peer(Path(folder)), prepared(Path(folder))
        seconds: dict[str, list[float]] = {"nanoGPT": [], "shakespeare_char": [], "shakespeare_char_muon": []}
        for repeat in range(REPEATS):
            for name, times in seconds.items() if repeat % 2 else reversed(seconds.items()):
                if name == "nanoGPT":
                    times.append(seconds_to_goal(NANOGPT, peer, PEERS_LOSS))
                else:
                    command = pretrain(name, f"run.name={name}-{repeat}", "tracking=disabled")
                    times.append(seconds_to_goal(command, ours, OUR_LOSS))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        (f"text to validation {GOAL}, {optimizer}, beside nanoGPT (s)", medians[ours], medians["nanoGPT"], ratio)
        for optimizer, ours in (("AdamW", "shakespeare_char"), ("Muon", "shakespeare_char_muon"))
        for ratio in [medians[ours] / medians["nanoGPT"]]
    ]


def prepared_peer(folder: Path) -> Path:
    """A copy of nanoGPT with its data prepared, so that the given one stays as it is."""
    peer = shutil.copytree(nanogpt_folder(), folder / "nanogpt", ignore=shutil.ignore_patterns(".git", "assets"))
    data = peer / "data/shakespeare_char"
    shutil.copy(text(), data / "input.txt")
    subprocess.run([sys.executable, "prepare.py"], cwd=data, capture_output=True, check=True)
    return peer


def prepared(folder: Path) -> Path:
    """A folder in which our commands find the text prepared."""
    ours = folder / "ours"
    ours.mkdir()
    data = ["data=files", f"data.path={text()}", "data.split=position", "data.val_fraction=0.1", "tokenizer=char"]
    subprocess.run([sys.executable, "-m", "orchestrator", "prepare", *data], cwd=ours, capture_output=True, check=True)
    return ours


def pretrain(experiment: str, *more: str) -> list[str]:
    """A training of ours, without the interpreter."""
    return ["-m", "orchestrator", "pretrain", f"+experiment={experiment}", f"data.path={text()}", *more]


def text() -> Path:
    """Tiny Shakespeare, whose name the variable SHAKESPEARE holds."""
    path = Path(os.environ.get("SHAKESPEARE", ""))
    if not path.is_file():
        raise FileNotFoundError("SHAKESPEARE names no text (tinyshakespeare.txt), so nothing was compared with nanoGPT")
    return path.resolve()


def seconds_to_goal(command: Sequence[str], folder: Path, loss: re.Pattern[str]) -> float:
    """Run `command` to its end; raises `RuntimeError` if its last validation has missed the goal."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    last = float(loss.findall(done.stdout)[-1])
    print(f"{' '.join(command[:4])}: {seconds:.1f} s, validation {last}", file=sys.stderr, flush=True)
    if last > GOAL + ERROR:
        raise RuntimeError(f"{' '.join(command)}: validation {last}, not {GOAL}")
    return seconds


if __name__ == "__main__":
    for row in main():
        print("{:72s} {:10.1f} {:10.1f} {:8.2f}".format(*row))
