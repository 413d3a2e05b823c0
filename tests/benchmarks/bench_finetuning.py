"""A step of fine-tuning beside transformers: SmolLM2-135M's shape, the same examples, the same number in a batch.

The peer is what `Trainer` does at its best setting: batches grouped by length and padded to their longest example,
attention by `sdpa`, fused AdamW, clipped gradients. Ours are rows without padding, of which only positions with a
target enter the output head. Rates count real tokens. Both take turns, on one thread by the processor time of the
process, because on a busy machine two threads wait for each other; with more threads by the clock, alone on a machine.
Peak memory is the growth of the largest resident size (VmHWM) over the size before the model is made, each in a process
of its own, in two steps on the largest batch.

Run: python tests/benchmarks/bench_finetuning.py [--batches 6] [--precision 32 bf16] [--threads 1]
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from precisions import measured_precisions
from torch import Tensor, nn

from modules.config import OptimizerConfig
from modules.data.batches import Share
from modules.data.example_batches import ExampleBatches, ExampleSplit
from modules.huggingface.folder import to_huggingface
from modules.model import GPT, initialize
from modules.model_config import ModelConfig
from modules.optimizer import build_optimizer, parameter_groups

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
MODEL = Path(__file__).parents[2] / "conf/model/smollm2_135m.yaml"
VOCAB, NUM_CLASSES, PADDING, LONGEST = 49152, 2, 2, 512
GROUPED_BATCHES = 50
"""Batches among which `Trainer` sorts examples by length."""


@dataclass(frozen=True)
class Work:
    """Examples of a task, whose lengths are distributed as in a data set tokenised for SmolLM2."""

    batch_size: int
    median: float
    spread: float
    """Standard deviation of the logarithm of the lengths."""
    target_fraction: float
    """Of the tokens of an example, at its end; 0 for a classification."""

    @property
    def is_classification(self) -> bool:
        return not self.target_fraction

    @cached_property
    def split(self) -> ExampleSplit:
        """Random tokens, one example a pack."""
        generator, number = np.random.default_rng(0), self.batch_size * GROUPED_BATCHES
        lengths = generator.lognormal(np.log(self.median), self.spread, number).astype(np.int64).clip(3, LONGEST)
        offsets = np.concatenate([[0], lengths.cumsum()])
        places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        num_prompt = lengths - np.maximum(1, lengths * self.target_fraction).astype(np.int64)
        return ExampleSplit(
            tokens=generator.integers(3, VOCAB, offsets[-1]),
            offsets=offsets,
            order=np.arange(number),
            starts=np.arange(number + 1),
            pack_tokens=lengths,
            pack_targets=lengths - num_prompt,
            is_target=None if self.is_classification else places >= np.repeat(num_prompt, lengths),
            labels=generator.integers(0, NUM_CLASSES, number) if self.is_classification else None,
        )


WORKS = {
    "dialogue": Work(4, 139, 0.88, 0.37),  # databricks-dolly
    "translation": Work(16, 40, 0.47, 0.57),  # messages of Wagtail and JupyterLab
    "classification": Work(16, 22, 0.47, 0.0),  # film reviews
}


def main(num_batches: int = 6, precisions: Sequence[str] = (), threads: int = 1) -> list[Row]:
    """Real tokens per second and peak memory of each task in each precision."""
    works = [(name, precision) for precision in precisions or measured_precisions() for name in WORKS]
    return [row for name, precision in works for row in work_rows(name, precision, num_batches, threads)]


def work_rows(name: str, precision: str, num_batches: int, threads: int) -> list[Row]:
    """The two rows of a task."""
    peaks = [peak_in_child(side, name, precision) for side in SIDES]
    rates = tokens_per_second([side(WORKS[name], precision) for side in SIDES.values()], num_batches, threads)
    rows = [
        (f"fine-tuning, {name}, {precision} ({unit}", *pair, pair[0] / pair[1])
        for unit, pair in (("tokens/s)", rates), ("peak MiB)", peaks))
    ]
    for row in rows:
        print("{:72s} {:10.1f} {:10.1f} {:8.2f}".format(*row), flush=True)
    return rows


class Side:
    """One system that trains. `batches` are all that its sampler makes of the examples, the largest first."""

    def __init__(self, work: Work, precision: str, model: nn.Module, groups: Any) -> None:
        self.work, self.precision, self.model = work, precision, model
        self.optimizer = build_optimizer(groups, OptimizerConfig())
        self.batches: list[Any] = []

    def loss(self, batch: Any) -> Tensor:
        """The mean over the targets of a batch."""
        raise NotImplementedError

    def num_tokens(self, batch: Any) -> int:
        """The tokens of the examples of a batch."""
        raise NotImplementedError

    def step(self, batch: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else nullcontext():
            loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Ours(Side):
    """Rows without padding, in random order."""

    def __init__(self, work: Work, precision: str) -> None:
        model = GPT(model_config(), VOCAB).train()
        initialize(model, seed=1)
        self.score = nn.Linear(model.config.hidden_dim, NUM_CLASSES, bias=False)
        groups = parameter_groups(model, OptimizerConfig())
        if work.is_classification:
            groups.append({"params": list(self.score.parameters())})
        super().__init__(work, precision, model, groups)
        batches = ExampleBatches(work.split, Share(work.batch_size, work.batch_size), seed=1)
        rows = [row for step in range(GROUPED_BATCHES) for row in batches.micro_batches(step)]
        self.batches = sorted(rows, key=lambda row: -sum(row["lengths"]))

    def loss(self, batch: Any) -> Tensor:
        hidden = self.model(batch["input_ids"], lengths=batch["lengths"])[0]
        if self.work.is_classification:
            last = torch.tensor(batch["lengths"]).cumsum(0) - 1
            return F.cross_entropy(self.score(hidden.index_select(0, last)).float(), batch["labels"])
        chosen = hidden.index_select(0, batch["target_positions"])
        return self.model.head(chosen, batch["targets"]) / len(batch["targets"])

    def num_tokens(self, batch: Any) -> int:
        return int(self.work.split.pack_tokens[batch["sample_ids"]].sum())


class Transformers(Side):
    """Padded batches, grouped by length."""

    def __init__(self, work: Work, precision: str) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

        shape = to_huggingface(model_config(), VOCAB)
        kind = LlamaForSequenceClassification if work.is_classification else LlamaForCausalLM
        config = LlamaConfig(**shape, num_labels=NUM_CLASSES, pad_token_id=PADDING, attn_implementation="sdpa")
        model = kind(config).train()
        super().__init__(work, precision, model, [{"params": list(model.parameters())}])
        grouped = np.argsort(-work.split.pack_tokens, kind="stable").reshape(GROUPED_BATCHES, -1)
        self.batches = [padded(work.split, examples) for examples in grouped]

    def loss(self, batch: Any) -> Tensor:
        return self.model(**batch, use_cache=False).loss

    def num_tokens(self, batch: Any) -> int:
        return int(batch["attention_mask"].sum())


SIDES: dict[str, Callable[[Work, str], Side]] = {"ours": Ours, "transformers": Transformers}


def model_config() -> ModelConfig:
    """The shape of SmolLM2-135M."""
    return ModelConfig.model_validate(OmegaConf.to_container(OmegaConf.load(MODEL)))


def padded(split: ExampleSplit, examples: np.ndarray) -> dict[str, Tensor]:
    """A batch as `DataCollatorForSeq2Seq` and `DataCollatorWithPadding` make it."""
    longest = int(split.pack_tokens[examples].max())
    ids, mask = np.full((len(examples), longest), PADDING), np.zeros((len(examples), longest), dtype=np.int64)
    labels = np.full_like(ids, -100)
    for row, example in enumerate(examples):
        tokens = slice(split.offsets[example], split.offsets[example + 1])
        length = tokens.stop - tokens.start
        ids[row, :length], mask[row, :length] = split.tokens[tokens], 1
        if split.is_target is not None:
            labels[row, :length] = np.where(split.is_target[tokens], split.tokens[tokens], -100)
    if split.labels is not None:
        labels = split.labels[examples]
    return {name: torch.from_numpy(x) for name, x in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))}


def tokens_per_second(sides: Sequence[Side], num_batches: int, threads: int) -> list[float]:
    """Real tokens per second, over batches spread evenly from the largest to the smallest."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds, tokens = [0.0] * len(sides), [0] * len(sides)
    places = (np.arange(num_batches) + 0.5) * GROUPED_BATCHES / num_batches
    for turn, place in enumerate([GROUPED_BATCHES - 1, *places.astype(int)]):  # the first warms up
        for number in (0, 1) if turn % 2 else (1, 0):
            side = sides[number]
            start = clock()
            side.step(side.batches[place])
            if turn:
                seconds[number] += clock() - start
                tokens[number] += side.num_tokens(side.batches[place])
    return [count / time for count, time in zip(tokens, seconds, strict=True)]


def peak_in_child(side: str, name: str, precision: str) -> float:
    """Peak memory of one system, in a fresh process."""
    command = [sys.executable, __file__, "--peak", side, name, precision]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()[-1])


def print_peak(side: str, name: str, precision: str) -> None:
    """Print by how many MiB training raises this process's peak."""
    torch.set_num_threads(1)
    import transformers  # noqa: F401  so that both begin with the same modules

    before = resident_mib("VmRSS")
    trained = SIDES[side](WORKS[name], precision)
    for _ in range(2):  # the first has no moments of the optimizer yet
        trained.step(trained.batches[0])
    print(resident_mib("VmHWM") - before)


def resident_mib(field: str) -> float:
    """Resident size of this process; `ru_maxrss` would count what its parent held before the exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(*sys.argv[2:])
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--batches", type=int, default=6)
        parser.add_argument("--precision", nargs="+", default=[])
        parser.add_argument("--threads", type=int, default=1)
        parsed = parser.parse_args()
        main(parsed.batches, parsed.precision, parsed.threads)
