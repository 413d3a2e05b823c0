"""Each command's whole configuration."""

from typing import Annotated, Literal

from pydantic import Field

from modules.config import (
    Config,
    Count,
    CountOrZero,
    DataConfig,
    Identity,
    Input,
    LaterIdentity,
    Length,
    ObjectiveConfig,
    OptimizerConfig,
    Probability,
    Runtime,
    Seed,
    Sequences,
    Steps,
    TokenizerConfig,
    TrainingConfig,
)
from modules.model_config import ModelConfig
from modules.tasks.settings import TaskConfig
from orchestrator.configuration.batch import BatchConfig
from orchestrator.configuration.decoding import AnswerConfig, ContinuationConfig, MeasureConfig, SamplingConfig
from orchestrator.configuration.faults import FaultsConfig
from orchestrator.configuration.groups import (
    BegunRun,
    CheckpointConfig,
    ClusterConfig,
    FinetuneSettings,
    GuardConfig,
    HarnessConfig,
    ModelFilesConfig,
    RunConfig,
    StorageConfig,
    StrategyConfig,
    TrackingConfig,
)
from orchestrator.configuration.pipeline import RunPipelineConfig
from orchestrator.configuration.planning import PlanFields
from orchestrator.configuration.pruning import PruneRunsConfig
from orchestrator.configuration.report import ReportConfig
from orchestrator.configuration.submission import JobsConfig, LogsConfig, StopConfig, SubmitConfig
from orchestrator.configuration.sweep import SweepConfig

__all__ = [
    "BatchConfig",
    "JobsConfig",
    "LogsConfig",
    "PruneRunsConfig",
    "ReportConfig",
    "RunPipelineConfig",
    "StopConfig",
    "SubmitConfig",
]
"""Those of other files, which are found here by their names as well."""


class TextConfig(Config):
    """What a command that prepares text reads, and how it becomes tokens."""

    run: RunConfig = RunConfig()
    storage: StorageConfig = StorageConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()


class TrainingRunConfig(Config):
    """The settings of every command that trains, whatever the objective."""

    run: RunConfig = RunConfig()
    storage: StorageConfig = StorageConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    guard: GuardConfig = GuardConfig()
    strategy: StrategyConfig = StrategyConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export: ModelFilesConfig = ModelFilesConfig()
    tracking: TrackingConfig = TrackingConfig()
    faults: FaultsConfig | None = None
    """Null injects no fault."""
    sweep: SweepConfig | None = None
    """Null is a single run."""


class PretrainConfig(TrainingRunConfig, TextConfig):
    """`orchestrator pretrain`: text to a trained model."""

    objective: ObjectiveConfig = ObjectiveConfig()


class ModelPath(Config):
    """A trained model."""

    path: Input[str]
    """A model directory or Hugging Face folder (any fsspec URL), or a hub name."""
    revision: Input[str | None] = None
    """A commit, tag or branch of a hub name; null takes the newest state."""
    adapter: Input[str | None] = None
    """A folder with an adapter of that model, of ours or of PEFT's form (any fsspec URL); null takes none."""


class NoModelPath(Config):
    """A model, or none."""

    path: Input[str | None] = None
    """With a task: the model whose tokenizer and chat template write the examples, as for other commands."""
    revision: Input[str | None] = None
    """A commit, tag or branch of a hub name; null takes the newest state."""


USUAL_LENGTH = 512
"""Tokens in a sequence of a task's examples."""


class PrepareConfig(TextConfig):
    """`orchestrator prepare`: text to token shards, or rows to the examples of a task."""

    task: TaskConfig | None = None
    """The task whose examples the rows become; null prepares plain text for `pretrain`."""
    model: NoModelPath = NoModelPath()
    sequence_length: LaterIdentity[Annotated[Length, Field(gt=1)] | None] = None
    """With a task: tokens in a sequence, which examples fill together; null takes 512."""
    cluster: ClusterConfig = ClusterConfig()
    """Who prepares the text: this machine, or the CPUs of a Ray cluster."""
    dry_run: Runtime[bool] = False
    """Say what would be left out of the text, cut out of it and replaced in it, and write nothing."""


class FinetuneConfig(TrainingRunConfig):
    """`orchestrator finetune`: a model learns a task."""

    task: TaskConfig
    """What the model learns."""
    data: DataConfig = DataConfig(val_fraction=0.1)
    finetune: FinetuneSettings = FinetuneSettings()
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=5e-5, min_learning_rate=0.0, warmup_steps=0, betas=(0.9, 0.999), weight_decay=0.01
    )
    training: TrainingConfig = TrainingConfig(sequence_length=512, global_batch_size=16, val_batches=1000)


class PlanPretrainConfig(PretrainConfig, PlanFields):
    """`orchestrator plan pretrain`: what a pretraining will need and cost."""


class PlanFinetuneConfig(FinetuneConfig, PlanFields):
    """`orchestrator plan finetune`: what a fine-tuning will need and cost."""


