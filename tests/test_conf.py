"""Every YAML file under conf/ composes, validates, explains itself and agrees with the configuration classes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from modules.config import Config, DataConfig
from modules.data.batches import Share
from modules.model_config import LoraConfig
from orchestrator.cli.command import COMMANDS, conf_folder
from orchestrator.configuration import commands as config
from orchestrator.configuration.commands import (
    EvaluateConfig,
    PretrainConfig,
    RunPipelineConfig,
    TrainingRunConfig,
)
from orchestrator.configuration.faults import FaultKind
from orchestrator.configuration.mistakes import validated
from orchestrator.configuration.planning import PlanSettings
from orchestrator.configuration.rules import micro_batch_size
from orchestrator.configuration.schema import leaves
from orchestrator.configuration.sweep import SweepConfig

CONF = conf_folder()
OPTIONS = sorted((file.parent.name, file.stem) for file in CONF.glob("*/*.yaml") if file.parent.name != "hydra")
NEEDS = {
    ("data", "files"): ["data.path=text.txt"],
    ("data", "huggingface"): ["data.path=someone/something"],
    ("tokenizer", "file"): ["tokenizer.path=tokenizer.json"],
    ("method", "lora"): ["model.path=gpt2"],
    ("experiment", "shakespeare_char"): ["data.path=text.txt"],
    ("experiment", "shakespeare_char_muon"): ["data.path=text.txt"],
    ("experiment", "gpt2_124m"): ["data.path=text.txt"],
    ("experiment", "packages"): ["model.path=x"],
    **{("task", name): ["model.path=x"] for name in ("classification", "translation", "dialogue", "text_generation")},
    **{("faults", kind): ["faults.at_step=3"] for kind in get_args(FaultKind)},
    **{("sweep", method): ["sweep.num_trials=3"] for method in ("random", "asha", "optuna")},
    ("faults", "stop_rank"): ["faults.at_step=3", "cluster.num_workers=2", "strategy=ddp"],
}
METHODS = SweepConfig.model_fields["method"].annotation
OF_FINETUNE = ("packages",)
"""Experiments of `finetune`."""
PLANNED = {"plan": "pretrain"}
"""Commands that have the fields of another one."""
OF_PLAN = ("device", "link")
"""Groups that `plan` alone has."""
REQUIRED: dict[str, dict[str, Any]] = {
    "evaluate": {"model": {"path": "x"}},
    "compare": {"model": {"path": "x"}, "other": {"path": "x"}},
    "predict": {"model": {"path": "x"}, "text": "x"},
    "generate": {"model": {"path": "x"}},
    "chat": {"model": {"path": "x"}},
    "report": {"runs": ["x"]},
    "explain": {"model": {"path": "x"}, "prompt": "x"},
    "export": {"run": {"name": "x"}},
    "batch": {"run": {"name": "x"}, "step": 1},
    "finetune": {"model": {"path": "x"}},
    "submit": {"command": "x"},
    "logs": {"name": "x"},
    "stop": {"name": "x"},
    "run": {"pipeline": {"name": "x", "stages": {"x": {"command": "x"}}}},
}
"""What a command cannot do without."""
CHOSEN = {"finetune": ["task=dialogue"], "compare": ["task=dialogue"]}
"""Groups of which an option must be chosen."""


def _paths(values: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield from _paths(value, f"{above}{name}.") if isinstance(value, dict) else [above + name]


def composed(command: str, *overrides: str) -> Config:
    """Compose and validate as the command line does."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = OmegaConf.to_container(compose(command, list(overrides)), resolve=True)
    assert isinstance(raw, dict)
    return validated({str(key): value for key, value in raw.items()}, getattr(config, COMMANDS[command].config))


def explained(file: Path) -> Iterator[str]:
    """Yield the path of every field that has a comment beside it, or whose group has one and no lines of its own."""
    text = file.read_text(encoding="utf-8")
    package = re.match(r"# @package (\w+)\n", text)
    group = package[1] if package else file.parent.name
    above: list[tuple[int, str]] = [(-1, group)] if file.parent != CONF else []
    for line in text.splitlines():
        found = re.match(r"( *)(\w+):.*?(#.*)?$", line)
        if not found or line.startswith("defaults:"):
            continue
        while above and above[-1][0] >= len(found[1]):
            above.pop()
        above.append((len(found[1]), found[2]))
        if found[3]:
            yield ".".join(name for _, name in above)


