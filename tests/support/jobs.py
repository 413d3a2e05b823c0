"""A job as `orchestrator pretrain` makes it, for tests that run `train` without a launcher."""

from orchestrator.artifacts.prepared_data import DataRequirements, prepared_data
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.runs import run as runs
from orchestrator.runs.run import Job
from orchestrator.storage.store import Storage
from orchestrator.training.pretraining import PreparedText


def begun_job(config: PretrainConfig) -> Job:
    """Prepare the data, begin the run unless it exists, and return its job; the storage root must be absolute."""
    storage = Storage(config.storage.root)
    data_name = prepared_data(
        storage, config.data, config.tokenizer, DataRequirements(), lambda total: lambda *done: None
    )
    run = runs.open_run(storage, config, runs.training_recipe(config, data_name))
    runs.begin(storage, run, config)
    return Job(config, run, Attempt(run.name, 0, ""), PreparedText(data_name, config))
