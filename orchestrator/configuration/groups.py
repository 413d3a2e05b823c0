"""How and where a command runs: run, storage, strategy, cluster, checkpoint, guard and tracking."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from modules.config import (
    Config,
    Count,
    CountOrZero,
    Identity,
    Input,
    Length,
    NumBytes,
    Paths,
    Runtime,
    Seconds,
    Seed,
    Sequences,
    Small,
    Steps,
)
from orchestrator.configuration.names import LONGEST_NAME, RunName

StrategyName = Literal["auto", "single", "ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
_PRECISION_SETTINGS = {"bf16", "bfloat16", "torch_autocast", "amp", "data_types", "communication_data_type"}
_FLOAT16_SETTINGS = {"enabled", "auto_cast", "fp16_master_weights_and_grads"}
"""Settings of DeepSpeed that would change the precision; the others below `fp16` belong to the loss scale."""
BestMetric = Literal["val/loss_clm", "val/loss_mlm", "val/bits_per_byte", "val/mlm_accuracy"]
TaskMetric = Literal["val/loss_clm", "val/loss_classification", "val/accuracy", "val/macro_f1"]

Workers = Annotated[int, Field(gt=0, le=2**16)]


def _can_be_in_an_address(value: str) -> str:
    found = re.search(r"[/\\#?%:\x00-\x1f]", value)
    if found:
        raise ValueError(f"must not contain {found[0]!r}, nor any other of / \\ # ? % : or a control character")
    return value


_Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
_AddressPart = Annotated[_Name, AfterValidator(_can_be_in_an_address)]
_Tag = Annotated[str, Field(min_length=1, max_length=64)]


class RunConfig(Config):
    """One named execution."""

    name: Runtime[RunName | None] = None
    """The run's folder and its name in W&B, with at most one slash; null makes one from the recipe."""
    seed: Identity[Seed] = 1234
    """Decides initial weights, data order, masks and samples."""


class BegunRun(Config):
    """A run that exists."""

    name: Input[RunName]
    """The run whose checkpoint is exported."""


class StorageConfig(Config):
    """Where everything is kept."""

    root: Runtime[str] = "outputs"
    """A folder or any fsspec URL."""
    cache_dir: Runtime[Annotated[str, Field(min_length=1)] | None] = None
    """Local folder for copies of remote data; null takes gpt-orchestrator in $XDG_CACHE_HOME or ~/.cache."""
    cache_bytes: Runtime[Annotated[int, Field(ge=2 * 10**8, le=2**60)]] = 50_000_000_000
    """Most bytes of remote training data that a machine keeps there, at most half of its disk."""

    @field_validator("cache_dir")
    @classmethod
    def _cache_is_local(cls, path: str | None) -> str | None:
        if path is not None and "://" in path:
            raise ValueError("must be a folder of the machine itself, and no URL")
        return path


class StrategyConfig(Config):
    """How the training state is spread over workers."""

    name: Runtime[StrategyName] = "single"
    """`single`, `ddp`, ZeRO stage 1, 2 or 3, 2 and 3 also offloaded to the CPU; `auto`: the simplest that fits."""
    memory_gigabytes: Runtime[Annotated[float, Field(gt=0, le=1e9)] | None] = None
    """With name=auto: memory of a worker's device in 10^9 bytes; null asks this machine."""
    deepspeed: Runtime[dict[str, Any]] = {}
    """DeepSpeed's own settings, merged over ours; all but those of the precision, which is `training.precision`."""

    @field_validator("deepspeed")
    @classmethod
    def _leaves_the_precision_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        scaling = value.get("fp16")
        inside = set(scaling) & _FLOAT16_SETTINGS if isinstance(scaling, dict) else set()
        found = sorted(set(value) & _PRECISION_SETTINGS) + [f"fp16.{name}" for name in sorted(inside)]
        if found:
            raise ValueError(
                f"{', '.join(found)}: the precision decides what comes out, so it is part of the recipe; "
                "set training.precision instead"
            )
        return value

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage; 0 without DeepSpeed."""
        return int(self.name[4]) if self.name.startswith("zero") else 0

    @property
    def quantizes_weights(self) -> bool:
        """Whether DeepSpeed is to quantize the weights that it gathers."""
        zero = self.deepspeed.get("zero_optimization")
        return isinstance(zero, dict) and bool(zero.get("zero_quantized_weights"))

    @property
    def against_muon(self) -> list[tuple[str, str]]:
        """DeepSpeed's settings that would clip what Muon orthogonalises or put AdamW in its place, each with why."""
        zero = self.deepspeed.get("zero_optimization")
        zero = zero if isinstance(zero, dict) else {}
        offload = zero.get("offload_optimizer")
        offload = offload if isinstance(offload, dict) else {}
        found = [(name, "replaces") for name in ("optimizer", "zenflow") if name in self.deepspeed]
        found += [("gradient_clipping", "would clip the matrices of")] if "gradient_clipping" in self.deepspeed else []
        found += [("zero_optimization.zenflow", "replaces")] if zero.get("zenflow") else []
        if offload.get("ratio", 1) != 1:
            found.append(("zero_optimization.offload_optimizer.ratio", "lets AdamW take a part of the place of"))
        if offload.get("super_offload"):
            found.append(("zero_optimization.offload_optimizer.super_offload", "replaces"))
        if offload.get("device") == "nvme":
            found.append(("zero_optimization.offload_optimizer.device=nvme", "knows only the moments of AdamW, not"))
        return found

    @property
    def offload(self) -> bool:
        return self.name.endswith("_offload")


