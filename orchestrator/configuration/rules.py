"""How a step is divided among workers, and the rules that join several groups."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from modules.config import Config, ObjectiveConfig, TokenizerConfig, TrainingConfig, divisors
from orchestrator.configuration.batch import step_or_sample
from orchestrator.configuration.commands import (
    EvaluateConfig,
    FinetuneConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
    TrainingRunConfig,
)
from orchestrator.configuration.decoding import (
    beam_search_draws_nothing,
    length_penalty_needs_beams,
    one_source_of_prompts,
    output_suits_the_prompts,
    sequences_are_beams,
)
from orchestrator.configuration.evaluation_rules import (
    TEXT_OR_TASK,
    one_other,
    one_source_of_questions,
    output_suits_the_rows,
    text_or_a_task,
)
from orchestrator.configuration.faults import fault_mistakes
from orchestrator.configuration.filter_rules import (
    cluster_prepares_files,
    dry_run_belongs_to_text,
    filters_belong_to_text,
)
from orchestrator.configuration.mixture_rules import (
    SPLIT_SETTINGS,
    phases_name_sources,
    sources_are_for_pretraining,
    sources_have_no_rows_of_a_task,
    tokenizer_names_sources,
)
from orchestrator.configuration.schema import shown

_OF_A_TEXT = ("data", "part", "sequence_length", "batch_size", "max_sequences", "mlm_probability", "seed")
"""Settings of `evaluate` that say which text is measured, and how."""


def worker_counts(config: TrainingRunConfig) -> list[int]:
    """Return the numbers of workers among which the global batch can be shared out, ascending; the run has no other."""
    size, micro = config.training.global_batch_size, config.training.micro_batch_size or 1
    return [number for number in config.cluster.worker_counts if size % (number * micro) == 0]


def micro_batch_size(config: TrainingRunConfig, num_workers: int) -> int:
    """Return the number of sequences that each of `num_workers` computes at once.

    Unless it is set, it is a worker's whole share where there are the most workers. Fewer of them accumulate the rest:
    a larger micro-batch might not fit into their memory.
    """
    training = config.training
    if training.micro_batch_size:
        return training.micro_batch_size
    most = training.global_batch_size // max(worker_counts(config))
    return max(size for size in divisors(training.global_batch_size // num_workers) if size <= most)


def cross_group_mistakes(config: Config, unusable: Collection[str] = ()) -> list[str]:
    """Return a line for every rule between groups or fields that `config` breaks: path, value, rule, remedy.

    Args:
        unusable: Those that hold mistakes of their own; rules that read one of them are left out.
    """
    usable = set(type(config).model_fields) - set(unusable)
    return [line for groups, rule in RULES_BETWEEN_GROUPS if groups <= usable for line in rule(config)]


def notes(config: TrainingRunConfig) -> list[str]:
    """Return a line about each valid setting that does something else than a reader of its name would expect."""
    return [f"note: {line}" for line in (*_long_warmup(config), *_left_out_counts(config))]


def _long_warmup(config: TrainingRunConfig) -> list[str]:
    optimizer, num_steps = config.optimizer, config.training.num_steps
    if optimizer.warmup_steps < num_steps:
        return []
    highest = optimizer.learning_rate * num_steps / optimizer.warmup_steps
    peak = "" if optimizer.warmup_steps == num_steps else f", never reaches {optimizer.learning_rate:g}"
    return [
        f"optimizer.warmup_steps={optimizer.warmup_steps}: not below training.num_steps={num_steps}, so "
        f"the whole run is warm-up: the learning rate rises to {highest:.2g} at the last step{peak} and "
        f"does not fall to {optimizer.min_learning_rate:g}"
    ]


def _left_out_counts(config: TrainingRunConfig) -> list[str]:
    counts, asked = worker_counts(config), config.cluster.worker_counts
    if len(counts) == len(asked):
        return []
    return [
        f"cluster.num_workers=[{asked[0]},{asked[-1]}]: training.global_batch_size={config.training.global_batch_size} "
        f"can be shared out among {one_of(counts)} workers; the run has no other number of them"
    ]


def one_of(numbers: Sequence[int]) -> str:
    """Return the numbers as in `1, 2 or 4`."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last


def device_mistakes(training: TrainingConfig, on_gpu: bool) -> list[str]:
    """Return a line for each setting that this kind of device cannot compute with."""
    found = []
    if not on_gpu and training.precision.startswith("16"):
        found.append(f"training.precision={training.precision}: float16 needs a GPU; choose bf16 or 32 on CPU")
    if not on_gpu and training.tf32:
        found.append("training.tf32=true: only GPUs have TF32; leave it out on CPU")
    return found


