"""What `orchestrator plan` computes for published runs, beside what they reached, in tokens per second and device.

The efficiencies of the plan are fitted to every other row of `published_throughput.csv` (the first, the third, …); the
rows between them are only predicted. Asked for: a median error of at most 15 %. The fit is made anew here, so that
constants and rows cannot part. The rows are those of MosaicML's llm-foundry, scripts/train/benchmarking/README.md at
commit 8c8dd48, all of its tables but that of FP8; the shapes are those of its scripts/train/yamls/pretrain/mpt-*.yaml.

Runs of other programs are predicted, too, without a part in the fit and without communication: nanochat's d26 of 8 H100
(dev/LOG.md at commit 92d63d4, 630,000 tokens a second; it is compiled, and attends within windows), and the 47 % of the
peak that Megatron-LM's README (commit d98e8a6) gives for GPT-3 175B on 96 H100, split in ways that we do not have.

Run: python tests/benchmarks/bench_plan_throughput.py
"""

import csv
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from modules.model_config import ModelConfig
from orchestrator.configuration.planning import DeviceConfig, LinkConfig
from orchestrator.planning.memory import Setting
from orchestrator.planning.speed import COSTS, Costs, Work, step_seconds, work

Row = tuple[str, float, float]
"""What was measured (unit), the plan's error, and what was asked for."""
PUBLISHED = Path(__file__).with_name("published_throughput.csv")
CONF = Path(__file__).resolve().parents[2] / "conf"
DEVICES = {"a100_40gb": "a100_40gb", "a100_80gb": "a100_80gb", "h100_80gb": "h100"}
LINKS = {"a100_40gb": "infiniband_hdr", "a100_80gb": "infiniband_hdr", "h100_80gb": "infiniband_ndr"}
"""Of the nodes: 1600 Gb/s for eight A100, as the tables say; for eight H100 taken as 3200 Gb/s."""
_HALF = 2


@dataclass(frozen=True)
class PublishedRun:
    """One row."""

    source: str
    model: str
    device: str
    layers: int
    heads: int
    width: int
    mlp: int
    vocab: int
    length: int
    devices: int
    micro_batch: int
    accumulation: int
    sharding: str
    recomputes: bool
    tokens_per_second_per_device: float

    @property
    def name(self) -> str:
        return f"{self.source} {self.model}, {self.length:,} x {self.micro_batch}, {self.devices} {self.device}"

    @cached_property
    def device_config(self) -> DeviceConfig:
        return device(DEVICES[self.device])

    @cached_property
    def work(self) -> Work:
        """Its work in a step, by the plan's own formulas; sharded data parallelism sends as FSDP does."""
        shape = ModelConfig(
            num_layers=self.layers,
            num_heads=self.heads,
            hidden_dim=self.width,
            mlp_dim=self.mlp,
            max_positions=self.length,
        )
        setting = Setting(
            shape, self.vocab, "bf16", self.length, self.micro_batch, self.devices, accumulation=self.accumulation
        )
        gathers = {"full_shard": 3, "shard_grad_op": 2, "none": 0}[self.sharding]
        sent = self.accumulation * gathers * 2 * setting.num_trained * (self.devices - 1) / self.devices
        speed = 1e9 * (link("nvlink4" if self.device == "h100_80gb" else "nvlink3").gigabytes_per_second)
        if self.devices > 8:
            speed = 1e9 * link(LINKS[self.device]).gigabytes_per_second
        return replace(work(setting, "zero3", sent / speed), recomputes="blocks" if self.recomputes else "none")

    def predicted(self, costs: Costs = COSTS, matmul: float | None = None, attention: float | None = None) -> float:
        """Return tokens per second and device."""
        own = self.device_config
        if matmul is not None:
            own = own.model_copy(update={"matmul_efficiency": matmul, "attention_efficiency": attention})
        return self.length * self.micro_batch * self.accumulation / step_seconds(self.work, own, costs)


def published(others: bool = False) -> list[PublishedRun]:
    """Return the rows of llm-foundry, or those of the `others`."""
    return [run for run in _rows() if (run.source != "llm-foundry") == others]


def _rows() -> list[PublishedRun]:
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return [_run(row) for row in csv.DictReader(file)]


