"""The commands of the command line, and where their options lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """One command of the command line; `orchestrator.commands.<name>.run` executes it."""

    summary: str
    config: str
    """Name of its class in orchestrator.configuration.commands; conf/<name>.yaml is its primary configuration."""
    makes: bool = False
    """It makes something that outlives it, and so goes on when its output is no longer read or cannot be written."""
    composes: bool = False
    """Its `run` gets, as a second argument, what composes the configuration of another command."""
    seconds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Commands that may be named after it, each with the class and the primary configuration that it then has."""


COMMANDS = {
    "prepare": Command("turn text into token shards, or rows into examples of a task", "PrepareConfig", makes=True),
    "pretrain": Command("train a model on text, preparing it first where needed", "PretrainConfig", makes=True),
    "finetune": Command("teach a model a task", "FinetuneConfig", makes=True),
    "plan": Command(
        "say what pretrain or finetune will need and cost, before it starts",
        "PlanPretrainConfig",
        seconds={"pretrain": ("PlanPretrainConfig", "plan"), "finetune": ("PlanFinetuneConfig", "plan_finetune")},
    ),
    "evaluate": Command(
        "measure how well a model predicts held-out text, or does a task", "EvaluateConfig", makes=True
    ),
    "compare": Command("compare two models on the same rows of a task", "CompareConfig", makes=True),
    "predict": Command("classify, translate or answer a text, or the rows of a data set", "PredictConfig"),
    "generate": Command("continue a prompt, or a file of prompts", "GenerateConfig"),
    "chat": Command("hold a conversation with a model", "ChatConfig"),
    "explain": Command("show what a model looks at in a prompt", "ExplainConfig", makes=True),
    "export": Command("write the model at any checkpoint of a run for other tools", "ExportConfig", makes=True),
    "submit": Command(
        "run a command on a Ray cluster, with what it needs of this folder", "SubmitConfig", composes=True
    ),
    "jobs": Command("list what was submitted to a cluster, and why it ended", "JobsConfig"),
    "logs": Command("print what a submitted job has printed, or follow it", "LogsConfig"),
    "stop": Command("stop a submitted job, which saves first", "StopConfig"),
    "run": Command(
        "run the stages of a pipeline that are not done yet", "RunPipelineConfig", makes=True, composes=True
    ),
    "report": Command("make one page about runs, or about the stages of a pipeline", "ReportConfig", makes=True),
    "batch": Command("show what a run has learned from in a step", "BatchConfig"),
    "runs": Command(
        "list the runs, show one of them, or remove what nothing refers to",
        "RunsConfig",
        seconds={"prune": ("PruneRunsConfig", "runs_prune")},
    ),
    "doctor": Command("check machine, storage and services, each with a remedy", "DoctorConfig"),
}


def conf_folder() -> Path:
    """Return the folder of the options: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def unknown_command(name: str) -> str:
    """Return what to say about a command that does not exist."""
    from orchestrator.configuration.schema import nearest

    near = nearest(name, list(COMMANDS))
    remedy = f"did you mean {near}?" if near else f"choose one of {', '.join(COMMANDS)}"
    return f"{name}: no such command; {remedy}"