def test_there_is_an_option_of_every_group() -> None:
    groups = {group for group, _ in OPTIONS}
    assert groups >= {"model", "objective", "data", "tokenizer", "optimizer", "strategy", "cluster", "experiment"}


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["=".join(option) for option in OPTIONS])
def test_option_composes_and_validates(group: str, option: str) -> None:
    needs = NEEDS.get((group, option), [])
    command = "finetune" if group == "task" or option in OF_FINETUNE else "run" if group == "pipeline" else "pretrain"
    command = "plan" if group in OF_PLAN else command
    made = composed(command, f"{group}={option}", *needs)
    if isinstance(made, RunPipelineConfig):
        assert made.pipeline.name == option
        return
    assert isinstance(made, TrainingRunConfig)
    if group in ("strategy", "cluster", "task"):
        assert getattr(made, group).name == option
    if group == "method":
        assert made.model.lora == (LoraConfig() if option == "lora" else None)
    if group == "sweep":
        assert made.sweep is not None
        assert made.sweep.method == option
    if group == "faults":
        assert made.faults is not None
        assert made.faults.kind == option


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_in_conf_are_those_of_the_classes(command: str) -> None:
    required = REQUIRED.get(command, {})
    # a pipeline has no fields before one is chosen
    plus = "+" if command == "run" else ""
    values = (f"{plus}{name}={1 if name == 'step' else 'x'}" for name in _paths(required))
    made = composed(command, *values, *CHOSEN.get(command, []))
    kind = getattr(config, COMMANDS[command].config)
    chosen = {group: {"name": option} for group, option in (text.split("=") for text in CHOSEN.get(command, []))}
    assert made == kind.model_validate({**required, **chosen})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_has_a_line_of_explanation(command: str) -> None:
    files = [file for file in CONF.glob("*.yaml") if file.stem in ("shared", command, PLANNED.get(command))]
    told = {path for file in [*files, *CONF.glob("*/*.yaml")] for path in explained(file)}
    told |= {f"device.{path}" for path in told if path.startswith("link.")}  # a device names one of these
    kind = getattr(config, COMMANDS[command].config)
    fields = list(leaves(kind))
    assert [path for path, _ in fields if path not in told] == []
    assert [path for path, field in fields if not field.description] == []


def test_plan_of_a_finetuning_has_the_defaults_of_finetune_and_those_of_plan() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = OmegaConf.to_container(compose("plan_finetune", ["task=dialogue", "model.path=x"]), resolve=True)
    assert isinstance(raw, dict)
    values = {str(key): value for key, value in raw.items()}
    own = {name: values.pop(name, None) for name in ("plan", *OF_PLAN)}
    assert config.FinetuneConfig.model_validate(values) == composed("finetune", "task=dialogue", "model.path=x")
    assert own == {"plan": PlanSettings().model_dump(), "device": None, "link": None}


def test_runs_prune_has_the_defaults_of_its_class_and_a_line_for_each_field() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = OmegaConf.to_container(compose("runs_prune"), resolve=True)
    assert config.PruneRunsConfig.model_validate(raw) == config.PruneRunsConfig()
    assert {path for path, _ in leaves(config.PruneRunsConfig)} == set(explained(CONF / "runs_prune.yaml"))


def test_every_option_says_what_it_is_in_its_first_comment() -> None:
    for file in CONF.glob("**/*.yaml"):
        lines = file.read_text(encoding="utf-8").splitlines()
        first = next(line for line in lines if not line.startswith("# @package"))
        assert re.match(r"# .{5}", first), file


def test_every_kind_of_fault_can_be_ordered() -> None:
    assert {option for group, option in OPTIONS if group == "faults"} == set(get_args(FaultKind))


def test_every_method_of_a_sweep_is_an_option_with_the_fields_it_reads() -> None:
    of = {method: set(explained(CONF / f"sweep/{method}.yaml")) for method in get_args(METHODS)}
    fields = set(SweepConfig.model_fields)
    assert {path.partition(".")[2] for paths in of.values() for path in paths} == fields
    for method, paths in of.items():
        values = {"method": method, "num_trials": 3} if method != "grid" else {"method": method}
        left_out = fields - {path.partition(".")[2] for path in paths}
        for name in left_out:
            with pytest.raises(ValueError, match=f"{name} is for sweep="):
                SweepConfig.model_validate({**values, name: 7})


def test_evaluate_takes_the_data_of_the_model_unless_told_otherwise() -> None:
    unsaid, said = composed("evaluate", "model.path=x"), composed("evaluate", "model.path=x", "data=stdlib")
    assert isinstance(unsaid, EvaluateConfig)
    assert isinstance(said, EvaluateConfig)
    assert (unsaid.data, said.data) == (None, DataConfig())


def test_shakespeare_is_the_published_setting() -> None:
    made = composed("pretrain", "experiment=shakespeare_char", "data.path=text.txt")
    assert isinstance(made, PretrainConfig)
    model, training, optimizer = made.model, made.training, made.optimizer
    assert (model.num_layers, model.num_heads, model.hidden_dim, model.dropout) == (4, 4, 128, 0)
    assert (training.sequence_length, training.global_batch_size, training.num_steps) == (64, 12, 2000)
    assert (optimizer.learning_rate, optimizer.min_learning_rate, optimizer.warmup_steps) == (1e-3, 1e-4, 100)
    assert optimizer.betas == (0.9, 0.99)
    assert (made.data.split, made.data.val_fraction, made.tokenizer.kind) == ("position", 0.1, "char")


def test_shakespeare_by_muon_has_the_same_model_data_and_batches() -> None:
    by_adamw, by_muon = (
        composed("pretrain", f"experiment={name}", "data.path=text.txt")
        for name in ("shakespeare_char", "shakespeare_char_muon")
    )
    assert isinstance(by_adamw, PretrainConfig)
    assert isinstance(by_muon, PretrainConfig)
    assert by_muon.optimizer.name == "muon"
    for group in ("model", "data", "tokenizer", "objective"):
        assert getattr(by_muon, group) == getattr(by_adamw, group)
    for field in ("sequence_length", "global_batch_size", "val_batches"):
        assert getattr(by_muon.training, field) == getattr(by_adamw.training, field)


def test_gpt2_recipe_fits_its_eight_workers() -> None:
    made = composed("pretrain", "experiment=gpt2_124m", "data.path=text.txt")
    assert isinstance(made, PretrainConfig)
    share = Share(made.training.global_batch_size, micro_batch_size(made, 8), world_size=8)
    assert share.accumulation_steps * 8 * share.micro_batch_size == 480
