"""A job as plain data, for a channel into which anybody may write: what is read runs no code, and is validated."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from orchestrator.checkpoints.attempt import Attempt
from orchestrator.configuration.commands import FinetuneConfig, PretrainConfig
from orchestrator.runs.run import Job, Run
from orchestrator.training.finetuning import TaskExamples
from orchestrator.training.pretraining import PreparedText


def data_of_job(job: Job) -> dict[str, Any]:
    """Return a job as data for JSON."""
    source = job.objective
    assert isinstance(source, PreparedText | TaskExamples)
    return {
        "command": "pretrain" if isinstance(source, PreparedText) else "finetune",
        "config": job.config.model_dump(mode="json"),
        "objective": {"data_name": source.data_name, "config": source.config.model_dump(mode="json")},
        "run": asdict(job.run),
        "attempt": asdict(job.attempt),
        "driver_has_wandb_key": job.driver_has_wandb_key,
    }


def job_of_data(data: Mapping[str, Any]) -> Job:
    """Return the job.

    Raises:
        ValueError: these are no data of a job; of pydantic, if it says what is wrong.
        KeyError: a part of them is missing.
        TypeError: a part of them is no mapping.
    """
    source, data_name = data["objective"], TypeAdapter(str).validate_python(data["objective"]["data_name"])
    if data["command"] == "pretrain":
        config: PretrainConfig | FinetuneConfig = PretrainConfig.model_validate(data["config"])
        objective: PreparedText | TaskExamples = PreparedText(
            data_name, PretrainConfig.model_validate(source["config"])
        )
    elif data["command"] == "finetune":
        config = FinetuneConfig.model_validate(data["config"])
        objective = TaskExamples(data_name, FinetuneConfig.model_validate(source["config"]))
    else:
        raise ValueError(f"no command that trains: {data['command']!r:.40}")
    run, attempt = TypeAdapter(Run).validate_python(data["run"]), TypeAdapter(Attempt).validate_python(data["attempt"])
    return Job(config, run, attempt, objective, TypeAdapter(bool).validate_python(data["driver_has_wandb_key"]))
