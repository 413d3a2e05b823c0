"""Greedy decoding beside transformers' generate with its faster cache, on the same random weights of SmolLM2-135M.

Both run eagerly and take turns, in an order that alternates. A token's time is the median over the intervals between
tokens of all repeats, so that what disturbs the machine for a while counts little. With one thread the clock is the
processor time of the process: on a busy machine two threads wait for each other at every product, often tenfold.

Run: python tests/benchmarks/bench_decoding.py [--tokens 24] [--repeats 3] [--threads 1]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from precisions import measured_precisions
from torch import Tensor

from modules.generation.sampler import sample
from modules.generation.sampling import Sampling
from modules.huggingface.export import save_huggingface
from modules.inference import PreparedLinear, prepare_for_inference
from modules.model import GPT, initialize
from modules.model_config import ModelConfig

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
MODEL = Path(__file__).parents[2] / "conf/model/smollm2_135m.yaml"
VOCAB = 49152
SETTINGS = [(batch, length) for batch in (1, 8) for length in (32, 512)]
"""Sequences at once and tokens of the prompt."""
PEERS = {"dynamic": {}, "static": {"cache_implementation": "static", "disable_compile": True}}


@dataclass(frozen=True)
class Size:
    """How long a benchmark runs."""

    num_tokens: int = 64
    """New tokens of each text."""
    repeats: int = 3
    """Texts of each system, after one that warms up."""
    first_repeats: int = 8
    """Texts besides, of one token each: a long text has as many intervals as tokens, but one first token."""


@dataclass
class Times:
    """Seconds of one system."""

    first: list[float] = field(default_factory=list)
    """From the call to the first token."""
    intervals: list[float] = field(default_factory=list)
    """Between two tokens."""

    def add(self, moments: Sequence[float]) -> None:
        """Add the moments of a call and of each of its tokens."""
        self.first.append(moments[1] - moments[0])
        self.intervals += [later - earlier for earlier, later in pairwise(moments[1:])]


def main(size: Size | None = None) -> Iterator[Row]:
    """Medians of the time a token, the first token's time, and what caps the gain."""
    size = size or Size()
    for precision in measured_precisions():
        models = Models(torch.float32 if precision == "32" else torch.bfloat16)
        for batch, length in SETTINGS:
            for found in setting_rows(models, batch, length, size):
                print("{:84s} {:10.2f} {:10.2f} {:8.2f}".format(*found), flush=True)
                yield found


def now() -> float:
    """Seconds of processor time with one thread, else of the wall clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Models:
    """Ours, plain and, where this processor gains by it, prepacked, and that of transformers, of the same weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        plain = OmegaConf.to_container(OmegaConf.load(MODEL))
        model = GPT(ModelConfig.model_validate(plain), VOCAB).eval()
        initialize(model, seed=1)
        self.dtype = dtype
        self.peer = transformers_model(model, dtype)
        prepacked = deepcopy(model)
        prepare_for_inference(model, dtype)
        start = now()
        prepare_for_inference(prepacked, dtype, prepack=True)
        self.prepacking_seconds = now() - start
        is_packed = any(isinstance(module, PreparedLinear) and module.is_packed for module in prepacked.modules())
        self.ours = {"eager": model, "prepacked": prepacked} if is_packed else {"eager": model}
        if not is_packed:
            print("weights are not laid out anew on this processor: no rows of prepacked ones", file=sys.stderr)

    def systems(self, prompt: list[int], batch: int, num_tokens: int) -> dict[str, Callable[[], list[float]]]:
        """Functions that write one text and return the moments of the call and of each token."""
        ours = {name: partial(our_moments, model, prompt, batch, num_tokens) for name, model in self.ours.items()}
        peers = {name: partial(peer_moments, self.peer, prompt, batch, num_tokens, PEERS[name]) for name in PEERS}
        return ours | peers


def transformers_model(model: GPT, dtype: torch.dtype) -> Any:
    """transformers' Llama with the same weights."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(Path(folder), model.config, model.vocab_size, model.named_parameters())
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    peer.generation_config.pad_token_id = 0
    return peer


def our_moments(model: GPT, prompt: list[int], batch: int, num_tokens: int) -> list[float]:
    """Moments of the call and of each token."""
    sampling = Sampling(num_sequences=batch, max_new_tokens=num_tokens, temperature=0)
    return [now(), *(now() for _ in sample(model, [prompt], sampling))]


def peer_moments(peer: Any, prompt: list[int], batch: int, num_tokens: int, options: dict[str, Any]) -> list[float]:
    """Moments of the call and of each token."""
    ids, clock = torch.tensor([prompt] * batch), Clock()
    start = now()
    peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        streamer=clock,
        **options,
    )
    return [start, *clock.moments[1:]]


class Clock:
    """A streamer of transformers that notes when it is given the prompt and each token."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, _: Tensor) -> None:
        self.moments.append(now())

    def end(self) -> None:
        pass


