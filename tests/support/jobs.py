"""A job as `orchestrator pretrain` or `finetune` makes it, for tests that run `train` without a launcher."""

from orchestrator.artifacts.prepared_data import DataRequirements, prepared_data
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.commands.finetune import prepared
from orchestrator.configuration.commands import FinetuneConfig, PretrainConfig
from orchestrator.runs import run as runs
from orchestrator.runs.run import Job
from orchestrator.storage.store import Storage
from orchestrator.training.finetuning import TaskExamples
from orchestrator.training.pretraining import PreparedText


def begun_job(config: PretrainConfig | FinetuneConfig) -> Job:
    """Prepare the data, begin the run unless it exists, and return its job; the storage root must be absolute."""
    if isinstance(config, FinetuneConfig):
        return _task_job(config)
    storage = Storage(config.storage.root)
    data_name = prepared_data(
        storage, config.data, config.tokenizer, DataRequirements(), lambda total: lambda *done: None
    )
    run = runs.open_run(storage, config, runs.training_recipe(config, data_name))
    runs.begin(storage, run, config)
    return Job(config, run, Attempt(run.name, 0, ""), PreparedText(data_name, config))


def _task_job(config: FinetuneConfig) -> Job:
    storage = Storage(config.storage.root)
    config, base, examples = prepared(config, storage)
    run = runs.open_run(storage, config, runs.training_recipe(config, examples.name, base.identity, "finetune"))
    runs.begin(storage, run, config, examples.files)
    return Job(config, run, Attempt(run.name, 0, ""), TaskExamples(examples.name, config))
