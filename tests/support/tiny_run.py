"""The smallest whole run: its text, its arguments on the command line, and how to take it back to an earlier step."""

import random
import shutil
from pathlib import Path

TINY = (
    "data=files",
    "data.split=position",
    "data.val_fraction=0.1",
    "tokenizer=byte",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.hidden_dim=32",
    "model.max_positions=32",
    "objective=mixed",
    "optimizer.warmup_steps=4",
    "training.num_steps=20",
    "training.sequence_length=32",
    "training.global_batch_size=8",
    "training.log_interval_steps=1",
    "training.val_interval_steps=10",
    "training.val_batches=2",
    "checkpoint.interval_steps=10",
)


def write_text(path: Path, num_words: int = 6000) -> Path:
    """Write text that a tiny model can learn something about."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "sleeps"]
    path.write_text(" ".join(random.Random(0).choices(words, k=num_words)), encoding="utf-8")
    return path


def arguments(text: Path, root: Path, *others: str) -> list[str]:
    """Return the arguments of `pretrain` on that text, stored below `root`; later arguments win."""
    return ["pretrain", *TINY, f"data.path={text}", f"storage.root={root}", *others]


def go_back(run_folder: Path, step: int) -> None:
    """Remove the checkpoints after `step` and the results of a run, as if it had been interrupted there."""
    for folder in run_folder.glob("checkpoints/step_*"):
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)
    shutil.rmtree(run_folder / "model", ignore_errors=True)
    (run_folder / "metrics.json").unlink(missing_ok=True)
