"""Each command's whole configuration."""

from typing import Annotated, Literal

from pydantic import Field

from modules.config import (
    Config,
    Count,
    DataConfig,
    Identity,
    Input,
    LaterIdentity,
    Length,
    ObjectiveConfig,
    OptimizerConfig,
    Probability,
    Runtime,
    Sequences,
    Steps,
    TokenizerConfig,
    TrainingConfig,
)
from modules.model_config import ModelConfig
from modules.tasks.settings import TaskConfig
from orchestrator.configuration.decoding import ContinuationConfig, SamplingConfig
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


class PretrainConfig(TrainingRunConfig, TextConfig):
    """`orchestrator pretrain`: text to a trained model."""

    objective: ObjectiveConfig = ObjectiveConfig()


class ModelPath(Config):
    """A trained model."""

    path: Input[str]
    """A model directory or Hugging Face folder (any fsspec URL), or a hub name."""
    revision: Input[str | None] = None
    """A commit, tag or branch of a hub name; null takes the newest state."""


class NoModelPath(Config):
    """A model, or none."""

    path: Input[str | None] = None
    """With a task: the model whose tokenizer and chat template write the examples, as for other commands."""
    revision: Input[str | None] = None
    """A commit, tag or branch of a hub name; null takes the newest state."""


class PrepareConfig(TextConfig):
    """`orchestrator prepare`: text to token shards, or rows to the examples of a task."""

    task: TaskConfig | None = None
    """The task whose examples the rows become; null prepares plain text for `pretrain`."""
    model: NoModelPath = NoModelPath()
    sequence_length: LaterIdentity[Annotated[Length, Field(gt=1)] | None] = None
    """With a task: tokens in a sequence, which examples fill together; null takes 512."""


class FinetuneConfig(TrainingRunConfig):
    """`orchestrator finetune`: a model learns a task."""

    task: TaskConfig
    """What the model learns."""
    data: DataConfig = DataConfig(val_fraction=0.1)
    finetune: FinetuneSettings = FinetuneSettings()
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=5e-5, min_learning_rate=0.0, warmup_steps=50, betas=(0.9, 0.999), weight_decay=0.01
    )
    training: TrainingConfig = TrainingConfig(sequence_length=512, global_batch_size=16, val_batches=1000)


class EvaluateConfig(Config):
    """`orchestrator evaluate`: how well a model predicts held-out text."""

    model: ModelPath
    storage: StorageConfig = StorageConfig()
    data: DataConfig | None = None
    """Null takes the data that the model was trained on, from its recipe."""
    part: Identity[Literal["held_out", "all"]] = "held_out"
    """`held_out`: what data.val_fraction holds out; `all`: the whole text, for a test set of its own."""
    sequence_length: Identity[Annotated[Length, Field(gt=1)] | None] = None
    """Tokens in a window; null takes the length that the model was trained with."""
    batch_size: Runtime[Sequences] = 16
    """Windows computed at once."""
    max_sequences: Identity[Count | None] = None
    """Stop after this many windows; null reads all held-out text."""
    mlm_probability: Identity[Probability | None] = None
    """Share of positions masked for masked accuracy; null takes the model's training value."""
    seed: Identity[Annotated[int, Field(ge=0, lt=2**63)] | None] = None
    """Decides which positions are masked; null takes the model's training seed, as its validation does."""
    harness: HarnessConfig = HarnessConfig()


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