class EvaluateConfig(MeasureConfig):
    """`orchestrator evaluate`: how well a model predicts held-out text, or does a task."""

    model: ModelPath
    storage: StorageConfig = StorageConfig()
    task: TaskConfig | None = None
    """The task on which the model is measured; null measures how well it predicts text."""
    data: DataConfig | None = None
    """Rows of the task; without a task, null takes the data that the model was trained on, from its recipe."""
    part: Identity[Literal["held_out", "all"]] = "held_out"
    """`held_out`: what data.val_fraction holds out; `all`: the whole text, for a test set of its own."""
    sequence_length: Identity[Annotated[Length, Field(gt=1)] | None] = None
    """Tokens in a window, or most tokens of a task's example; null takes the length that the model was trained with."""
    batch_size: Runtime[Sequences] = 16
    """Windows or examples computed at once."""
    max_sequences: Identity[Count | None] = None
    """Stop after this many windows, or rows of a task; null reads all."""
    num_samples: Runtime[CountOrZero] = 3
    """Translations or answers that are shown."""
    mlm_probability: Identity[Probability | None] = None
    """Share of positions masked for masked accuracy; null takes the model's training value."""
    seed: Identity[Annotated[int, Field(ge=0, lt=2**63)] | None] = None
    """Decides which positions are masked; null takes the model's training seed, as its validation does."""
    harness: HarnessConfig = HarnessConfig()


class OtherModel(Config):
    """What a model is compared with: another model, or what another program has predicted."""

    path: Input[str | None] = None
    """The other model: a model directory or Hugging Face folder (any fsspec URL), or a hub name."""
    revision: Input[str | None] = None
    """A commit, tag or branch of a hub name; null takes the newest state."""
    adapter: Input[str | None] = None
    """A folder with an adapter of that model, of ours or of PEFT's form (any fsspec URL); null takes none."""
    predictions: Input[str | None] = None
    """Instead: a .jsonl (any fsspec URL) with the field `prediction`, a line for each row that is read, in order."""


class CompareConfig(MeasureConfig):
    """`orchestrator compare`: two models on the same rows of a task."""

    model: ModelPath
    other: OtherModel = OtherModel()
    task: TaskConfig
    """The task on which they are compared."""
    data: DataConfig = DataConfig()
    max_rows: Identity[Count | None] = None
    """Stop after this many rows; null reads all."""
    num_resamples: Identity[Annotated[int, Field(gt=0, le=10**7)]] = 1000
    """Draws of as many rows as there are, from which intervals and p-values come."""
    seed: Identity[Seed] = 12345
    """Decides which rows are drawn; the same as in sacrebleu."""
    storage: StorageConfig = StorageConfig()


class PredictConfig(AnswerConfig):
    """`orchestrator predict`: what a model makes of a text, or of each row of a data set."""

    model: ModelPath
    task: TaskConfig | None = None
    """What the model does; null takes the task that it was fine-tuned for, or that its config.json says."""
    text: Identity[str | None] = None
    """The text to classify, to translate or to answer."""
    pair: Identity[str | None] = None
    """The second text, for a classification of pairs."""
    data: DataConfig | None = None
    """Instead of text: the rows; they need no label and no translation."""
    split: Identity[Literal["test", "val", "train", "all"]] = "all"
    """The rows of data that are read: those of one split, or `all` whatever their split."""
    output: Runtime[str | None] = None
    """A .jsonl that the predictions of data are written to (any URL), as they are made; null prints its lines."""
    max_rows: Identity[Count | None] = None
    """Stop after this many rows; null reads all."""


class GenerateConfig(ContinuationConfig):
    """`orchestrator generate`: continue a prompt, or a file of prompts."""

    model: ModelPath


class ExplainConfig(Config):
    """`orchestrator explain`: what a model looks at in a prompt, and what it expects next."""

    model: ModelPath
    prompt: Identity[str]
    """Text to explain."""
    num_likeliest: Identity[Annotated[int, Field(gt=0, le=100)]] = 5
    """Likeliest next tokens of each position on the page."""
    max_tokens: Runtime[Annotated[int, Field(gt=0, le=1024)]] = 128
    """A longer prompt is refused, since the page grows with the square of its tokens."""
    to: Runtime[str | None] = None
    """A folder (any fsspec URL) for the page and the pictures; null: one below explanations/ in storage.root."""
    storage: StorageConfig = StorageConfig()


class ExportConfig(Config):
    """`orchestrator export`: the model at any checkpoint of a run, as a folder for other tools."""

    run: BegunRun
    step: Input[Steps | None] = None
    """The checkpoint after this many steps; null takes the newest."""
    to: Runtime[str | None] = None
    """A new folder (any fsspec URL); null: the run's model folder once it is done, else exports/ within the run."""
    storage: StorageConfig = StorageConfig()
    export: ModelFilesConfig = ModelFilesConfig()


class ChatConfig(SamplingConfig):
    """`orchestrator chat`: a conversation with a model."""

    model: ModelPath
    chat_template: Input[str | None] = None
    """A Jinja file (any fsspec URL) that writes the conversation; null takes the template that came with the model."""
    system: Identity[str] = ""
    """System message that the conversation begins with; empty gives none."""
    max_new_tokens: Identity[Count] = 512
    """Longest answer in tokens."""


class RunsConfig(Config):
    """`orchestrator runs`: the runs below a storage root, or one of them."""

    name: Runtime[str | None] = None
    """The run to show, as in `orchestrator runs show NAME`; null lists all."""
    storage: StorageConfig = StorageConfig()


class DoctorConfig(Config):
    """`orchestrator doctor`: checks of what a run needs from this machine, the store and the services."""

    fix: Runtime[bool] = False
    """Remove the locks that killed compilations have left."""
    build: Runtime[bool] = False
    """Compile DeepSpeed's CPU Adam, which tests the compiler, the headers and ninja."""
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