def device(name: str) -> DeviceConfig:
    """Return a device of `conf/device/`."""
    values = yaml.safe_load((CONF / "device" / f"{name}.yaml").read_text(encoding="utf-8"))
    values.pop("defaults")
    return DeviceConfig.model_validate(values)


def link(name: str) -> LinkConfig:
    """Return a link of `conf/link/`."""
    return LinkConfig.model_validate(yaml.safe_load((CONF / "link" / f"{name}.yaml").read_text(encoding="utf-8")))


def errors(runs: Sequence[PublishedRun]) -> list[float]:
    """Return predicted / published - 1 of each."""
    return [run.predicted() / run.tokens_per_second_per_device - 1 for run in runs]


def fitted(runs: Sequence[PublishedRun]) -> dict[str, float]:
    """Return the efficiencies and costs with the least error over `runs`: logarithms, large errors counted linearly."""
    from scipy.optimize import least_squares

    names = ("a100 matmul", "h100 matmul", "a100 attention", "h100 attention", *vars(COSTS))
    begin = np.log([0.6, 0.5, 0.5, 0.4, *vars(COSTS).values()])

    def residuals(logarithms: np.ndarray) -> list[float]:
        costs, own = _costs_and_efficiencies(dict(zip(names, np.exp(logarithms).tolist(), strict=True)))
        rates = [run.predicted(costs, *own[run.device[0]]) for run in runs]
        return [math.log(rate / run.tokens_per_second_per_device) for rate, run in zip(rates, runs, strict=True)]

    found = least_squares(residuals, begin, loss="soft_l1", f_scale=0.1)
    return dict(zip(names, np.exp(found.x).tolist(), strict=True))


def _run(row: dict[str, str]) -> PublishedRun:
    texts = {"source", "model", "device", "sharding"}
    values = {name: row[name] if name in texts else int(row[name]) for name in list(row)[:13]}
    return PublishedRun(
        **values,  # type: ignore[arg-type]
        recomputes=row["recomputes"] == "true",
        tokens_per_second_per_device=float(row["tokens_per_second_per_device"]),
    )


def left_out(runs: Sequence[PublishedRun]) -> dict[str, float]:
    """Return for each size of model the median error of its rows when none of them has a part in the fit."""
    found = {}
    for model in dict.fromkeys(run.model for run in runs):
        values = fitted([run for run in runs if run.model != model][::_HALF])
        costs, own = _costs_and_efficiencies(values)
        off = [
            abs(run.predicted(costs, *own[run.device[0]]) / run.tokens_per_second_per_device - 1)
            for run in runs
            if run.model == model
        ]
        found[model] = statistics.median(off)
    return found


def _costs_and_efficiencies(values: dict[str, float]) -> tuple[Costs, dict[str, tuple[float, float]]]:
    own = {name[0]: (values[f"{name} matmul"], values[f"{name} attention"]) for name in ("a100", "h100")}
    return Costs(**{name: values[name] for name in vars(COSTS)}), own


def main() -> list[Row]:
    """Show every row that was not fitted, and return their figures."""
    runs = published()
    held_out = [*runs[1::_HALF], *published(others=True)]
    for run, error in zip(held_out, errors(held_out), strict=True):
        print(f"{run.name:<60} {run.tokens_per_second_per_device:>9,.0f} {run.predicted():>9,.0f} {error:>+7.1%}")
    found = [abs(error) for error in errors(runs[1::_HALF])]
    nine_in_ten = float(np.quantile(found, 0.9))
    print(f"median {statistics.median(found):.1%}, nine in ten within {nine_in_ten:.1%}, at most {max(found):.1%}")
    print("fitted:", {name: round(value, 4) for name, value in fitted(runs[::_HALF]).items()})
    print("median of a size left out of the fit:", {name: f"{value:.1%}" for name, value in left_out(runs).items()})
    return [
        ("plan: median error of published tokens/s that were not fitted (%)", 100 * statistics.median(found), 15.0),
        ("plan: the same, within which nine in ten lie (%)", 100 * nine_in_ten, 15.0),
    ]


if __name__ == "__main__":
    main()
    sys.exit(0)
