"""Sweeps whose children are functions: they write what a training would write, in no time."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fake_children import FakeChildren, FakeProcess
from pipelines import PlainComposer

from orchestrator.cli import trials
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.configuration.sweep import SweepConfig
from orchestrator.pipeline.admission import Ledger, Resources
from orchestrator.pipeline.child import Order
from orchestrator.storage.store import Storage
from orchestrator.sweep.driver import Driver, Scheduler
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.trial import Trial

RATES = "optimizer.learning_rate=tag(log,interval(1e-4,1e-2))"


class SmallSweep(FakeChildren):
    """Trials of `pretrain`, whose metric is the better the nearer the learning rate is to 0.001."""

    def __init__(self, folder: Path, *texts: str, **settings: Any) -> None:
        super().__init__()
        self.folder, self.storage = folder, Storage(str(folder / "out"))
        self.settings = SweepConfig.model_validate({"method": "random", "num_trials": 4, **settings})
        self.texts = texts or (RATES, "training.num_steps=20")
        self.trials = trials.space(self.texts, self.settings.method).trials(self.settings)

    def driver(self, cpus: float = 2.0, scheduler: Scheduler | None = None) -> Driver:
        return Driver(self.sweep(), Ledger(Resources(cpus)), self.start, lambda _: None, scheduler)

    def sweep(self) -> Sweep:
        self.trials = trials.space(self.texts, self.settings.method).trials(self.settings)
        configs = {one.number: self.composed(one) for one in self.trials}
        root = str(self.folder / "out")
        return Sweep("small", "pretrain", self.trials, configs, "val/loss_clm", self.storage, root)

    def composed(self, trial: Trial) -> PretrainConfig:
        words = [*trial.words, "data.source=files", "data.path=text.txt"]
        config = PlainComposer().compose("pretrain", words)
        assert isinstance(config, PretrainConfig)
        return config

    def run(self, cpus: float = 2.0, scheduler: Scheduler | None = None) -> list[str]:
        """Run it to its end, and return the trials whose children have run."""
        self.started.clear()
        self.driver(cpus, scheduler).run()
        return list(self.started)

    def start(self, order: Order) -> "FakeTraining":
        return FakeTraining(self, order)

    def record(self, trial: str) -> dict[str, Any]:
        return json.loads((self.folder / f"out/sweeps/small/trials/{trial}.json").read_text())


class FakeTraining(FakeProcess):
    """One trial."""

    def __init__(self, sweep: SmallSweep, order: Order) -> None:
        self.sweep, self.trial = sweep, order.path.rpartition("/")[2]
        super().__init__(sweep, order, self.trial)

    @property
    def loss(self) -> float:
        """The metric at the end."""
        (rate,) = (float(word.partition("=")[2]) for word in self.order.words if word.startswith("optimizer.learning"))
        return abs(math.log10(rate) + 3)

    def validate(self, *losses: float) -> None:
        """Write the losses of the validations after each step."""
        lines: Sequence[Any] = [
            {
                "order": [1, 1, step],
                "kind": "validation",
                "step": step,
                "time": float(step),
                "metrics": {"val/loss_clm": loss},
            }
            for step, loss in enumerate(losses, 1)
        ]
        content = "\n".join(map(json.dumps, lines)).encode()
        self.sweep.storage.write_bytes(f"{self.order.path}/history/000001-0000000001-000001.jsonl", content)

    def finish(self) -> None:
        """Write the metrics of a complete run."""
        storage, path = self.sweep.storage, self.order.path
        storage.write_bytes(f"{path}/recipe.json", b"{}")
        metrics = {"progress/step": 20, "val/loss_clm": self.loss}
        storage.write_bytes(f"{path}/metrics.json", json.dumps(metrics).encode())
