"""Trainings on one GPU: GPT-2 in bfloat16 beside nanoGPT on the same card, ZeRO beside one process, 1.5B beside `plan`.

Each is a command of its own, ours and nanoGPT's in turns; figures are medians of a command's steps, the first left out.
nanoGPT gets random tokens, ours text of Python's standard library: the same shapes, and speed depends on nothing else.
`rehearse` runs the same with tiny models on a CPU, to see that every row is made; its figures mean nothing.

Run: [NANOGPT=folder] python tests/benchmarks/bench_gpu.py [rehearse]
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from bench_plan_throughput import device as device_config
from nanogpt import nanogpt_folder

from modules.model_config import ModelConfig
from orchestrator.planning.memory import Setting, memory
from orchestrator.planning.speed import step_seconds, work

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
REPEATS = 2
INTERVAL = 10
"""Steps from one line of a log to the next."""
GOAL_MFU = 0.45
CARDS = {"H100": "h100", "H200": "h200", "A100": "a100_80gb", "L4": "l4"}
PEERS_STEP = re.compile(r"^iter \d+: loss [\d.]+, time ([\d.]+)ms", re.MULTILINE)
CONF = Path(__file__).resolve().parents[2] / "conf"


@dataclass(frozen=True)
class Scale:
    """What is trained where."""

    device: str
    models: tuple[str, str]
    """Options of `model`: the one beside nanoGPT, and the large one."""
    length: int
    micro_batches: tuple[int, int]
    accumulation: int
    num_steps: int
    vocab_size: int
    settings: tuple[str, ...]
    """Of every training of ours."""


ON_GPU = Scale(
    "cuda",
    ("gpt2_124m", "gpt2_1558m"),
    length=1024,
    micro_batches=(12, 8),
    accumulation=8,
    num_steps=60,
    vocab_size=50257,
    settings=(
        "training.precision=bf16",
        "training.compile=true",
        "training.head_loss=compiled",
        "cluster.gpus_per_worker=1",
        "data.max_bytes=30000000",
    ),
)
REHEARSAL = Scale(
    "cpu",
    ("tiny", "tiny"),
    length=64,
    micro_batches=(2, 2),
    accumulation=2,
    num_steps=30,
    vocab_size=512,
    settings=("cluster.gpus_per_worker=0", "data.max_bytes=300000"),
)


class Training(NamedTuple):
    """Medians of a training of ours: tokens a second, share of the GPU's peak (0 where it is not known), and bytes."""

    tokens_per_second: float
    mfu: float
    peak_bytes: float


def main(scale: Scale = ON_GPU) -> Iterator[Row]:
    """Speed and memory; raises `RuntimeError` without a GPU, and at the end `FileNotFoundError` without nanoGPT."""
    if scale.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("there is no GPU, so nothing was measured on one")
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        small, large = (partial(trained, Path(folder), scale, index) for index in range(2))
        missing = None
        try:
            yield from beside_nanogpt(Path(folder), scale, small)
        except FileNotFoundError as error:
            missing = error
        one = small("one", "strategy=single")
        for stage in (1, 2, 3):
            zero = small(f"zero{stage}", f"strategy=zero{stage}")
            ratio = zero.tokens_per_second / one.tokens_per_second
            what = f"{scale.models[0]}, zero{stage} beside one process (tokens/s)"
            yield what, zero.tokens_per_second, one.tokens_per_second, ratio
        blocks = large("large", "strategy=single", "training.activation_checkpointing=blocks")
        yield from beside_plan(scale, blocks)
    if missing is not None:
        raise missing


def beside_nanogpt(folder: Path, scale: Scale, small: "partial[Training]") -> Iterator[Row]:
    """The small model: ours and nanoGPT's tokens a second, and how far ours is from a share of the peak."""
    peer = prepared_peer(folder, scale)
    ours: list[Training] = []
    others: list[float] = []
    for repeat in range(REPEATS):
        turns = [
            lambda n=repeat: ours.append(small(f"beside-{n}", "strategy=single")),
            lambda: others.append(nanogpt(peer, scale)),
        ]
        for turn in turns if repeat % 2 else reversed(turns):
            turn()
    own, other = statistics.median(each.tokens_per_second for each in ours), statistics.median(others)
    yield f"{scale.models[0]} beside nanoGPT (tokens/s)", own, other, own / other
    if mfu := statistics.median(each.mfu for each in ours):
        yield (
            f"{scale.models[0]} beside {GOAL_MFU:.0%} of the peak (tokens/s)",
            own,
            own * GOAL_MFU / mfu,
            mfu / GOAL_MFU,
        )


