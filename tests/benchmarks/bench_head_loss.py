"""Output head and loss, forward and backward, beside plain logits and cross entropy: time and peak memory.

On a GPU products are in bfloat16, and a second peer is plain torch as torch.compile makes it. Peak memory is what one
pass adds in a process of its own: on CPU to the largest resident size (VmHWM), which counts every page that was
touched, whoever allocated it; on a GPU to what torch has allocated there.

Run: python tests/benchmarks/bench_head_loss.py
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.cross_entropy import linear_cross_entropy

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_CPU = (
    # name, tokens, width, vocabulary, rows of the weight, repeats
    ("8 x 1,024 tokens of 50,304", 8192, 768, 50304, 50304, 3),
    ("8 x 256 tokens of 8,192", 2048, 128, 8192, 8192, 9),
    ("12 x 64 tokens of 65", 768, 128, 65, 128, 51),
)
ON_GPU = (
    ("12 x 1,024 tokens of 50,304", 12288, 768, 50304, 50304, 15),
    ("2 x 4,096 tokens of 128,256", 8192, 4096, 128256, 128256, 9),
)
SETTINGS = ON_GPU if DEVICE.type == "cuda" else ON_CPU


def main() -> Iterator[Row]:
    """Medians of the time in milliseconds, taking turns, and the peak memory in MiB at the largest setting."""
    yield memory_row(0)
    for name, num_tokens, width, vocab_size, num_rows, repeats in SETTINGS:
        data = inputs(num_tokens, width, vocab_size, num_rows)
        ours, plain, compiled, *compiled_plain = alternating_medians(data, vocab_size, repeats)
        yield f"head and loss, {name}, beside plain logits (ms)", ours, plain, ours / plain
        yield f"head and loss, {name}, compiled beside plain (ms)", compiled, plain, compiled / plain
        for peer in compiled_plain:
            yield f"head and loss, {name}, compiled beside compiled plain (ms)", compiled, peer, compiled / peer


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
    """Milliseconds of ours, of plain and of ours with compiled passes over the logits, after one warm-up each.

    On a GPU also of plain torch compiled as a whole.
    """
    seconds: dict[str, list[float]] = {"ours": [], "plain": [], "compiled": []}
    if DEVICE.type == "cuda":
        seconds["compiled plain"] = []
    for _ in range(repeats + 1):
        for variant, times in seconds.items():
            start = time.perf_counter()
            forward_and_backward(variant, data, vocab_size)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times[1:]) for times in seconds.values()]


def forward_and_backward(variant: str, data: tuple[Tensor, Tensor, Tensor], vocab_size: int) -> None:
    """Gradients of hidden states and weight, dropped at once."""
    hidden, weight, targets = data
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
        if variant in ("ours", "compiled"):
            is_compiled = variant == "compiled"
            loss = linear_cross_entropy(hidden, weight, targets, vocab_size, is_compiled=is_compiled) / len(targets)
        else:
            loss = (plain_loss if variant == "plain" else compiled_plain_loss())(hidden, weight[:vocab_size], targets)
    torch.autograd.grad(loss, (hidden, weight))


def plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean loss, as it is written without further thought."""
    return F.cross_entropy(hidden @ weight.t(), targets)


@cache
def compiled_plain_loss() -> Callable[..., Tensor]:
    """The same compiled as a whole, as in a compiled model."""
    return torch.compile(plain_loss)


def inputs(num_tokens: int, width: int, vocab_size: int, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(num_tokens, width, generator=generator)
    weight = torch.randn(num_rows, width, generator=generator).mul_(0.02)
    targets = torch.randint(0, vocab_size, (num_tokens,), generator=generator)
    return hidden.to(DEVICE).requires_grad_(), weight.to(DEVICE).requires_grad_(), targets.to(DEVICE)


def print_peak(variant: str, number: int) -> None:
    """Prints by how many MiB one forward and backward raises this process's peak."""
    _, num_tokens, width, vocab_size, num_rows, _ = SETTINGS[number]
    forward_and_backward(variant, inputs(8, 8, 8, 8), 8)  # thread pools and libraries take their memory first
    data = inputs(num_tokens, width, vocab_size, num_rows)
    before = peak()
    forward_and_backward(variant, data, vocab_size)
    print(peak() - before)


def peak() -> float:
    """Most MiB so far, of the GPU if there is one."""
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else peak_mib()


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
