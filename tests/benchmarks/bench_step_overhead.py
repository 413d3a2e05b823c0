"""What a step costs over a raw torch loop on a next to empty model: our `train` beside plain Lightning.

All train the same GPT of one layer, 8 wide, on the same batches with the same optimizer and loss, so that what is left
above the raw loop is overhead. Ours is `train` as a launcher calls it, with all that it does every step: learning rate,
gradient clipping, throughput, metrics every 10 steps; checkpoints and validation are there and not due. Plain Lightning
does none of this; in the second row it clips and logs the loss, too.

Run: python tests/benchmarks/bench_step_overhead.py
"""

import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from modules.data.batches import Batch, Share
from modules.losses import causal_loss
from modules.model import GPT, initialize
from modules.optimizer import build_optimizer, parameter_groups
from orchestrator.artifacts.prepared_data import DataRequirements, prepared_data
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.configuration.commands import PretrainConfig, TrainingRunConfig
from orchestrator.distributed.runtime import Event, Runtime
from orchestrator.runs import run as runs
from orchestrator.runs.run import Job
from orchestrator.storage.store import Storage
from orchestrator.training.pretraining import PreparedText
from orchestrator.training.train import train

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
WINDOW = 50
"""Steps between two looks at the clock."""
NUM_STEPS = 7 * WINDOW
"""The first window warms up and does not count."""
REPEATS = 7
NEVER = 10**9


def main() -> list[Row]:
    """Microseconds a step over the raw loop; medians over all windows of runs that take turns."""
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch)\b")
    with tempfile.TemporaryDirectory(prefix="bench-step-") as folder:
        medians = alternating_medians(make_runs(Path(folder)))
    ours, raw = medians.pop("ours"), medians.pop("raw torch")
    return [_row(f"beside {name}", ours - raw, peer - raw) for name, peer in medians.items()]


def _row(beside: str, ours_over_raw: float, peer_over_raw: float) -> Row:
    name = f"step over a raw torch loop, {beside} (microseconds)"
    return name, ours_over_raw, peer_over_raw, ours_over_raw / peer_over_raw


def alternating_medians(runs_by_name: dict[str, Callable[[], list[float]]]) -> dict[str, float]:
    """Median microseconds a step of each."""
    times: dict[str, list[float]] = {name: [] for name in runs_by_name}
    for repeat in range(REPEATS):
        for name in runs_by_name if repeat % 2 else reversed(runs_by_name):
            stamps = runs_by_name[name]()
            windows = [after - before for before, after in itertools.pairwise(stamps)]
            times[name] += [seconds / WINDOW * 1e6 for seconds in windows[1:]]
    return {name: statistics.median(each) for name, each in times.items()}


def make_runs(folder: Path) -> dict[str, Callable[[], list[float]]]:
    """Trainings that return the time after every `WINDOW` steps."""
    job = make_job(folder)
    config, storage = job.config, Storage(str(folder))
    size = config.training.global_batch_size

    def batches() -> Iterator[Batch]:
        """The batches that ours trains on, made in the same way and at the same cost."""
        return job.objective.open(storage).batches(Share(size, size), first_step=0)

    return {
        "ours": lambda: ours(job),
        "raw torch": lambda: raw_torch(config, batches()),
        "plain Lightning": lambda: lightning(config, batches(), clips_and_logs=False),
        "Lightning that clips and logs": lambda: lightning(config, batches(), clips_and_logs=True),
    }


def ours(job: Job) -> list[float]:
    """`train` on one process; the figures that it reports every 10 steps come when the step is done."""
    stamps = []

    def emit(event: Event) -> None:
        if event["kind"] == "step" and event["step"] % WINDOW == 0:
            stamps.append(time.perf_counter())

    again = replace(job.run, name=f"repeat-{time.monotonic_ns()}")
    train(replace(job, run=again, attempt=Attempt(again.name, 0, "")), Runtime(emit=emit))
    return stamps


def raw_torch(config: TrainingRunConfig, stream: Iterable[Batch]) -> list[float]:
    """The loop of a tutorial."""
    stamps: list[float] = []
    model = build_model(config)
    optimizer = build_optimizer(parameter_groups(model, config.optimizer), config.optimizer)
    for batch in stamped(stream, stamps):
        loss = causal_loss(model, batch).total / batch["targets"].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return stamps


class Plain(LightningModule):
    """The least that Lightning needs."""

    def __init__(self, config: TrainingRunConfig, logs: bool) -> None:
        super().__init__()
        self.model, self._config, self._logs = build_model(config), config.optimizer, logs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = causal_loss(self.model, batch).total / batch["targets"].numel()
        if self._logs:
            self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(parameter_groups(self.model, self._config), self._config)


def lightning(config: TrainingRunConfig, stream: Iterable[Batch], clips_and_logs: bool) -> list[float]:
    """A fit without callbacks; the clock is looked at when a batch is asked for."""
    stamps: list[float] = []
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=NUM_STEPS,
        max_epochs=-1,
        gradient_clip_val=config.optimizer.gradient_clip_norm if clips_and_logs else None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Plain(config, clips_and_logs), stamped(stream, stamps))
    return stamps


def stamped(stream: Iterable[Batch], stamps: list[float]) -> Iterator[Batch]:
    """Yield `NUM_STEPS` batches; the time goes to `stamps` before each window."""
    for step, batch in enumerate(itertools.islice(stream, NUM_STEPS)):
        if step % WINDOW == 0:
            stamps.append(time.perf_counter())
        yield batch


def build_model(config: TrainingRunConfig) -> GPT:
    """The model with its first weights."""
    model = GPT(config.model, config.model.vocab_size or 0)
    initialize(model, seed=1)
    return model


def make_job(folder: Path) -> Job:
    """A job over a little prepared text; ours trains it again under a new name each time."""
    (folder / "text.txt").write_text("the quick brown fox jumps over a lazy dog. " * 500)
    config = PretrainConfig.model_validate(
        {
            "storage": {"root": str(folder)},
            "data": {"source": "files", "path": str(folder / "text.txt"), "split": "position", "val_fraction": 0.1},
            "tokenizer": {"kind": "byte"},
            "model": {"num_layers": 1, "num_heads": 1, "hidden_dim": 8, "max_positions": 8, "vocab_size": 320},
            "training": {
                "num_steps": NUM_STEPS + 1,  # the last step saves, and no window holds it
                "sequence_length": 8,
                "global_batch_size": 1,
                "val_interval_steps": NEVER,
                "val_batches": 1,
                "log_interval_steps": 10,
            },
            "checkpoint": {"interval_steps": NEVER},
            "tracking": {"mode": "disabled"},
        }
    )
    storage = Storage(config.storage.root)
    name = prepared_data(storage, config.data, config.tokenizer, DataRequirements(), lambda _: lambda *_: None)
    run = runs.open_run(storage, config, runs.training_recipe(config, name))
    return Job(config, run, Attempt(run.name, 0, ""), PreparedText(name, config))


if __name__ == "__main__":
    for row in main():
        print("{:88s} {:10.1f} {:10.1f} {:8.2f}".format(*row))