class ClusterConfig(Config):
    """Which processes train, and who starts them."""

    name: Runtime[Literal["local", "ray", "torchrun"]] = "local"
    """`local`: this machine; `ray`: Ray Train; `torchrun`: processes that torchrun or srun has started."""
    num_workers: Runtime[Workers | tuple[Workers, Workers]] = 1
    """Training processes; `[min,max]` is elastic (Ray only), with the numbers that can share out the global batch."""
    cpus_per_worker: Runtime[Annotated[float, Field(gt=0, le=2**16)]] = 1
    """CPUs that Ray sets aside for each worker."""
    gpus_per_worker: Runtime[Annotated[int, Field(ge=0, le=1)] | None] = None
    """0 or 1; null takes a GPU for each worker where there are enough, else none; on Ray too few are refused."""
    max_failures: Runtime[CountOrZero] = 3
    """Restarts from the last checkpoint after lost or killed workers; the next one fails the run."""
    max_preemptions: Runtime[CountOrZero | None] = None
    """Restarts after preempted nodes, counted separately (Ray only); null allows any number."""
    resize_interval_seconds: Runtime[Seconds] = 60
    """With `[min,max]`, how often to check whether the cluster has room for another number of workers."""
    hang_timeout_seconds: Runtime[Seconds] = 600
    """A worker that finishes no step for this long is considered hung; it must outlast a save and a validation."""
    lease_wait_seconds: Runtime[Annotated[float, Field(ge=0, le=1e6)]] = 0
    """How long to wait for another driver of the run to end; 0 refuses at once. 90 suits automatic restarts."""
    address: Runtime[str | None] = None
    """An existing Ray cluster's address (`auto`, `ray://…`); null starts an embedded one."""
    allow_insecure: Runtime[bool] = False
    """Connect to a cluster beyond this machine that demands no token."""

    @field_validator("num_workers")
    @classmethod
    def _range_is_ordered(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"[min,max] is {list(value)}: the first must not exceed the second")
        return value

    @model_validator(mode="after")
    def _elastic_needs_ray(self) -> Self:
        if self.name != "ray" and isinstance(self.num_workers, tuple):
            raise ValueError(f"num_workers=[min,max] needs cluster=ray; cluster={self.name} takes one number")
        if self.name != "ray" and self.address is not None:
            raise ValueError("address needs cluster=ray")
        return self

    @property
    def worker_counts(self) -> range:
        """Every number of workers that was asked for; `rules.worker_counts` are those that the batch allows."""
        if isinstance(self.num_workers, tuple):
            return range(self.num_workers[0], self.num_workers[1] + 1)
        return range(self.num_workers, self.num_workers + 1)


class CheckpointConfig(Config):
    """When and how the training state is saved, and how much of it is kept."""

    mode: Runtime[Literal["sync", "async"]] = "async"
    """`async`: training waits for a copy in memory, as large as a worker's part; `sync`: for the store, no copy."""
    interval: Runtime[Literal["steps", "auto"]] = "steps"
    """`steps`: every `interval_steps`; `auto`: computed from the measured cost of a save and the rate of faults."""
    interval_steps: Runtime[Steps] = 250
    """Save every this many steps, and at the end."""
    mtbf_seconds: Runtime[Seconds | None] = None
    """Mean time between faults, for interval=auto; null measures it in the run, at first one day."""
    keep_last: Runtime[Count] = 2
    """Newest checkpoints that are kept."""
    keep_every_steps: Runtime[Steps | None] = None
    """Checkpoints at multiples of this many steps are kept for good."""
    keep_best: Runtime[CountOrZero] = 0
    """This many checkpoints with the best `best_metric` are kept, of those with a validation after their step."""
    best_metric: Runtime[BestMetric] = "val/loss_clm"
    """What decides which checkpoints are best."""
    max_failed_saves: Runtime[CountOrZero] = 3
    """Saves in a row that may fail, each one reported; the next failed save, or a failed last save, fails the run."""
    grace_seconds: Runtime[Seconds] = 60
    """Time after a notice of termination for the current step and a last checkpoint."""