def beside_plan(scale: Scale, blocks: Training) -> Iterator[Row]:
    """The large model, its blocks computed again: memory and, where the card is known, speed beside the plan's."""
    setting = setting_of(scale)
    planned = memory(setting, "single").on_device
    what = f"{scale.models[1]}, blocks computed again, beside its plan"
    yield f"{what} (GiB)", blocks.peak_bytes / 2**30, planned / 2**30, blocks.peak_bytes / planned
    name = torch.cuda.get_device_name() if scale.device == "cuda" else ""
    for card in (option for part, option in CARDS.items() if part in name):
        tokens = scale.length * scale.micro_batches[1] * scale.accumulation
        speed = tokens / step_seconds(work(setting, "single", 0.0), device_config(card))
        yield f"{what} (tokens/s)", blocks.tokens_per_second, speed, blocks.tokens_per_second / speed


def setting_of(scale: Scale) -> Setting:
    """What `plan` needs to know of the large model's training."""
    values = yaml.safe_load((CONF / "model" / f"{scale.models[1]}.yaml").read_text(encoding="utf-8"))
    return Setting(
        ModelConfig.model_validate(values),
        scale.vocab_size,
        "bf16" if scale.device == "cuda" else "32",
        scale.length,
        scale.micro_batches[1],
        accumulation=scale.accumulation,
        activation_checkpointing="blocks",
        head_loss="compiled" if scale.device == "cuda" else "eager",
        device="cuda" if scale.device == "cuda" else "cpu",
    )


def trained(folder: Path, scale: Scale, index: int, name: str, *more: str) -> Training:
    """Train one of the two models by `orchestrator pretrain`; the text is prepared by the first one."""
    micro_batch = scale.micro_batches[index]
    settings = [
        *("data=stdlib", "tokenizer=bpe", f"tokenizer.vocab_size={scale.vocab_size}", "tracking=disabled"),
        *("data.split=position", "data.val_fraction=0.05", "optimizer.warmup_steps=5"),
        *(f"model={scale.models[index]}", f"model.max_positions={scale.length}", f"run.name={name}"),
        *(f"training.sequence_length={scale.length}", f"training.micro_batch_size={micro_batch}"),
        *(f"training.global_batch_size={micro_batch * scale.accumulation}", f"training.num_steps={scale.num_steps}"),
        *(f"training.log_interval_steps={INTERVAL}", f"training.val_interval_steps={scale.num_steps}"),
        *("training.val_batches=1", f"checkpoint.interval_steps={scale.num_steps}"),
    ]
    run(["-m", "orchestrator", "pretrain", *settings, *scale.settings, *more], folder)
    logged = [figures for figures in history(folder / "outputs/runs" / name) if figures["progress/step"] > 2 * INTERVAL]
    names = ("throughput/tokens_per_second", "throughput/mfu", "memory/peak_bytes")
    return Training(*(statistics.median(figures[each] for figures in logged) for each in names))


def history(of_run: Path) -> Iterator[dict[str, float]]:
    """The figures of each logged step of a run."""
    for file in sorted((of_run / "history").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["kind"] == "step":
                yield entry["metrics"]


def prepared_peer(folder: Path, scale: Scale) -> Path:
    """A copy of nanoGPT with random tokens, so that the given one stays as it is."""
    peer = shutil.copytree(nanogpt_folder(), folder / "nanogpt", ignore=shutil.ignore_patterns(".git", "assets"))
    data = peer / "data/random"
    data.mkdir()
    tokens = np.random.default_rng(1).integers(0, scale.vocab_size, size=4_000_000, dtype=np.uint16)
    for split in ("train", "val"):
        tokens.tofile(data / f"{split}.bin")
    return peer


def nanogpt(peer: Path, scale: Scale) -> float:
    """Tokens a second of nanoGPT's own command."""
    config = yaml.safe_load((CONF / "model" / f"{scale.models[0]}.yaml").read_text(encoding="utf-8"))
    settings = {
        "dataset": "random",
        "device": scale.device,
        "dtype": "bfloat16" if scale.device == "cuda" else "float32",
        "compile": scale.device == "cuda",
        "batch_size": scale.micro_batches[0],
        "block_size": scale.length,
        "gradient_accumulation_steps": scale.accumulation,
        "n_layer": config["num_layers"],
        "n_head": config["num_heads"],
        "n_embd": config["hidden_dim"],
        "dropout": config["dropout"],
        "bias": True,
        "max_iters": scale.num_steps,
        "eval_iters": 1,
        "eval_interval": 10 * scale.num_steps,
        "log_interval": 1,  # it waits for the GPU there, so that a step's time is its own
    }
    said = run(["train.py", *(f"--{name}={value}" for name, value in settings.items())], peer)
    milliseconds = [float(each) for each in PEERS_STEP.findall(said)][2 * INTERVAL :]
    return scale.length * scale.micro_batches[0] * scale.accumulation / (statistics.median(milliseconds) / 1000)


def run(command: Sequence[str], folder: Path) -> str:
    """What a Python command prints; raises `RuntimeError` with the last lines if it fails."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    for row in main(REHEARSAL if sys.argv[1:] == ["rehearse"] else ON_GPU):
        print("{:72s} {:12.1f} {:12.1f} {:8.2f}".format(*row), flush=True)