def _batch_can_be_shared_out(config: TrainingRunConfig) -> list[str]:
    if worker_counts(config):
        return []
    training, asked = config.training, config.cluster.worker_counts
    size, units = training.global_batch_size, [number * (training.micro_batch_size or 1) for number in asked]
    nearest = {max(size // unit * unit for unit in units), min((size // unit + 1) * unit for unit in units)}
    product = f"{asked[0]} workers" if len(asked) == 1 else f"any of {asked[0]} to {asked[-1]} workers"
    product += f" x micro_batch_size {training.micro_batch_size}" if training.micro_batch_size else ""
    return [
        f"training.global_batch_size={size}: not divisible by {product}; "
        f"nearest: {' or '.join(map(str, sorted(nearest - {0})))}"
    ]


def _sequence_fits(config: TrainingRunConfig) -> list[str]:
    return [] if config.model.path else sequence_mistakes(config)  # the model at that path is not known here


def sequence_mistakes(config: TrainingRunConfig) -> list[str]:
    """Return a line if a sequence has more tokens than the model has positions."""
    length, positions = config.training.sequence_length, config.model.max_positions
    if length <= positions:
        return []
    return [
        f"training.sequence_length={length}: longer than model.max_positions ({positions}); "
        + ("lower it" if config.model.path else "lower the former or raise the latter")
    ]


def _tokenizer_is_the_models(config: PretrainConfig) -> list[str]:
    given = config.tokenizer != TokenizerConfig()
    if config.model.path is None or not given:
        return []
    return [
        f"tokenizer.kind={config.tokenizer.kind}: the model at model.path is continued with its own tokenizer; "
        "leave the tokenizer's fields out"
    ]


def _classifier_comes_from_its_task(config: TrainingRunConfig) -> list[str]:
    if config.model.classifier is None:
        return []
    return ["model.classifier: follows from the task that a model is fine-tuned for; leave it out"]


def _single_has_one_worker(config: TrainingRunConfig) -> list[str]:
    if config.strategy.name != "single" or max(config.cluster.worker_counts) == 1:
        return []
    return [
        f"strategy=single: trains with one worker, but cluster.num_workers is {config.cluster.num_workers}; "
        "choose strategy=ddp or zero1, zero2, zero3"
    ]


def _precision_suits_the_strategy(config: TrainingRunConfig) -> list[str]:
    precision, strategy = config.training.precision, config.strategy
    autocast = precision.removesuffix("-true")
    if precision != autocast and not strategy.zero_stage and strategy.name != "auto":
        return [
            f"training.precision={precision}: beside half-precision weights the optimizer keeps float32 ones, which "
            f"strategy={strategy.name} does not, and together they would take as much memory as "
            f"training.precision={autocast}; choose that, or strategy=zero1, zero2, zero3"
        ]
    if precision in ("bf16", "16") and strategy.quantizes_weights:
        return [
            "strategy.deepspeed.zero_optimization.zero_quantized_weights=true: DeepSpeed quantizes no float32 weights, "
            f"which training.precision={precision} has; choose training.precision={precision}-true"
        ]
    return []


def _muon_trains_whole_matrices(config: TrainingRunConfig) -> list[str]:
    if config.optimizer.name != "muon" or config.model.lora is None:
        return []
    return [
        "optimizer.name=muon: orthogonalises the updates of whole matrices, and method=lora trains factors of them; "
        "choose optimizer=adamw"
    ]


def _deepspeed_leaves_muon_alone(config: TrainingRunConfig) -> list[str]:
    if config.optimizer.name != "muon":
        return []
    return [
        f"strategy.deepspeed.{path}: {rule} optimizer.name=muon; leave it out, or choose optimizer=adamw"
        for path, rule in config.strategy.against_muon
    ]


def _splits_belong_to_a_task(config: Any) -> list[str]:
    data = config.data
    # without data, evaluate takes that of the model; and predict knows the task of a model itself
    if data is None or getattr(config, "task", None) is not None or isinstance(config, PredictConfig):
        return []
    fields = type(data).model_fields
    given = [name for name in SPLIT_SETTINGS if getattr(data, name) != fields[name].default]
    return [
        f"data.{name}={shown(getattr(data, name))}: belongs to the rows of a task; what is held out of text is said by "
        "data.val_fraction and data.split; leave it out"
        for name in given
    ]


def _phases_cover_the_steps(config: PretrainConfig) -> list[str]:
    return _phase_mistakes(config.objective, config.training.num_steps)


def _task_and_model_go_together(config: PrepareConfig) -> list[str]:
    if config.task is not None and config.model.path is None:
        return ["model.path: must be given with a task: the model's tokenizer and chat template write the examples"]
    if config.task is not None and config.tokenizer != TokenizerConfig():
        return [
            f"tokenizer.kind={config.tokenizer.kind}: with a task the tokenizer is that of model.path; leave the "
            "tokenizer's fields out"
        ]
    if config.task is None and (config.model.path is not None or config.sequence_length is not None):
        name = "sequence_length" if config.model.path is None else "model.path"
        return [f"{name}: belongs to a task; name one with task=…, or leave it out"]
    return []


def _epochs_or_steps(config: FinetuneConfig) -> list[str]:
    num_epochs, num_steps = config.finetune.num_epochs, config.training.num_steps
    if num_epochs is None or num_steps == TrainingConfig().num_steps:
        return []
    return [
        f"training.num_steps={num_steps}: finetune.num_epochs={num_epochs:g} gives the number of steps; set "
        "finetune.num_epochs=null to give it yourself"
    ]


def _one_warmup(config: FinetuneConfig) -> list[str]:
    fraction, warmup_steps = config.finetune.warmup_fraction, config.optimizer.warmup_steps
    if fraction is None or not warmup_steps:
        return []
    return [
        f"optimizer.warmup_steps={warmup_steps}: finetune.warmup_fraction={fraction:g} gives the steps of warm-up; set "
        "finetune.warmup_fraction=null to give them yourself"
    ]


def _attention_is_within_examples(config: FinetuneConfig) -> list[str]:
    if config.training.attention_scope == "sequence":
        return []
    return [
        f"training.attention_scope={config.training.attention_scope}: in finetune attention always stays within an "
        "example; leave it out"
    ]


def _metric_is_the_tasks(config: FinetuneConfig) -> list[str]:
    metric, is_class = config.finetune.metric, config.task.name == "classification"
    if metric is None or (metric == "val/loss_clm") != is_class:
        return []
    others = "val/macro_f1, val/accuracy or val/loss_classification" if is_class else "val/loss_clm"
    return [f"finetune.metric={metric}: task={config.task.name} has none of that name; choose {others}"]


def _fault_can_happen(config: TrainingRunConfig) -> list[str]:
    if config.faults is None:
        return []
    counts, keep_last = worker_counts(config) or config.cluster.worker_counts, config.checkpoint.keep_last
    return fault_mistakes(config.faults, counts, config.training.num_steps, keep_last)


def _phase_mistakes(objective: ObjectiveConfig, num_steps: int) -> list[str]:
    fixed = sum(phase.steps or 0 for phase in objective.phases)
    shared = sum(phase.fraction or 0 for phase in objective.phases)
    total = fixed + shared * num_steps
    if abs(total - num_steps) < 0.5:
        return []
    return [
        f"objective.phases: they cover {total:g} of training.num_steps={num_steps} steps; "
        "make the steps and fractions add up to it"
    ]


def _harness_tasks_have_their_own_text(config: EvaluateConfig) -> list[str]:
    given = [name for name in _OF_A_TEXT if getattr(config, name) != EvaluateConfig.model_fields[name].default]
    rule = "belongs to a text, and harness.tasks have rows of their own; give one of the two"
    return [f"{name}: {rule}" for name in given] if config.harness.tasks else []


RULES_BETWEEN_GROUPS: tuple[tuple[frozenset[str], Callable[[Any], list[str]]], ...] = (
    (frozenset({"training", "cluster"}), _batch_can_be_shared_out),
    (frozenset({"training", "model"}), _sequence_fits),
    (frozenset({"model", "training"}), _classifier_comes_from_its_task),
    (frozenset({"strategy", "cluster"}), _single_has_one_worker),
    (frozenset({"training", "strategy"}), _precision_suits_the_strategy),
    (frozenset({"optimizer", "model"}), _muon_trains_whole_matrices),
    (frozenset({"optimizer", "strategy"}), _deepspeed_leaves_muon_alone),
    (frozenset({"model", "tokenizer", "objective"}), _tokenizer_is_the_models),
    (frozenset({"training", "objective"}), _phases_cover_the_steps),
    (frozenset({"training", "finetune"}), _epochs_or_steps),
    (frozenset({"training", "finetune"}), _attention_is_within_examples),
    (frozenset({"optimizer", "finetune"}), _one_warmup),
    (frozenset({"finetune", "task"}), _metric_is_the_tasks),
    (frozenset({"task", "model", "tokenizer", "sequence_length"}), _task_and_model_go_together),
    (frozenset({"data"}), _splits_belong_to_a_task),
    (frozenset({"data"}), sources_are_for_pretraining),
    (frozenset({"data"}), sources_have_no_rows_of_a_task),
    (frozenset({"data", "tokenizer"}), tokenizer_names_sources),
    (frozenset({"data", "objective"}), phases_name_sources),
    (frozenset({"data"}), filters_belong_to_text),
    (frozenset({"step", "sample"}), step_or_sample),
    (frozenset({"data", "dry_run", "task"}), dry_run_belongs_to_text),
    (frozenset({"data", "dry_run", "task", "cluster"}), cluster_prepares_files),
    (frozenset({"faults", "cluster", "training", "checkpoint"}), _fault_can_happen),
    (frozenset({"prompt", "prompts_file"}), one_source_of_prompts),
    (frozenset({"output", "prompts_file"}), output_suits_the_prompts),
    (frozenset({"num_beams", "length_penalty"}), length_penalty_needs_beams),
    (frozenset({"num_beams", "temperature", "top_k", "top_p", "min_p"}), beam_search_draws_nothing),
    (frozenset({"num_beams", "num_sequences"}), sequences_are_beams),
    (TEXT_OR_TASK, text_or_a_task),
    (frozenset({"other"}), one_other),
    (frozenset({"text", "pair", "data"}), one_source_of_questions),
    (frozenset({"data", "output"}), output_suits_the_rows),
    (frozenset({"harness", *_OF_A_TEXT}), _harness_tasks_have_their_own_text),
)
"""Each rule with the groups or fields that it reads; it applies to every command that has them all."""