class FinetuneSettings(Config):
    """How long a task is learned, and which model comes out."""

    num_epochs: Identity[Annotated[float, Field(gt=0, le=1e6)] | None] = 3.0
    """Passes over the training examples, which give the number of steps; null takes training.num_steps."""
    warmup_fraction: Identity[Small | None] = 0.06
    """Share of the steps in which the learning rate rises; null takes optimizer.warmup_steps."""
    weights: Identity[Literal["pretrained", "random"]] = "pretrained"
    """`random` begins with random weights of the model's shape, the baseline that its pretraining is compared with."""
    keep: Identity[Literal["best", "last"]] = "best"
    """The model that comes out: that of the `best` validation, or of the `last` step."""
    metric: Identity[TaskMetric | None] = None
    """What decides which validation is best; null takes val/macro_f1 for classes, else val/loss_clm."""
    patience: Identity[Count | None] = None
    """Stop after this many validations in a row that were not better; null trains to the last step."""


class ModelFilesConfig(Config):
    """The files of an exported model."""

    dtype: Runtime[Literal["float32", "bfloat16", "float16"] | None] = None
    """Of the weights; null takes that of the training: bfloat16 with training.precision=bf16-true, else float32."""
    max_shard_bytes: Runtime[NumBytes] = 5_000_000_000
    """Largest file of weights, which is held in memory while it is written; a larger model has several."""
    license: Runtime[_Name | None] = None
    """The licence in the model card, by its name on the hub, such as apache-2.0; null names none."""


LEAST_NORMS = 20
"""Fewest gradient norms from which their standard deviation is estimated."""


class GuardConfig(Config):
    """Which steps are skipped as bad; one whose loss or gradient is not finite is always skipped."""

    spike_sigma: Identity[Annotated[float, Field(gt=0, le=1e6)] | None] = None
    """Skip a step whose gradient norm is this many standard deviations above the mean; null: never."""
    window_steps: Identity[Annotated[int, Field(ge=LEAST_NORMS, le=10**6)]] = 100
    """Mean and deviation are of this many earlier good steps; with fewer than 20, no step is a spike."""
    max_consecutive: Runtime[Count] = 20
    """This many skipped steps in a row cause a rollback."""
    max_rollbacks: Runtime[CountOrZero] = 3
    """Number of rollbacks to a checkpoint, each skipping the data since then; after them the run fails."""


class TrackingConfig(Config):
    """Weights & Biases."""

    mode: Runtime[Literal["auto", "online", "offline", "disabled"]] = "auto"
    """`auto`: online with a key in the environment, else offline."""
    project: Runtime[_AddressPart] = "gpt-orchestrator"
    """The W&B project."""
    entity: Runtime[_AddressPart | None] = None
    """The W&B user or team; null takes the owner of the API key."""
    tags: Runtime[tuple[_Tag, ...]] = ()
    """Tags of the W&B run."""
    group: Runtime[_Name | None] = None
    """Group of the W&B run."""
    num_samples: Runtime[CountOrZero] = 3
    """Texts that are generated and logged after each validation."""


class HarnessConfig(Config):
    """Tasks of lm-evaluation-harness (the extra `eval`)."""

    tasks: Identity[Paths] = ()
    """Tasks or groups by name, which are measured in place of a text; empty measures none."""
    include_path: Input[str | None] = None
    """A folder with tasks of your own, YAML files of lm-eval; Python functions that they name there are run."""
    num_fewshot: Identity[CountOrZero | None] = None
    """Solved examples before each question; null takes what each task says."""
    limit: Identity[Count | None] = None
    """Measure only the first rows of each task, so many; null takes all."""
    batch_size: Runtime[Sequences] = 16
    """Sequences computed at once."""
    max_length: Identity[Annotated[Length, Field(gt=1)] | None] = None
    """Tokens that the model sees at once; null takes all its positions, as lm-eval does."""
    precision: Identity[Annotated[Literal["32", "bf16"], BeforeValidator(str)]] = "32"
    """Of the matrix products."""
    apply_chat_template: Identity[bool] = False
    """Write questions as turns of a conversation, by the model's chat template."""

    @model_validator(mode="after")
    def _settings_belong_to_tasks(self) -> Self:
        others = [name for name in self.model_fields_set - {"tasks"} if getattr(self, name) != _default(self, name)]
        if others and not self.tasks:
            name = min(others)
            raise ValueError(f"{name} belongs to harness.tasks; name tasks there, or leave it out")
        return self


def _default(config: Config, name: str) -> Any:
    return type(config).model_fields[name].default
