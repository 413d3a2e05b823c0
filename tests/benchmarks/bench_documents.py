"""Attention within documents, forward and backward, beside one call of torch's with a mask of T x T: time and memory.

On a GPU both are in bfloat16, and one kernel takes all documents; on CPU in float32, where documents come in turn.
Peak memory is what a process of its own grows by, on CPU as in bench_head_loss.py, on a GPU what torch allocates there.

Run: python tests/benchmarks/bench_documents.py
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from bench_head_loss import DEVICE, peak
from bench_training_step import alternating_medians
from torch import Tensor

from modules.attention import DotProduct
from modules.examples import Examples

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
NUM_HEADS, WIDTH, REPEATS = 4, 64, 9


class Setting(NamedTuple):
    """Rows of `length` tokens, cut from one text whose documents have `document` tokens on average."""

    rows: int
    length: int
    document: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.length:,}, about {self.document:,} tokens each"


SETTINGS = (Setting(8, 256, 60), Setting(8, 256, 1000), Setting(4, 1024, 250), Setting(1, 4096, 1000))


def main() -> Iterator[Row]:
    """Medians in milliseconds, in turns, and peak memory in MiB at the longest rows."""
    for setting in SETTINGS:
        ours, masked = (
            1000 * seconds
            for seconds in alternating_medians([training_pass(which, setting) for which in PEERS], REPEATS)
        )
        yield f"attention in documents, {setting} (ms)", ours, masked, ours / masked
    ours, masked = (
        float(subprocess.run([sys.executable, __file__, which], stdout=subprocess.PIPE, check=True).stdout)
        for which in PEERS
    )
    yield f"attention in documents, {SETTINGS[-1]}, peak memory (MiB)", ours, masked, ours / masked


def training_pass(which: str, setting: Setting) -> Callable[[], None]:
    """Forward and backward of one layer's attention, whose gradients are dropped at once."""
    heads, attend = queries_keys_values(setting), PEERS[which](setting)

    def run() -> None:
        torch.autograd.grad(attend(*heads).sum(), heads)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return run


def queries_keys_values(setting: Setting) -> list[Tensor]:
    """Three of [rows, heads, length, width], laid out as a linear map makes them."""
    generator = torch.Generator().manual_seed(1)
    shape = (setting.rows, setting.length, NUM_HEADS, WIDTH)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    drawn = [torch.randn(shape, generator=generator).to(DEVICE, dtype).transpose(1, 2) for _ in range(3)]
    return [heads.requires_grad_() for heads in drawn]


def starts_of_documents(setting: Setting) -> Tensor:
    """Which tokens begin a document, or a row, bool [rows, length]."""
    generator = torch.Generator().manual_seed(2)
    starts = torch.rand(setting.rows, setting.length, generator=generator) < 1 / setting.document
    starts[:, 0] = True
    return starts


def ours(setting: Setting) -> Callable[..., Tensor]:
    """Attention as the model computes it."""
    places = [*starts_of_documents(setting).flatten().nonzero().flatten().tolist(), setting.rows * setting.length]
    examples = Examples([stop - start for start, stop in pairwise(places)], DEVICE)
    within = DotProduct(dropout=0.0)
    return lambda q, k, v: within(q, k, v, None, True, examples)


def with_mask(setting: Setting) -> Callable[..., Tensor]:
    """Attention as it is written without a kernel for lengths."""
    documents = starts_of_documents(setting).cumsum(1).to(DEVICE)
    causal = torch.ones(setting.length, setting.length, dtype=torch.bool, device=DEVICE).tril()
    mask = (documents[:, None, :, None] == documents[:, None, None, :]) & causal
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


PEERS = {"ours": ours, "with a mask": with_mask}


def print_peak(which: str) -> None:
    """Print by how many MiB one pass at the longest rows raises the peak, its mask included."""
    training_pass(which, Setting(1, 8, 8))()  # thread pools and libraries take their memory first
    before = peak()
    training_pass(which, SETTINGS[-1])()
    print(peak() - before)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print_peak(sys.argv[1])
    else:
        for row in main():
            print("{:72s} {:10.1f} {:10.1f} {:8.2f}".format(*row))