def setting_rows(models: Models, batch: int, length: int, size: Size) -> list[Row]:
    """A token's and the first token's time, and the caps, at one batch size and length of the prompt."""
    prompt = torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    times = alternating(models.systems(prompt, batch, size.num_tokens), size.repeats)
    for system, found in alternating(models.systems(prompt, batch, 1), size.first_repeats).items():
        times[system].first += found.first
    token = {name: 1000 * statistics.median(each.intervals) for name, each in times.items()}
    first = {name: 1000 * statistics.median(each.first) for name, each in times.items()}
    name = f"{str(models.dtype).removeprefix('torch.')}, batch {batch}, prompt {length}"
    rows = []
    for what, median in (("a token", token), ("first token", first)):
        peer = min(median[each] for each in PEERS)
        rows += [row(f"{what}, {form}, {name} (ms)", median[form], peer) for form in models.ours]
    return rows + cap_rows(models, batch, length, size, name, token)


def cap_rows(models: Models, batch: int, length: int, size: Size, name: str, token: dict[str, float]) -> list[Row]:
    """What linear layers alone take of the peer's token, bytes read a token, and whether prepacking pays."""
    peer = min(token[each] for each in PEERS)
    alone = 1000 * linear_seconds(models, batch, size)
    streamed = streamed_bytes(models, batch, length + size.num_tokens // 2) / 1e6
    fastest = min(token[form] for form in models.ours)
    rows = [
        row(f"torch's linear layers alone, of the peer's token, {name} (ms)", alone, peer),
        row(f"weights and cache, of the memory's rate, {name} (GB/s)", streamed / fastest, memory_rate()),
    ]
    if "prepacked" in models.ours:
        packing, saved = 1000 * models.prepacking_seconds, size.num_tokens * (token["eager"] - token["prepacked"])
        rows.append(row(f"prepacking at the start, of what it saves later, {name} (ms)", packing, saved))
    return rows


def row(what: str, ours: float, peer: float) -> Row:
    """A row of the table."""
    return what, ours, peer, ours / peer


def alternating(systems: dict[str, Callable[[], list[float]]], repeats: int) -> dict[str, Times]:
    """Times of the systems, which take turns, each time in the opposite order."""
    times = {name: Times() for name in systems}
    order = list(systems)
    for repeat in range(repeats + 1):
        for name in order:
            moments = systems[name]()
            if repeat:
                times[name].add(moments)
        order.reverse()
    return times


@torch.inference_mode()
def linear_seconds(models: Models, batch: int, size: Size) -> float:
    """Median seconds of the products with all weights of the peer, one after another, by PyTorch's own function."""
    weights = [module.weight for module in models.peer.modules() if isinstance(module, torch.nn.Linear)]
    inputs = [torch.randn(batch, 1, weight.shape[1]).to(weight.dtype) for weight in weights]
    seconds = []
    for _ in range(10 * size.repeats):
        start = now()
        for weight, x in zip(weights, inputs, strict=True):
            F.linear(x, weight)
        seconds.append(now() - start)
    return statistics.median(seconds)


def streamed_bytes(models: Models, batch: int, num_positions: int) -> int:
    """Bytes of the weights, and of keys and values of so many positions, that one token of each sequence needs."""
    config = models.ours["eager"].config
    weights = sum(module.weight.numel() for module in models.peer.modules() if isinstance(module, torch.nn.Linear))
    cached = 2 * config.num_layers * batch * config.kv_heads * num_positions * config.width_per_head
    return (weights + cached) * models.dtype.itemsize


def memory_rate() -> float:
    """Median rate of reading a tensor that no processor cache holds, in GB/s."""
    large, seconds = torch.ones(2**27), []
    for _ in range(5):
        start = now()
        large.sum()
        seconds.append(now() - start)
    return large.nbytes / statistics.median(seconds) / 1e9


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=Size.num_tokens, help="new tokens of each text")
    parser.add_argument("--repeats", type=int, default=Size.repeats, help="texts of each system")
    parser.add_argument("--threads", type=int, help="threads of torch; 1 measures processor time")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    list(main(Size(arguments.tokens, arguments.repeats)))
