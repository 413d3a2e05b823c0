"""From the configuration of a training to what its plan depends on."""

from typing import Any, Literal

from orchestrator.configuration.commands import PretrainConfig, TrainingRunConfig
from orchestrator.configuration.rules import micro_batch_size, worker_counts
from orchestrator.planning.memory import Setting


def setting_of(config: TrainingRunConfig, vocab_size: int, device: Literal["cpu", "cuda"]) -> Setting:
    """Return the setting of a run with the fewest workers that it may have, which need the most memory each.

    Args:
        config: The configuration, with the shape of the model that is continued.
        vocab_size: Tokens of the tokenizer.
        device: What each worker computes on.
    """
    training = config.training
    objective = config.objective if isinstance(config, PretrainConfig) else None
    of_examples = objective is None
    num_workers = min(worker_counts(config))
    micro = micro_batch_size(config, num_workers)
    settings: dict[str, Any] = config.strategy.deepspeed
    return Setting(
        model=config.model,
        vocab_size=config.model.vocab_size or vocab_size,
        precision=training.precision,
        length=training.sequence_length,
        micro_batch=micro,
        num_workers=num_workers,
        accumulation=training.global_batch_size // (num_workers * micro),
        objective=objective,
        num_steps=training.num_steps,
        within_documents=of_examples or training.attention_scope == "document",
        restarts_positions=of_examples or training.position_scope == "document",
        head_loss=training.head_loss,
        compiles_blocks=training.compile,
        activation_checkpointing=training.activation_checkpointing,
        device=device,
        keeps_snapshot=config.checkpoint.mode == "async",
        deepspeed=settings,
        optimizer=config.optimizer.name,
    )
