"""Output head and loss, forward and backward, beside plain logits and cross entropy: time and peak memory.

Peak memory is the growth of the process's largest resident size (VmHWM) over its size with the inputs in place,
each in a process of its own: it counts every page that was touched, whoever allocated it.

Run: python tests/benchmarks/bench_head_loss.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.cross_entropy import linear_cross_entropy

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
SETTINGS = (
    # name, tokens, width, vocabulary, rows of the weight, repeats
    ("8 x 1,024 tokens of 50,304", 8192, 768, 50304, 50304, 3),
    ("8 x 256 tokens of 8,192", 2048, 128, 8192, 8192, 9),
    ("12 x 64 tokens of 65", 768, 128, 65, 128, 51),
)


def main() -> list[Row]:
    """Medians of the time in milliseconds, taking turns, and the peak memory in MiB at the largest setting."""
    rows = [memory_row(0)]
    for name, num_tokens, width, vocab_size, num_rows, repeats in SETTINGS:
        data = inputs(num_tokens, width, vocab_size, num_rows)
        ours, plain, compiled = alternating_medians(data, vocab_size, repeats)
        rows.append((f"head and loss, {name}, beside plain logits (ms)", ours, plain, ours / plain))
        rows.append((f"head and loss, {name}, compiled beside plain (ms)", compiled, plain, compiled / plain))
    return rows


def memory_row(number: int) -> Row:
    """Peak memory of a setting, each variant in a fresh process."""
    ours, plain = (
        float(
            subprocess.run([sys.executable, __file__, variant, str(number)], stdout=subprocess.PIPE, check=True).stdout
        )
        for variant in ("ours", "plain")
    )
    return f"head and loss, {SETTINGS[number][0]}, peak memory (MiB)", ours, plain, ours / plain


def alternating_medians(data: tuple[Tensor, Tensor, Tensor], vocab_size: int, repeats: int) -> list[float]:
    """Milliseconds of ours, of plain and of ours with compiled passes over the logits, after one warm-up each."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": [], "compiled": []}
    for _ in range(repeats + 1):
        for variant, times in seconds.items():
            start = time.perf_counter()
            forward_and_backward(variant, data, vocab_size)
            times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times[1:]) for times in seconds.values()]


def forward_and_backward(variant: str, data: tuple[Tensor, Tensor, Tensor], vocab_size: int) -> None:
    """Gradients of hidden states and weight, dropped at once."""
    hidden, weight, targets = data
    if variant != "plain":
        is_compiled = variant == "compiled"
        loss = linear_cross_entropy(hidden, weight, targets, vocab_size, is_compiled=is_compiled) / len(targets)
    else:
        loss = F.cross_entropy(hidden @ weight[:vocab_size].t(), targets)
    torch.autograd.grad(loss, (hidden, weight))


def inputs(num_tokens: int, width: int, vocab_size: int, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(num_tokens, width, generator=generator).requires_grad_()
    weight = torch.randn(num_rows, width, generator=generator).mul_(0.02).requires_grad_()
    return hidden, weight, torch.randint(0, vocab_size, (num_tokens,), generator=generator)


def print_peak(variant: str, number: int) -> None:
    """Prints by how many MiB one forward and backward raises this process's peak."""
    _, num_tokens, width, vocab_size, num_rows, _ = SETTINGS[number]
    forward_and_backward(variant, inputs(8, 8, 8, 8), 8)  # thread pools and libraries take their memory first
    data = inputs(num_tokens, width, vocab_size, num_rows)
    before = peak_mib()
    forward_and_backward(variant, data, vocab_size)
    print(peak_mib() - before)


def peak_mib() -> float:
    """Largest resident size of this process so far; `ru_maxrss` would count what its parent held before the exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print_peak(sys.argv[1], int(sys.argv[2]))
    else:
        for row in main():
            print("{:72s} {:10.1f} {:10.1f} {:8.2f}".format(*row))
