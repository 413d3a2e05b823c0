"""Pipelines whose children are functions: they write what their commands would write, in no time."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from fake_children import FakeChildren, FakeProcess

from modules.config import Config
from orchestrator.artifacts import artifact
from orchestrator.cli.command import COMMANDS
from orchestrator.configuration import commands as config
from orchestrator.configuration.mistakes import validated
from orchestrator.configuration.pipeline import RunPipelineConfig
from orchestrator.errors import ConfigError
from orchestrator.pipeline.admission import Ledger, Resources
from orchestrator.pipeline.child import Order
from orchestrator.pipeline.driver import Driver
from orchestrator.pipeline.graph import checked_stages, with_needed
from orchestrator.pipeline.plan import Planner, recipes_of
from orchestrator.storage.store import Storage


class PlainComposer:
    """Composes as the command line does, without Hydra and its groups."""

    flags: list[str] = []

    def kind(self, command: str) -> type[Config]:
        if command not in COMMANDS:
            raise ConfigError(f"{command}: no such command")
        return getattr(config, COMMANDS[command].config)

    def compose(self, command: str, overrides: Sequence[str]) -> Config:
        values: dict[str, Any] = {}
        for word in overrides:
            key, _, value = word.partition("=")
            *groups, name = key.split(".")
            inner = values
            for group in groups:
                inner = inner.setdefault(group, {})
            inner[name] = yaml.safe_load(value)
        return validated(values, self.kind(command))


class Children(FakeChildren):
    """Starts functions in place of the children of stages."""

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage
        self.content: dict[str, str] = {}
        """By stage: what its result holds, in place of its name."""

    def start(self, order: Order) -> "FakeChild":
        return FakeChild(self, order)

    def write(self, order: Order, content: str) -> None:
        """Write what the command of an order writes."""
        if order.words[0] == "pretrain":
            self.storage.remove(f"{order.path}/model")
            folder = Path(tempfile.mkdtemp())
            (folder / "model.safetensors").write_text(content, encoding="utf-8")
            artifact.publish(self.storage, folder, f"{order.path}/model", {"kind": "model"})
            shutil.rmtree(folder, ignore_errors=True)
        elif order.words[0] == "report":
            self.storage.write_bytes(f"{order.path}/report/index.html", content.encode())
        else:
            self.storage.write_bytes(f"{order.path}/evaluation.json", json.dumps({"of": content}).encode())


class FakeChild(FakeProcess):
    """One stage."""

    def __init__(self, children: Children, order: Order) -> None:
        self.stage = order.path.rpartition("/")[2].rpartition("-" + order.attempt.run_name[:8])[0]
        super().__init__(children, order, self.stage)
        self._write, self._content = children.write, children.content.get(self.stage, self.stage)

    def finish(self) -> None:
        self._write(self.order, self._content)


class SmallPipeline:
    """base -> left and right -> both; each but `both` is a pretraining that reads a text of its own."""

    def __init__(self, folder: Path, name: str = "small", root: str | None = None) -> None:
        self.root = root or str(folder / "out")
        self.storage = Storage(self.root)
        self.folder, self.name = folder, name
        self.children = Children(self.storage)
        self.seeds = {"base": 1, "left": 2, "right": 3}
        for stage in self.seeds:
            if not (folder / f"{stage}.txt").exists():
                (folder / f"{stage}.txt").write_text(f"text of {stage}", encoding="utf-8")

    def config(self, **given: Any) -> RunPipelineConfig:
        stages: dict[str, Any] = {
            name: {
                "command": "pretrain",
                "overrides": ["data.source=files", f"data.path={self.folder / name}.txt", f"run.seed={seed}"],
                "inputs": {} if name == "base" else {"model.path": "base"},
            }
            for name, seed in self.seeds.items()
        }
        stages["both"] = {"command": "evaluate", "inputs": {"model.path": "left"}, "after": ["right"]}
        pipeline = {"name": self.name, "stages": stages}
        return RunPipelineConfig.model_validate({"pipeline": pipeline, "storage": {"root": self.root}, **given})

    def planner(self, **given: Any) -> Planner:
        config = self.config(**given)
        stages = with_needed(checked_stages(config, PlainComposer()), config.only)
        return Planner(self.name, self.storage, stages, recipes_of(stages, self.storage))

    def plan(self, **given: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
        found = self.planner(**given).plan(self.config(**given).force)
        return {name: (one.state, one.reasons) for name, one in found.items()}

    def driver(self, cpus: float = 2.0, address: str | None = None, max_lost_nodes: int = 0, **given: Any) -> Driver:
        return Driver(
            self.planner(**given),
            self.root,
            PlainComposer(),
            Ledger(Resources(cpus)),
            self.children.start,
            lambda _: None,
            address,
            max_lost_nodes,
        )

    def run(self, cpus: float = 2.0, **given: Any) -> list[str]:
        """Run it to its end, and return the stages whose children have run."""
        self.children.started.clear()
        config = self.config(**given)
        self.driver(cpus, **given).run(config.force, config.keep_going)
        return list(self.children.started)

    def path(self, stage: str) -> Path:
        (found,) = (self.folder / "out" / "runs" / self.name).glob(f"{stage}-*")
        return found


def write_eight_stages(folder: Path) -> Path:
    """Write a pipeline of eight stages of tiny models into a folder for --config-dir, and return that folder."""
    from tiny_run import TINY, write_text

    (folder / "conf/pipeline").mkdir(parents=True)
    text = write_text(folder / "text.txt")
    words = [*TINY, f"data.path={text}", "tracking=disabled"]
    small = [word for word in words if not word.startswith(("model", "tokenizer", "objective"))]
    stages: dict[str, Any] = {"base": {"command": "pretrain", "overrides": words}}
    for number in range(1, 4):
        inputs = {"model.path": "base"}
        stages[f"more{number}"] = {
            "command": "pretrain",
            "overrides": [*small, "training.num_steps=10", f"run.seed={number}"],
            "inputs": inputs,
        }
        stages[f"score{number}"] = {
            "command": "evaluate",
            "overrides": ["data=files", f"data.path={text}", "part=all"],
            "inputs": {"model.path": f"more{number}"},
        }
    stages["alone"] = {
        "command": "prepare",
        "overrides": ["data=files", f"data.path={text}", "data.split=position", "tokenizer=char"],
    }
    content = yaml.safe_dump({"name": "eight", "stages": stages}, sort_keys=False)
    (folder / "conf/pipeline/eight.yaml").write_text(f"# @package pipeline\n# Eight stages.\n{content}")
    return folder / "conf"
